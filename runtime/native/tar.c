/* A tar stream read, entry by entry, for a sink. Everything in it is hostile: no length, name or number is believed.
 *
 * Forms read: v7, ustar, pax (also GNU.sparse 0.0, 0.1, 1.0), GNU (long names, old sparse, base-256). A missing trailer is
 * tolerated, a truncated member is not. Global pax headers are skipped, as all container tools do (Go's archive/tar gives
 * them to its caller, moby's pkg/archive ignores them). What an entry becomes is the sink's to know.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "unpack.h"

enum {
    PAX_LIMIT = 8 << 20,    /* one extended header: xattrs of 64 KiB, sparse maps */
    BODIES = PAX_LIMIT + 4 * NAME_LIMIT, /* all of one entry */
    SPARSE_LIMIT = 1 << 18, /* pieces of one sparse file */
};

/* ---- the stream ---- */

/* Make at least one byte available; 0 at the end of the stream. */
static ssize_t more(struct unpack *u)
{
    if (u->start == u->end)
        u->start = u->end = 0;
    if (u->end == BUFFER) {
        memmove(u->buffer, u->buffer + u->start, u->end - u->start);
        u->end -= u->start;
        u->start = 0;
    }
    ssize_t got;
    do
        got = read(0, u->buffer + u->end, BUFFER - u->end);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return wh_fail(u, errno, "cannot read the stream");
    u->end += (size_t)got;
    u->consumed += (uint64_t)got;
    if (u->consumed > u->max_bytes)
        return wh_fail(u, EFBIG, "the layer is larger than the limit");
    if (got && u->sink->raw && u->sink->raw(u, u->buffer + u->end - got, (size_t)got) < 0)
        return -1;
    return got;
}

/* The next block: 1, or 0 at a clean end, or -1. */
static int next_block(struct unpack *u, const uint8_t **block)
{
    while (u->end - u->start < BLOCK) {
        ssize_t got = more(u);
        if (got < 0)
            return -1;
        if (got == 0) {
            if (u->end != u->start)
                return wh_fail(u, EPROTO, "the archive ends inside a header");
            return 0;
        }
    }
    *block = u->buffer + u->start;
    u->start += BLOCK;
    return 1;
}

int wh_stream(struct unpack *u, uint64_t size, taker take, void *to)
{
    while (size) {
        if (u->start == u->end) {
            ssize_t got = more(u);
            if (got < 0)
                return -1;
            if (got == 0)
                return wh_fail(u, EPROTO, "the archive ends inside a member");
        }
        size_t part = u->end - u->start < size ? u->end - u->start : (size_t)size;
        if (take && take(u, to, u->buffer + u->start, part) < 0)
            return -1;
        u->start += part;
        size -= part;
    }
    return 0;
}

/* Padding to the next block; the last one may be missing. */
static int skip_padding(struct unpack *u, uint64_t size)
{
    size_t left = (size_t)(-size & (BLOCK - 1));
    while (left) {
        if (u->start == u->end) {
            ssize_t got = more(u);
            if (got <= 0)
                return (int)got;
        }
        size_t part = u->end - u->start < left ? u->end - u->start : left;
        u->start += part;
        left -= part;
    }
    return 0;
}

static int to_memory(struct unpack *u, void *to, const uint8_t *data, size_t size)
{
    (void)u;
    char **at = to;
    memcpy(*at, data, size);
    *at += size;
    return 0;
}

/* The body of an extended header, NUL-terminated, in u->bodies. */
static char *read_body(struct unpack *u, uint64_t size, uint64_t limit)
{
    if (size > limit || size + 1 > BODIES - u->bodies_used) {
        wh_fail(u, E2BIG, "an extended header is too large, or there are too many of them");
        return NULL;
    }
    char *body = u->bodies + u->bodies_used, *at = body;
    u->bodies_used += (size_t)size + 1;
    if (wh_stream(u, size, to_memory, &at) < 0 || skip_padding(u, size) < 0)
        return NULL;
    *at = 0;
    return body;
}

