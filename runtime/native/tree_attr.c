/* Extended attributes in a tree, as the kernel would take them.
 *
 * A format that is written as it stands bypasses what setxattr(2) checks and changes on other file systems, so that is here,
 * function by function as in fs/xattr.c, fs/posix_acl.c and security/commoncap.c. An image then means the same in both formats.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "tree.h"

enum { USER = 1, ACL_ACCESS = 2, ACL_DEFAULT = 3, TRUSTED = 4, SECURITY = 6 }; /* EROFS_XATTR_INDEX_* */
enum { USER_OBJ = 1, ONE_USER = 2, GROUP_OBJ = 4, ONE_GROUP = 8, MASK = 16, OTHER = 32 }; /* linux/posix_acl.h */
enum { ACL_VERSION = 2 };

struct acl { uint32_t version; struct ace { uint16_t tag, perm; uint32_t id; } entry[]; }; /* little endian, as we are */

static const struct { const char *prefix; uint8_t index; } PREFIXES[] = {
    {"user.", USER}, {"trusted.", TRUSTED}, {"security.", SECURITY},
    {"system.posix_acl_access", ACL_ACCESS}, {"system.posix_acl_default", ACL_DEFAULT},
};

static void forget(struct inode *inode, uint8_t index, const char *name, size_t length)
{
    for (struct attr **at = &inode->attrs; *at; at = &(*at)->next) {
        if ((*at)->index == index && (*at)->length == length && !memcmp((*at)->data, name, length)) {
            *at = (*at)->next;
            return;
        }
    }
}

static int put(struct unpack *u, struct inode *inode, uint8_t index, const char *name, const char *value, size_t size)
{
    size_t length = strlen(name);
    struct attr *made = size > UINT16_MAX ? NULL : wh_tree_room(u, sizeof *made + length + size);
    if (!made)
        return wh_fail(u, EOVERFLOW, "an extended attribute is too large for this format");
    forget(inode, index, name, length);
    made->next = inode->attrs;
    made->index = index;
    made->length = (uint8_t)length;
    made->size = (uint16_t)size;
    memcpy(made->data, name, length);
    memcpy(made->data + length, value, size);
    inode->attrs = made;
    return 0;
}

/* posix_acl_from_xattr(): what is malformed wherever it is put. */
static bool parses(const struct acl *acl, size_t size)
{
    if (size < sizeof *acl || (size - sizeof *acl) % sizeof *acl->entry)
        return false;
    for (const struct ace *e = acl->entry; e < acl->entry + (size - sizeof *acl) / sizeof *e; e++) {
        bool one = e->tag == ONE_USER || e->tag == ONE_GROUP;
        if (one ? e->id == UINT32_MAX : e->tag != USER_OBJ && e->tag != GROUP_OBJ && e->tag != MASK && e->tag != OTHER)
            return false;
    }
    return true;
}

/* posix_acl_valid(), and the mode that the list means (posix_acl_equiv_mode()): 1 no more than a mode, 0 more, -1 invalid. */
static int read_acl(const struct acl *acl, size_t count, uint32_t *mode)
{
    uint32_t bits = 0;
    unsigned state = USER_OBJ;
    bool extended = false;
    for (const struct ace *e = acl->entry; e < acl->entry + count; e++) {
        if (e->perm & ~7u)
            return -1;
        if (e->tag == USER_OBJ && state == USER_OBJ) {
            state = ONE_USER;
            bits |= (uint32_t)e->perm << 6;
        } else if (e->tag == GROUP_OBJ && state == ONE_USER) {
            state = ONE_GROUP;
            bits |= (uint32_t)e->perm << 3;
        } else if ((e->tag == ONE_USER || e->tag == ONE_GROUP) && state == e->tag) {
            extended = true;
        } else if (e->tag == MASK && state == ONE_GROUP) {
            state = OTHER;
            extended = true;
            bits = (bits & ~070u) | (uint32_t)e->perm << 3;
        } else if (e->tag == OTHER && (state == OTHER || (state == ONE_GROUP && !extended))) {
            state = 0;
            bits |= e->perm;
        } else {
            return -1;
        }
    }
    *mode = (*mode & ~0777u) | bits;
    return state ? -1 : !extended;
}

