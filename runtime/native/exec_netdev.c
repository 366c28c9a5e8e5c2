/* A link of the host becomes the container's (rtnetlink(7)): moved and renamed in one request, so that no name is taken in
 * between; its permanent global addresses, which the kernel drops on the way, given back; then up. */
#define _GNU_SOURCE
#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <sys/socket.h>

#include "exec_int.h"

#define MAX_INDEX_TRIES 4096

struct request {
    struct nlmsghdr head;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg addr;
    } body;
    char attrs[256]; /* room for more than is ever attached: a name, three addresses, three numbers */
};

static struct {
    size_t used;
    char at[1 << 14];
} addresses; /* RTM_NEWADDR messages as they came, those to be given back */

static char answer[1 << 15] __attribute__((aligned(8)));

static void begin(struct request *q, uint16_t type, uint16_t flags, size_t body) {
    memset(q, 0, sizeof *q);
    q->head.nlmsg_type = type;
    q->head.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    q->head.nlmsg_len = (uint32_t)NLMSG_LENGTH(body);
}

static void attach(struct request *q, uint16_t type, const void *data, size_t n) {
    struct rtattr *a = (struct rtattr *)(void *)((char *)q + NLMSG_ALIGN(q->head.nlmsg_len));
    a->rta_type = type;
    a->rta_len = (uint16_t)RTA_LENGTH(n);
    memcpy(RTA_DATA(a), data, n);
    q->head.nlmsg_len = (uint32_t)(NLMSG_ALIGN(q->head.nlmsg_len) + RTA_SPACE(n));
}

static void attach_text(struct request *q, uint16_t type, const char *text) { attach(q, type, text, strlen(text) + 1); }

static ssize_t receive(int sock) {
    ssize_t n;
    do n = recv(sock, answer, sizeof answer, 0);
    while (n < 0 && errno == EINTR);
    return n;
}

/* Sends and reads what comes first: an acknowledgement (0 or its errno), or a message left in `answer`. */
static int ask(int sock, const struct request *q) {
    if (send(sock, q, q->head.nlmsg_len, 0) < 0) return -1;
    ssize_t n = receive(sock);
    if (n < (ssize_t)sizeof(struct nlmsghdr)) return n < 0 ? -1 : fail(EPROTO);
    const struct nlmsghdr *h = (const struct nlmsghdr *)(const void *)answer;
    if (h->nlmsg_type != NLMSG_ERROR) return 0;
    int err = ((const struct nlmsgerr *)NLMSG_DATA(h))->error;
    return err ? fail(-err) : 0;
}

static int index_of(int sock, const char *name) {
    struct request q;
    begin(&q, RTM_GETLINK, 0, sizeof q.body.link);
    attach_text(&q, IFLA_IFNAME, name);
    if (ask(sock, &q) < 0) return -1;
    const struct nlmsghdr *h = (const struct nlmsghdr *)(const void *)answer;
    if (h->nlmsg_type != RTM_NEWLINK) return fail(EPROTO);
    return ((const struct ifinfomsg *)NLMSG_DATA(h))->ifi_index;
}

/* ---- addresses ---- */

static uint32_t flags_of(const struct nlmsghdr *h) {
    const struct ifaddrmsg *a = NLMSG_DATA(h);
    int rest = (int)(h->nlmsg_len - NLMSG_LENGTH(sizeof *a));
    for (struct rtattr *t = IFA_RTA(a); RTA_OK(t, rest); t = RTA_NEXT(t, rest))
        if (t->rta_type == IFA_FLAGS) return *(const uint32_t *)RTA_DATA(t);
    return a->ifa_flags;
}

/* What runtime-spec wants kept: permanent, global scope. */
static int keep(const struct nlmsghdr *h, int index) {
    const struct ifaddrmsg *a = NLMSG_DATA(h);
    if ((int)a->ifa_index != index || a->ifa_scope != RT_SCOPE_UNIVERSE || !(flags_of(h) & IFA_F_PERMANENT)) return 0;
    if (addresses.used + NLMSG_ALIGN(h->nlmsg_len) > sizeof addresses.at) return fail(ENOBUFS);
    memcpy(addresses.at + addresses.used, h, h->nlmsg_len);
    addresses.used += NLMSG_ALIGN(h->nlmsg_len);
    return 0;
}

/* One datagram of a dump. 1: it was the last. */
static int keep_all(ssize_t n, int index) {
    int rest = (int)n;
    for (const struct nlmsghdr *h = (const void *)answer; NLMSG_OK(h, rest); h = NLMSG_NEXT(h, rest)) {
        if (h->nlmsg_type == NLMSG_DONE) return 1;
        if (h->nlmsg_type == NLMSG_ERROR) return fail(-((const struct nlmsgerr *)NLMSG_DATA(h))->error);
        if (h->nlmsg_type == RTM_NEWADDR && keep(h, index) < 0) return -1;
    }
    return 0;
}