static void forget_pax(struct unpack *u)
{
    u->bodies_used = 0;
    u->pax.xattrs = 0;
    u->pax.path = u->pax.link = u->pax.sparse_name = NULL;
    u->pax.has_size = u->pax.has_uid = u->pax.has_gid = u->pax.has_mtime = false;
    u->pax.sparse = u->pax.sparse_1_0 = u->pax.has_real = false;
    u->pieces = 0;
}

/* ---- numbers ---- */

static int parse_binary(const uint8_t *field, size_t size, int64_t *value)
{
    bool negative = field[0] & 0x40;
    uint64_t bits = negative ? ~UINT64_C(0) : 0;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = i ? field[i] : (uint8_t)(negative ? field[0] : field[0] & 0x7f);
        if (i + 8 < size && byte != (negative ? 0xff : 0))
            return -1;
        bits = bits << 8 | byte;
    }
    *value = (int64_t)bits;
    return (*value < 0) == negative ? 0 : -1;
}

/* A number of a header: octal in text, or base-256 (GNU). Empty is 0. */
static int parse_number(const void *from, size_t size, int64_t *value)
{
    const uint8_t *field = from;
    if (field[0] & 0x80)
        return parse_binary(field, size, value);
    size_t i = 0;
    uint64_t number = 0;
    while (i < size && field[i] == ' ')
        i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) {
        if (number >> 60)
            return -1;
        number = number << 3 | (uint64_t)(field[i] - '0');
    }
    if (i < size && field[i] != 0 && field[i] != ' ')
        return -1;
    *value = (int64_t)number;
    return 0;
}

/* Decimal digits of [text, end); the end of the digits, NULL when there are none or too many. */
const char *wh_parse_decimal(const char *text, const char *end, uint64_t *value)
{
    const char *at = text;
    uint64_t number = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++) {
        if (number > (INT64_MAX - 9) / 10)
            return NULL;
        number = number * 10 + (uint64_t)(*at - '0');
    }
    *value = number;
    return at == text ? NULL : at;
}

/* pax: seconds since the epoch, perhaps negative, perhaps with a fraction (POSIX.1-2017 pax, 4.b "mtime"). */
static int parse_time(const char *text, const char *end, struct stamp *stamp)
{
    bool negative = text < end && *text == '-';
    uint64_t whole = 0;
    const char *at = wh_parse_decimal(text + negative, end, &whole);
    if (!at)
        return -1;
    long nsec = 0;
    if (at < end && *at == '.') {
        long unit = 100000000;
        for (at++; at < end && *at >= '0' && *at <= '9'; at++, unit /= 10)
            nsec += unit * (*at - '0');
    }
    if (at != end)
        return -1;
    stamp->sec = negative ? -(int64_t)whole : (int64_t)whole;
    stamp->nsec = nsec;
    if (negative && nsec) {
        stamp->sec--;
        stamp->nsec = 1000000000 - nsec;
    }
    return 0;
}

/* ---- extended headers ---- */

static int add_piece(struct unpack *u, uint64_t offset, uint64_t size)
{
    if (!u->map && !(u->map = wh_map_memory(SPARSE_LIMIT * sizeof *u->map)))
        return wh_fail(u, ENOMEM, "no memory for a sparse map");
    if (u->pieces == SPARSE_LIMIT)
        return wh_fail(u, E2BIG, "a sparse file has too many pieces");
    u->map[u->pieces++] = (struct piece){offset, size};
    return 0;
}

/* GNU.sparse.map (0.1): "offset,size,offset,size..." */
static int parse_map(struct unpack *u, const char *at, const char *end)
{
    uint64_t pair[2];
    u->pieces = 0;
    while (at < end) {
        for (int i = 0; i < 2; i++) {
            if (!(at = wh_parse_decimal(at, end, &pair[i])) || (at < end && *at != ','))
                return wh_fail(u, EPROTO, "a sparse map is malformed");
            at += at < end;
        }
        if (add_piece(u, pair[0], pair[1]) < 0)
            return -1;
    }
    return 0;
}

