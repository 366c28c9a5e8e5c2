/* Groups of the resctrl file system (Documentation/filesystems/resctrl.rst): made, given a schema, joined. */
#define _GNU_SOURCE
#include "exec_int.h"

#define MAX_SCHEMATA 8192

int wh_do_RDT_DIR(struct wh_run *run, const struct wh_record *r) {
    int before = run->made_count;
    if (wh_do_CGROUP_DIR(run, r) < 0) return -1;
    if (run->made_count > before) run->fresh = r->fd0;
    return 0;
}

static int open_file(struct wh_run *run, const struct wh_record *r, const char *name, uint64_t flags) {
    return wh_openat2(slot(run, r->fd0), name, flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV, 0);
}

static size_t span(const char *s, const char *set) {
    size_t n = 0;
    while (s[n] && strchr(set, s[n])) n++;
    return n;
}

static int lower(char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

/* One "id=value" the same, whatever blanks and leading zeros stand before the numbers. */
static int same_domain(const char *a, const char *b) {
    for (int side = 0; side < 2; side++) {
        a += span(a, " 0"), b += span(b, " 0");
        while (*a && !strchr("=;\n ", *a) && lower(*a) == lower(*b)) a++, b++;
        a += span(a, " "), b += span(b, " ");
        if (!side && (*a++ != '=' || *b++ != '=')) return 0;
    }
    return (!*a || strchr(";\n", *a)) && (!*b || strchr(";\n", *b));
}

static const char *after(const char *s, char end) {
    while (*s && *s != end && *s != '\n') s++;
    return *s == end ? s + 1 : NULL;
}

/* The line of `file` for the resource that `line` names ("L3:"), behind its colon. */
static const char *find_line(const char *file, const char *line, size_t name) {
    for (; file; file = after(file, '\n')) {
        file += span(file, " ");
        if (!strncmp(file, line, name)) return file + name;
    }
    return NULL;
}

/* Each domain that `line` speaks of has the same value in the group's schemata. */
static int says(const char *file, const char *line) {
    const char *colon = after(line, ':');
    const char *have = colon ? find_line(file, line, (size_t)(colon - line)) : NULL;
    if (!have) return 0;
    for (const char *wanted = colon; wanted; wanted = after(wanted, ';')) {
        const char *at = have;
        while (at && !same_domain(wanted, at)) at = after(at, ';');
        if (!at) return 0;
    }
    return 1;
}

/* runtime-spec, intelRdt: a group that was there before us must already be so. */
static int compare(struct wh_run *run, const struct wh_record *r) {
    char file[MAX_SCHEMATA];
    int fd = open_file(run, r, "schemata", O_RDONLY);
    if (fd < 0) return -1;
    ssize_t n = read(fd, file, sizeof file - 1);
    wh_close_keep(fd);
    if (n < 0) return -1;
    file[n] = 0;
    if (says(file, s0(run, r))) return 0;
    wh_say(run, "the group that exists has another schema", "");
    return fail(EEXIST);
}

static int write_file(struct wh_run *run, const struct wh_record *r, const char *name, const char *a, const char *b) {
    char text[MAX_SCHEMATA];
    struct wh_buf t = wh_buf(text, sizeof text);
    wh_put(&t, a);
    wh_put(&t, b);
    if (t.used + 1 >= sizeof text) return fail(E2BIG);
    int fd = open_file(run, r, name, O_WRONLY);
    if (fd < 0) return -1;
    int done = wh_write_all(fd, text, t.used);
    wh_close_keep(fd);
    return done;
}

int wh_do_RDT_SCHEMA(struct wh_run *run, const struct wh_record *r) {
    if (run->fresh != r->fd0 && !(r->flags & WH_F_EXIST_OK)) return compare(run, r);
    return write_file(run, r, "schemata", s0(run, r), "\n");
}

int wh_do_RDT_JOIN(struct wh_run *run, const struct wh_record *r) {
    char digits[24];
    struct wh_buf d = wh_buf(digits, sizeof digits);
    if (run->pid <= 0) return fail(EPROTO);
    wh_put_u(&d, (uint64_t)run->pid);
    return write_file(run, r, "tasks", digits, "");
}