static int gather(int sock, int index) {
    struct request q;
    int done = 0;
    addresses.used = 0;
    begin(&q, RTM_GETADDR, NLM_F_DUMP, sizeof q.body.addr);
    if (send(sock, &q, q.head.nlmsg_len, 0) < 0) return -1;
    while (!done) {
        ssize_t n = receive(sock);
        if (n <= 0) return n < 0 ? -1 : fail(EPROTO);
        if ((done = keep_all(n, index)) < 0) return -1;
    }
    return 0;
}

static int give_back(int sock, int index) {
    int rest = (int)addresses.used;
    for (const struct nlmsghdr *h = (const void *)addresses.at; NLMSG_OK(h, rest); h = NLMSG_NEXT(h, rest)) {
        struct request q;
        const struct ifaddrmsg *a = NLMSG_DATA(h);
        int left = (int)(h->nlmsg_len - NLMSG_LENGTH(sizeof *a));
        begin(&q, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, sizeof *a);
        q.body.addr = *a;
        q.body.addr.ifa_index = (uint32_t)index;
        for (struct rtattr *t = IFA_RTA(a); RTA_OK(t, left); t = RTA_NEXT(t, left))
            if (t->rta_type == IFA_ADDRESS || t->rta_type == IFA_LOCAL || t->rta_type == IFA_BROADCAST)
                attach(&q, t->rta_type, RTA_DATA(t), RTA_PAYLOAD(t));
        uint32_t flags = flags_of(h) & (IFA_F_NODAD | IFA_F_NOPREFIXROUTE);
        attach(&q, IFA_FLAGS, &flags, sizeof flags);
        if (ask(sock, &q) < 0) return -1;
    }
    return 0;
}

/* ---- the move ---- */

/* Under an index of our choice (5.13), or a name like "eth%d" would leave us without knowing which link it became. */
static int move(int sock, int index, const char *name, int netns) {
    for (int wanted = index, tries = 0; tries < MAX_INDEX_TRIES; wanted++, tries++) {
        struct request q;
        begin(&q, RTM_NEWLINK, NLM_F_ACK, sizeof q.body.link);
        q.body.link.ifi_index = index;
        attach(&q, IFLA_NET_NS_FD, &netns, sizeof netns);
        attach_text(&q, IFLA_IFNAME, name);
        attach(&q, IFLA_NEW_IFINDEX, &wanted, sizeof wanted);
        if (!ask(sock, &q)) return wanted;
        if (errno != EBUSY) return -1;
    }
    return -1;
}

static int set_up(int sock, int index) {
    struct request q;
    begin(&q, RTM_NEWLINK, NLM_F_ACK, sizeof q.body.link);
    q.body.link.ifi_index = index;
    q.body.link.ifi_flags = q.body.link.ifi_change = IFF_UP;
    return ask(sock, &q);
}

static int rtnetlink(void) { return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE); }

/* A socket belongs to the namespace in which it was made. */
static int rtnetlink_in(int netns) {
    int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (own < 0) return -1;
    int sock = setns(netns, CLONE_NEWNET) < 0 ? -1 : rtnetlink();
    if (sock >= 0 && setns(own, CLONE_NEWNET) < 0) {
        wh_close_keep(sock);
        sock = -1;
    }
    wh_close_keep(own);
    return sock;
}

static int netns_of(const struct wh_run *run) {
    char path[64];
    struct wh_buf b = wh_buf(path, sizeof path);
    wh_child_path(run, &b);
    wh_put(&b, "/ns/net");
    return open(path, O_RDONLY | O_CLOEXEC);
}

int wh_do_NET_DEVICE(struct wh_run *run, const struct wh_record *r) {
    if (run->pid <= 0) return fail(EPROTO);
    if (strlen(s0(run, r)) >= IFNAMSIZ || strlen(s1(run, r)) >= IFNAMSIZ) return fail(ENAMETOOLONG);
    int netns = netns_of(run), here = -1, there = -1, done = -1, index;
    if (netns < 0 || (here = rtnetlink()) < 0 || (there = rtnetlink_in(netns)) < 0) goto out;
    if ((index = index_of(here, s0(run, r))) < 0 || gather(here, index) < 0) goto out;
    if ((index = move(here, index, s1(run, r), netns)) < 0) goto out;
    if (give_back(there, index) < 0 || set_up(there, index) < 0) goto out;
    done = 0;
out:
    wh_close_keep(netns);
    wh_close_keep(here);
    wh_close_keep(there);
    return done;
}