static int from_hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* LIBARCHIVE.xattr.<name, percent-encoded>=<value, base64>: both decoded in place. */
static int decode_libarchive(char *name, char *value, size_t *size)
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *to = name;
    for (char *from = name; *from; from++) {
        if (*from == '%' && from[1] && from_hex(from[1]) >= 0 && from_hex(from[2]) >= 0) {
            *to++ = (char)(from_hex(from[1]) << 4 | from_hex(from[2]));
            from += 2;
        } else {
            *to++ = *from;
        }
    }
    *to = 0;
    uint32_t bits = 0;
    unsigned held = 0;
    size_t out = 0;
    for (size_t i = 0; i < *size && value[i] != '='; i++) {
        const char *digit = value[i] ? strchr(DIGITS, value[i]) : NULL;
        if (!digit)
            return -1;
        bits = bits << 6 | (uint32_t)(digit - DIGITS);
        if ((held += 6) >= 8)
            value[out++] = (char)(bits >> (held -= 8));
    }
    *size = out;
    return 0;
}

/* Names of the host's own concern (security.selinux, .ima) and of overlayfs (redirect, metacopy, origin) are not an image's to set. */
static bool xattr_allowed(const char *name)
{
    if (!strncmp(name, "trusted.overlay.", 16) || !strncmp(name, "user.overlay.", 13))
        return false;
    return !strncmp(name, "user.", 5) || !strncmp(name, "trusted.", 8) || !strcmp(name, "security.capability") ||
           !strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default");
}

static int add_xattr(struct unpack *u, char *name, char *value, size_t size, bool encoded)
{
    if (encoded && decode_libarchive(name, value, &size) < 0)
        return wh_fail(u, EPROTO, "an extended attribute is not base64");
    if (!xattr_allowed(name))
        return 0;
    if (strlen(name) > 255 || size > 65536)
        return wh_fail(u, E2BIG, "an extended attribute is too large");
    unsigned i = 0;
    while (i < u->pax.xattrs && strcmp(u->pax.xattr[i].name, name))
        i++;
    if (i == XATTR_LIMIT)
        return wh_fail(u, E2BIG, "an entry has too many extended attributes");
    u->pax.xattr[i] = (struct xattr){name, value, size};
    u->pax.xattrs += i == u->pax.xattrs;
    return 0;
}

static int pax_number(struct unpack *u, const char *value, const char *end, bool *has, uint64_t *to)
{
    *has = value != end; /* an empty value deletes an earlier one */
    if (*has && wh_parse_decimal(value, end, to) != end)
        return wh_fail(u, EPROTO, "a number of a pax header is malformed");
    return 0;
}

static int pax_text(struct unpack *u, const char *value, const char *end, const char **to)
{
    if (memchr(value, 0, (size_t)(end - value)))
        return wh_fail(u, EPROTO, "a name of a pax header holds a NUL byte");
    if (end - value >= NAME_LIMIT)
        return wh_fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
    *to = value == end ? NULL : value;
    return 0;
}

static int pax_sparse(struct unpack *u, const char *key, const char *value, const char *end)
{
    struct pax *p = &u->pax;
    uint64_t number = 0;
    p->sparse = true;
    if (!strcmp(key, "name"))
        return pax_text(u, value, end, &p->sparse_name);
    if (!strcmp(key, "map"))
        return parse_map(u, value, end);
    if (wh_parse_decimal(value, end, &number) != end)
        return wh_fail(u, EPROTO, "a sparse header is malformed");
    if (!strcmp(key, "size") || !strcmp(key, "realsize")) {
        p->has_real = true;
        p->real = number;
    } else if (!strcmp(key, "major")) {
        p->sparse_1_0 = number == 1;
    } else if (!strcmp(key, "offset")) {
        return add_piece(u, number, 0);
    } else if (!strcmp(key, "numbytes")) {
        if (!u->pieces)
            return wh_fail(u, EPROTO, "a sparse header is malformed");
        u->map[u->pieces - 1].size = number;
    }
    return 0;
}