static int put_acl(struct unpack *u, struct inode *inode, uint8_t index, const char *value, size_t size)
{
    _Alignas(struct acl) char room[UINT16_MAX + 1];
    const struct acl *acl = (const struct acl *)room;
    uint32_t mode = inode->mode;
    if (size > sizeof room)
        return wh_fail(u, EOVERFLOW, "an access control list is too large for this format");
    memcpy(room, value, size);
    if (size >= sizeof *acl && acl->version != ACL_VERSION)
        return 0;
    if (size && !parses(acl, size))
        return wh_fail(u, EINVAL, "an access control list is malformed");
    if (S_ISLNK(inode->mode))
        return 0;
    if (size <= sizeof *acl) {
        forget(inode, index, "", 0);
        return 0;
    }
    if (index == ACL_DEFAULT && !S_ISDIR(inode->mode))
        return wh_fail(u, EACCES, "a default access control list of something that is no directory");
    int plain = read_acl(acl, (size - sizeof *acl) / sizeof *acl->entry, &mode);
    if (plain < 0)
        return wh_fail(u, EINVAL, "an access control list is malformed");
    if (index == ACL_ACCESS) {
        inode->mode = mode;
        if (plain) {
            forget(inode, index, "", 0);
            return 0;
        }
    }
    return put(u, inode, index, "", value, size);
}

/* cap_convert_nscap(): a capability of version 2 or 3. (An empty one passes, and is none.) */
static bool is_capability(const char *value, size_t size)
{
    uint32_t magic = 0, root = 0; /* the user that is root where it counts; UINT32_MAX is nobody */
    if (size >= sizeof magic)
        memcpy(&magic, value, sizeof magic);
    if (size == 24)
        memcpy(&root, value + 20, sizeof root);
    magic &= ~1u; /* VFS_CAP_FLAGS_EFFECTIVE */
    return (size == 20 && magic == 0x02000000) || (size == 24 && magic == 0x03000000 && root != UINT32_MAX);
}

int wh_tree_set_attr(struct unpack *u, struct inode *inode, const char *name, const char *value, size_t size)
{
    for (size_t i = 0; i < sizeof PREFIXES / sizeof PREFIXES[0]; i++) {
        size_t length = strlen(PREFIXES[i].prefix);
        const uint8_t index = PREFIXES[i].index;
        if (strncmp(name, PREFIXES[i].prefix, length))
            continue;
        if (index == ACL_ACCESS || index == ACL_DEFAULT)
            return put_acl(u, inode, index, value, size);
        if (index == USER && !S_ISREG(inode->mode) && !S_ISDIR(inode->mode))
            return 0; /* xattr_permission() */
        if (!name[length])
            return wh_fail(u, EINVAL, "an extended attribute without a name");
        if (size && !strcmp(name, "security.capability") && !is_capability(value, size))
            return wh_fail(u, EINVAL, "cannot set file capabilities");
        return put(u, inode, index, name + length, value, size);
    }
    return 0;
}

/* Words of 32 bits: a header of three, then each with a header of one. */
size_t wh_tree_attrs_size(const struct inode *inode)
{
    size_t size = inode->attrs ? 12 : 0;
    for (const struct attr *a = inode->attrs; a; a = a->next)
        size += (4 + a->length + (size_t)a->size + 3) & ~(size_t)3;
    return size;
}

int wh_tree_attrs(struct unpack *u, struct inode *inode)
{
    for (unsigned i = 0; i < u->pax.xattrs; i++)
        if (wh_tree_set_attr(u, inode, u->pax.xattr[i].name, u->pax.xattr[i].value, u->pax.xattr[i].size) < 0)
            return -1;
    return 0;
}

void wh_tree_chmod(struct inode *inode, uint32_t mode)
{
    inode->mode = (inode->mode & S_IFMT) | (mode & 07777);
    for (struct attr *a = inode->attrs; a; a = a->next) {
        if (a->index != ACL_ACCESS)
            continue;
        struct ace e;
        for (size_t at = sizeof(struct acl); at + sizeof e <= a->size; at += sizeof e) {
            memcpy(&e, a->data + at, sizeof e);
            if (e.tag == USER_OBJ)
                e.perm = (uint16_t)(mode >> 6 & 7);
            else if (e.tag == MASK) /* a list that is more than a mode has one */
                e.perm = (uint16_t)(mode >> 3 & 7);
            else if (e.tag == OTHER)
                e.perm = (uint16_t)(mode & 7);
            memcpy(a->data + at, &e, sizeof e);
        }
    }
}
