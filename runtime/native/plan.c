/* Loads a plan and believes nothing of it: seals, sizes, every offset, list, slot, side and the pairing of barriers. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "exec.h"

#define SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
#define KNOWN_FLAGS ((WH_F_CHROOT << 1) - 1)

enum { H = WH_SIDE_H, C = WH_SIDE_C, M = WH_SIDE_M };
static const uint8_t sides[WH_OP_COUNT] = {
    0,
#define OP(name, sides, text) sides,
#include "ops.def"
#undef OP
};

struct shape {
    uint16_t op;
    uint8_t string, number; /* offsets in struct wh_record */
    uint8_t size;           /* 0: a list, else bytes of an element */
};
static const struct shape shapes[] = {
#define AT(field) offsetof(struct wh_record, field)
#define LIST(op, s, n) {WH_OP_##op, AT(s), AT(n), 0},
#define BLOB(op, s, n, bytes) {WH_OP_##op, AT(s), AT(n), bytes},
#define SLOT(op, n) {WH_OP_##op, 0, AT(n), 1},
#include "shapes.def"
#undef LIST
#undef BLOB
#undef SLOT
};

static int bad(const char **why, const char *text) {
    *why = text;
    errno = EINVAL;
    return -1;
}

static uint64_t number_of(const struct wh_record *r, uint8_t offset) {
    uint64_t n;
    memcpy(&n, (const char *)r + offset, sizeof n);
    return n;
}

static int list_fits(const struct wh_plan *plan, uint64_t offset, uint64_t count) {
    const char *at = plan->arena + offset, *end = plan->arena + plan->head->arena;
    for (; count; count--) {
        const char *nul = at < end ? memchr(at, 0, (size_t)(end - at)) : NULL;
        if (!nul) return 0;
        at = nul + 1;
    }
    return 1;
}

static int shape_fits(const struct wh_plan *plan, const struct wh_record *r, const struct shape *shape) {
    uint64_t count = number_of(r, shape->number);
    uint32_t offset, arena = plan->head->arena;
    if (!shape->string) return count < plan->head->slots; /* SLOT: no record has a string at offset 0 */
    memcpy(&offset, (const char *)r + shape->string, sizeof offset);
    if (count > arena) return 0;
    if (shape->size) return offset + count * shape->size <= arena;
    return list_fits(plan, offset, count);
}

static int one_side(uint16_t side) { return side == H || side == C || side == M; }

static int check_record(const struct wh_plan *plan, const struct wh_record *r, const char **why) {
    const struct wh_header *head = plan->head;
    if (!r->op || r->op >= WH_OP_COUNT) return bad(why, "plan: unknown operation");
    if (!one_side(r->side) || !(sides[r->op] & r->side)) return bad(why, "plan: operation on the wrong side");
    if (r->flags & ~(uint32_t)KNOWN_FLAGS || r->reserved) return bad(why, "plan: unknown flags");
    if (r->fd0 < -1 || r->fd1 < -1 || r->fd0 >= (int32_t)head->slots || r->fd1 >= (int32_t)head->slots)
        return bad(why, "plan: slot out of range");
    if (r->s0 >= head->arena || r->s1 >= head->arena || r->s2 >= head->arena)
        return bad(why, "plan: text out of range");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (shapes[i].op == r->op && !shape_fits(plan, r, &shapes[i])) return bad(why, "plan: list out of range");
    return 0;
}

/* The next barrier of a side, from record i on; head->count where there is none. */
static uint32_t next_sync(const struct wh_plan *plan, uint32_t i, uint16_t side) {
    while (i < plan->head->count && !(plan->rec[i].op == WH_OP_SYNC && plan->rec[i].side == side)) i++;
    return i;
}

static int check_barriers(const struct wh_plan *plan, const char **why) {
    uint32_t h = 0, c = 0, count = plan->head->count;
    for (;; h++, c++) {
        h = next_sync(plan, h, H);
        c = next_sync(plan, c, C);
        if (h == count || c == count) break;
        if (strcmp(wh_text(plan, plan->rec[h].s0), wh_text(plan, plan->rec[c].s0)))
            return bad(why, "plan: barriers do not match");
    }
    return h == c ? 0 : bad(why, "plan: a barrier of one side only");
}

/* Exactly one CLONE, REBORN on both sides; EXEC ends the child's records; no barrier of the host before the clone. */
static int check_order(const struct wh_plan *plan, const char **why) {
    uint32_t clones = 0, execs = 0, reborn[2] = {0, 0};
    for (uint32_t i = 0; i < plan->head->count; i++) {
        const struct wh_record *r = &plan->rec[i];
        if (r->op == WH_OP_CLONE && clones++) return bad(why, "plan: two clones");
        if (r->op == WH_OP_SYNC && r->side == H && !clones) return bad(why, "plan: barrier before the clone");
        if (r->side == C && execs) return bad(why, "plan: operation after exec");
        if (r->op == WH_OP_EXEC) execs++;
        if (r->op == WH_OP_REBORN) reborn[r->side == H]++;
    }
    if (reborn[0] != reborn[1]) return bad(why, "plan: a second clone of one side only");
    if (!clones || !execs) return bad(why, "plan: no clone or no exec");
    return check_barriers(plan, why);
}

static int check_plan(const struct wh_plan *plan, const char **why) {
    const struct wh_header *head = plan->head;
    if (head->magic != WH_MAGIC || head->version != WH_VERSION) return bad(why, "plan: wrong magic or version");
    if (head->count > WH_MAX_OPS || head->slots > WH_MAX_SLOTS || head->inherited > head->slots)
        return bad(why, "plan: too large");
    if (!head->arena || plan->size != sizeof *head + head->count * sizeof *plan->rec + (uint64_t)head->arena)
        return bad(why, "plan: wrong length");
    if (plan->arena[0] || plan->arena[head->arena - 1]) return bad(why, "plan: arena without an end");
    for (uint32_t i = 0; i < head->count; i++)
        if (check_record(plan, &plan->rec[i], why) < 0) return -1;
    return check_order(plan, why);
}

int wh_plan_load(int fd, struct wh_plan *plan, const char **why) {
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) return bad(why, "plan: not a sealed memfd");
    if (fstat(fd, &st) < 0 || st.st_size < (off_t)sizeof *plan->head || st.st_size > 1 << 26)
        return bad(why, "plan: wrong length");
    char *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) return bad(why, "plan: cannot be mapped");
    plan->head = (const struct wh_header *)map;
    plan->rec = (const struct wh_record *)(map + sizeof *plan->head);
    plan->size = (size_t)st.st_size;
    if (plan->head->count > WH_MAX_OPS) return bad(why, "plan: too large");
    plan->arena = (const char *)(plan->rec + plan->head->count);
    if (sizeof *plan->head + plan->head->count * sizeof *plan->rec >= plan->size) return bad(why, "plan: wrong length");
    return check_plan(plan, why);
}

int wh_vector(const struct wh_plan *plan, uint32_t offset, uint64_t count, const char **out, size_t room) {
    const char *at = wh_text(plan, offset);
    if (count >= room) {
        errno = E2BIG;
        return -1;
    }
    for (uint64_t i = 0; i < count; i++, at += strlen(at) + 1) out[i] = at;
    out[count] = NULL;
    return 0;
}