static int pax_record(struct unpack *u, char *key, char *value, char *end)
{
    struct pax *p = &u->pax;
    if (!strcmp(key, "path"))
        return pax_text(u, value, end, &p->path);
    if (!strcmp(key, "linkpath"))
        return pax_text(u, value, end, &p->link);
    if (!strcmp(key, "size"))
        return pax_number(u, value, end, &p->has_size, &p->size);
    if (!strcmp(key, "uid"))
        return pax_number(u, value, end, &p->has_uid, &p->uid);
    if (!strcmp(key, "gid"))
        return pax_number(u, value, end, &p->has_gid, &p->gid);
    if (!strncmp(key, "SCHILY.xattr.", 13))
        return add_xattr(u, key + 13, value, (size_t)(end - value), false);
    if (!strncmp(key, "LIBARCHIVE.xattr.", 17))
        return add_xattr(u, key + 17, value, (size_t)(end - value), true);
    if (!strncmp(key, "GNU.sparse.", 11))
        return pax_sparse(u, key + 11, value, end);
    if (!strcmp(key, "mtime")) {
        p->has_mtime = value != end;
        if (p->has_mtime && parse_time(value, end, &p->mtime) < 0)
            return wh_fail(u, EPROTO, "a time of a pax header is malformed");
    }
    return 0;
}

/* "LENGTH KEY=VALUE\n" repeated. `apply` false: only checked. */
static int parse_pax(struct unpack *u, char *body, uint64_t size, bool apply)
{
    char *at = body, *stop = body + size;
    while (at < stop) {
        uint64_t length = 0;
        const char *space = wh_parse_decimal(at, stop, &length);
        if (!space || space == stop || *space != ' ' || length > (uint64_t)(stop - at) || length < (uint64_t)(space - at) + 3)
            return wh_fail(u, EPROTO, "a pax record is malformed");
        char *end = at + length - 1, *key = at + (space - at) + 1;
        char *equals = memchr(key, '=', (size_t)(end - key));
        if (*end != '\n' || !equals || memchr(key, 0, (size_t)(equals - key)))
            return wh_fail(u, EPROTO, "a pax record is malformed");
        *equals = *end = 0;
        if (apply && pax_record(u, key, equals + 1, end) < 0)
            return -1;
        at = end + 1;
    }
    return 0;
}

/* ---- headers ---- */

static bool checksum_right(const uint8_t *block)
{
    int64_t stored;
    if (parse_number(block + 148, 8, &stored) < 0)
        return false;
    int64_t sum = 8 * ' ', signed_sum = 8 * ' '; /* the field itself counts as spaces; old tars summed signed chars */
    for (int i = 0; i < BLOCK; i++) {
        if (i < 148 || i >= 156) {
            sum += block[i];
            signed_sum += (int8_t)block[i];
        }
    }
    return stored == sum || stored == signed_sum;
}

static bool all_zero(const uint8_t *block)
{
    for (int i = 0; i < BLOCK; i++)
        if (block[i])
            return false;
    return true;
}

size_t wh_component(const char *path)
{
    size_t length = 0;
    while (path[length] && path[length] != '/')
        length++;
    return length;
}

int wh_clean_path(struct unpack *u, const char *raw, char *to)
{
    size_t length = 0;
    for (const char *at = raw; *at;) {
        size_t part = wh_component(at);
        if (part == 2 && at[0] == '.' && at[1] == '.') {
            if (!length)
                return wh_fail(u, EXDEV, "the name leaves the layer");
            while (length && to[--length] != '/')
                ;
        } else if (part && !(part == 1 && at[0] == '.')) {
            if (length + part + 2 > NAME_LIMIT)
                return wh_fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
            if (length)
                to[length++] = '/';
            memcpy(to + length, at, part);
            length += part;
        }
        at += part;
        at += *at == '/';
    }
    to[length] = 0;
    return 0;
}

static void split_path(struct entry *e)
{
    char *slash = strrchr(e->path, '/');
    e->base = slash ? slash + 1 : e->path;
    size_t length = slash ? (size_t)(slash - e->path) : 0;
    memcpy(e->parent, e->path, length);
    e->parent[length] = 0;
}

static int entry_names(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    char name[NAME_LIMIT];
    const char *raw = u->pax.sparse_name ? u->pax.sparse_name : u->pax.path;
    if (!raw) {
        size_t at = 0;
        if (!memcmp(block + 257, "ustar\0", 6) && block[345]) { /* GNU's magic is "ustar " and has no prefix */
            at = strnlen((const char *)block + 345, 155);
            memcpy(name, block + 345, at);
            name[at++] = '/';
        }
        size_t length = strnlen((const char *)block, 100);
        memcpy(name + at, block, length);
        name[at + length] = 0;
        raw = name;
    }
    if (!*raw)
        return wh_fail(u, EPROTO, "an entry has no name");
    if (e->type == 0)
        e->type = raw[strlen(raw) - 1] == '/' ? '5' : '0'; /* v7 has no type for directories */
    if (wh_clean_path(u, raw, e->path) < 0)
        return -1;
    if (u->pax.link) {
        memcpy(e->link, u->pax.link, strlen(u->pax.link) + 1); /* its length was checked */
    } else {
        size_t length = strnlen((const char *)block + 157, 100);
        memcpy(e->link, block + 157, length);
        e->link[length] = 0;
    }
    split_path(e);
    return 0;
}

static int entry_numbers(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    struct pax *p = &u->pax;
    int64_t mode, uid, gid, size, mtime, major = 0, minor = 0;
    if (parse_number(block + 100, 8, &mode) < 0 || parse_number(block + 108, 8, &uid) < 0 ||
        parse_number(block + 116, 8, &gid) < 0 || parse_number(block + 124, 12, &size) < 0 ||
        parse_number(block + 136, 12, &mtime) < 0)
        return wh_fail(u, EPROTO, "a number of a header is malformed");
    if ((e->type == '3' || e->type == '4') &&
        (parse_number(block + 329, 8, &major) < 0 || parse_number(block + 337, 8, &minor) < 0))
        return wh_fail(u, EPROTO, "a device number is malformed");
    uid = p->has_uid ? (int64_t)p->uid : uid;
    gid = p->has_gid ? (int64_t)p->gid : gid;
    size = p->has_size ? (int64_t)p->size : size;
    if (uid < 0 || uid >= UINT32_MAX || gid < 0 || gid >= UINT32_MAX || size < 0 || major < 0 || major >= 1 << 12 ||
        minor < 0 || minor >= 1 << 20)
        return wh_fail(u, ERANGE, "an owner, size or device number is out of range");
    e->mode = (mode_t)mode & 07777;
    e->uid = (uid_t)uid;
    e->gid = (gid_t)gid;
    e->size = e->real = (uint64_t)size;
    e->device = (dev_t)((minor & 0xff) | major << 8 | (minor & ~0xff) << 12); /* new_encode_dev, linux/kdev_t.h */
    e->mtime = p->has_mtime ? p->mtime : (struct stamp){mtime, 0};
    return 0;
}

/* Old GNU sparse: four pieces in the header, 21 more in each block that follows. */
static int old_sparse(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    int64_t real, offset, size;
    const uint8_t *at = block + 386;
    int count = 4;
    bool more_blocks = block[482];
    if (parse_number(block + 483, 12, &real) < 0 || real < 0)
        return wh_fail(u, EPROTO, "a sparse header is malformed");
    e->real = (uint64_t)real;
    e->sparse = true;
    for (;;) {
        for (int i = 0; i < count && at[24 * i]; i++) {
            if (parse_number(at + 24 * i, 12, &offset) < 0 || parse_number(at + 24 * i + 12, 12, &size) < 0 || offset < 0 || size < 0)
                return wh_fail(u, EPROTO, "a sparse header is malformed");
            if (add_piece(u, (uint64_t)offset, (uint64_t)size) < 0)
                return -1;
        }
        if (!more_blocks)
            return 0;
        if (next_block(u, &at) != 1)
            return wh_fail(u, EPROTO, "the archive ends inside a sparse header");
        count = 21;
        more_blocks = at[504];
    }
}

/* pax sparse 1.0: the map stands in front of the data, one decimal number a line, padded to a block. */
static int sparse_1_0(struct unpack *u)
{
    struct entry *e = &u->entry;
    uint64_t expected = 1, seen = 0, value = 0, pair[2];
    const uint8_t *block;
    bool digits = false;
    u->pieces = 0;
    while (seen < expected) {
        if (e->size < BLOCK || next_block(u, &block) != 1)
            return wh_fail(u, EPROTO, "the archive ends inside a sparse map");
        e->size -= BLOCK;
        for (int i = 0; i < BLOCK && seen < expected; i++) {
            if (block[i] >= '0' && block[i] <= '9' && value < INT64_MAX / 10 - 1) {
                value = value * 10 + (uint64_t)(block[i] - '0');
                digits = true;
                continue;
            }
            if (block[i] != '\n' || !digits || (!seen && value > SPARSE_LIMIT))
                return wh_fail(u, EPROTO, "a sparse map is malformed");
            if (!seen)
                expected += 2 * value;
            else
                pair[(seen - 1) & 1] = value;
            if (seen && !(seen & 1) && add_piece(u, pair[0], pair[1]) < 0)
                return -1;
            seen++;
            value = 0;
            digits = false;
        }
    }
    return 0;
}

static int check_map(struct unpack *u)
{
    uint64_t total = 0, real = u->entry.real;
    for (size_t i = 0; i < u->pieces; i++) {
        struct piece *p = &u->map[i];
        if (p->offset > real || p->size > real - p->offset)
            return wh_fail(u, EPROTO, "a piece of a sparse file lies outside of it");
        total += p->size;
    }
    return total == u->entry.size ? 0 : wh_fail(u, EPROTO, "a sparse map does not fit its data");
}

int wh_sparse_map(struct unpack *u)
{
    return u->pax.sparse_1_0 && sparse_1_0(u) < 0 ? -1 : check_map(u);
}

/* ---- entries ---- */

/* Entries come directory by directory: the sink looks for each one once. */
static int enter(struct unpack *u, const char *path)
{
    if (u->entered && !strcmp(u->parent_path, path))
        return 0;
    u->entered = false;
    if (u->sink->parent(u, path) < 0)
        return -1;
    memcpy(u->parent_path, path, strlen(path) + 1);
    u->entered = true;
    return 0;
}

/* ".wh.NAME" hides NAME of the layers below, never of this one (image-spec 1.1, layer.md, Whiteouts). */
static int put_special(struct unpack *u)
{
    const char *base = u->entry.base, *name = base + 4;
    if (enter(u, u->entry.parent) < 0)
        return -1;
    if (!strcmp(base, ".wh..wh..opq"))
        return u->sink->opaque(u);
    if (!strncmp(base, ".wh..wh.", 8))
        return 0; /* aufs' own files */
    if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
        return wh_fail(u, EPROTO, "a whiteout without a name");
    return u->sink->whiteout(u, name);
}

static int put_entry(struct unpack *u)
{
    struct entry *e = &u->entry;
    const struct sink *sink = u->sink;
    if (!*e->path && e->type != '5')
        return wh_fail(u, EINVAL, "the root of the layer must be a directory");
    if (!strncmp(e->base, ".wh.", 4))
        return put_special(u);
    if (enter(u, e->parent) < 0)
        return -1;
    switch (e->type) {
    case '0': case '7': case 'S': return sink->file(u);
    case '1': return sink->link(u);
    case '2': return sink->symlink(u);
    case '3': case '4': case '6': return sink->node(u);
    case '5': return sink->dir(u);
    default: return wh_fail(u, EPROTO, "an entry of an unknown type");
    }
}

/* Only files have data (Go's archive/tar, isHeaderOnlyType): the size of other types is not a length. */
static bool has_data(char type)
{
    return !strchr("123456", type);
}

static int one_entry(struct unpack *u, const uint8_t *block)
{
    struct entry *e = &u->entry;
    e->type = (char)block[156];
    e->sparse = false;
    if (entry_names(u, block) < 0 || entry_numbers(u, block) < 0)
        return -1;
    if (++u->entries > u->max_entries)
        return wh_fail(u, E2BIG, "the layer has more entries than the limit");
    if (!has_data(e->type))
        e->size = 0;
    uint64_t size = e->size, before;
    if (e->type == 'S' && old_sparse(u, block) < 0)
        return -1;
    if (u->pax.sparse && e->type == '0') {
        e->sparse = true;
        e->real = u->pax.has_real ? u->pax.real : e->size;
    }
    before = wh_position(u);
    if (put_entry(u) < 0)
        return -1;
    uint64_t used = wh_position(u) - before; /* a whiteout may carry data that nobody took */
    if (wh_stream(u, size - used, NULL, NULL) < 0)
        return -1;
    forget_pax(u);
    return skip_padding(u, size);
}

static int extended(struct unpack *u, const uint8_t *block, char type)
{
    int64_t size;
    if (parse_number(block + 124, 12, &size) < 0 || size < 0)
        return wh_fail(u, EPROTO, "a number of a header is malformed");
    char *body = read_body(u, (uint64_t)size, type == 'L' || type == 'K' ? NAME_LIMIT : PAX_LIMIT);
    if (!body)
        return -1;
    if (type == 'L')
        u->pax.path = body;
    else if (type == 'K')
        u->pax.link = body;
    else
        return parse_pax(u, body, (uint64_t)size, type != 'g');
    if (strlen(body) >= NAME_LIMIT)
        return wh_fail(u, ENAMETOOLONG, "a name is longer than 4095 bytes");
    return 0;
}

/* One header with what belongs to it: 1, or 0 at the end. */
static int step(struct unpack *u)
{
    const uint8_t *block;
    int got = next_block(u, &block);
    if (got <= 0)
        return got;
    if (all_zero(block)) {
        u->ended = true;
        return 0;
    }
    if (!checksum_right(block))
        return wh_fail(u, EPROTO, "not a tar archive, or a damaged one (checksum of a header)");
    uint8_t header[BLOCK]; /* the buffer moves on while the body is read */
    memcpy(header, block, BLOCK);
    char type = (char)header[156];
    int result;
    if (type == 'L' || type == 'K' || type == 'x' || type == 'X')
        result = extended(u, header, type);
    else if (type == 'g')
        result = extended(u, header, type);
    else
        result = one_entry(u, header);
    return result < 0 ? -1 : 1;
}
static int drain(struct unpack *u)
{
    ssize_t got;
    do {
        u->start = u->end = 0;
        got = more(u);
    } while (got > 0);
    return (int)got;
}

int wh_tar(struct unpack *u)
{
    int got;
    if (!(u->buffer = wh_map_memory(BUFFER)) || !(u->bodies = wh_map_memory(BODIES)))
        return wh_fail(u, ENOMEM, "no memory");
    while ((got = step(u)) > 0)
        ;
    u->entry.path[0] = 0;
    if (got < 0)
        return -1;
    if (u->pax.path || u->pax.link || u->pax.has_size)
        return wh_fail(u, EPROTO, "the archive ends after an extended header");
    return u->ended ? drain(u) : 0;
}
