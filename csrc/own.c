/* Is an address one of this machine's?
 *
 * Linux: the kernel's own routing decision for a packet to that address, without a firewall mark
 * (RTM_GETROUTE; rtnetlink(7)): a route of type "local" means it would be delivered here. Neither
 * net.ipv4.ip_nonlocal_bind nor the marked TPROXY table changes that answer, as they would change a
 * trial bind(). An AnyIP route (`ip route add local NET dev lo`) makes a whole network this
 * machine's, which is what it says. No privilege is needed. The namespace is the calling thread's.
 *
 * Elsewhere: the addresses of the interfaces, getifaddrs(3).
 */
#include "engine.h"

static int loopback(const struct lc_addr *a)
{
    static const uint8_t one6[16] = {[15] = 1};

    return a->family == 4 ? a->ip[0] == 127 : memcmp(a->ip, one6, 16) == 0;
}

#ifdef __linux__
#include <unistd.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

struct question {
    struct nlmsghdr head;
    struct rtmsg route;
    uint8_t attributes[RTA_SPACE(16) + RTA_SPACE(4)];
};

static void put(struct question *q, unsigned short type, const void *data, unsigned short size)
{
    struct rtattr *a = (struct rtattr *)(void *)((uint8_t *)q + NLMSG_ALIGN(q->head.nlmsg_len));

    a->rta_type = type;
    a->rta_len = RTA_LENGTH(size);
    memcpy(RTA_DATA(a), data, size);
    q->head.nlmsg_len = NLMSG_ALIGN(q->head.nlmsg_len) + RTA_SPACE(size);
}

static int route_type(int s, const struct lc_addr *a)
{
    struct question q;
    union {
        struct nlmsghdr head;
        uint8_t bytes[4096];
    } answer;
    unsigned short size = a->family == 4 ? 4 : 16;
    ssize_t n;

    memset(&q, 0, sizeof q);
    q.head.nlmsg_len = NLMSG_LENGTH(sizeof q.route);
    q.head.nlmsg_type = RTM_GETROUTE;
    q.head.nlmsg_flags = NLM_F_REQUEST;
    q.head.nlmsg_seq = 1;
    q.route.rtm_family = a->family == 4 ? AF_INET : AF_INET6;
    q.route.rtm_dst_len = (unsigned char)(size * 8);
    put(&q, RTA_DST, a->ip, size);
    if (a->scope != 0)
        put(&q, RTA_OIF, &a->scope, sizeof a->scope);
    if (send(s, &q, q.head.nlmsg_len, 0) < 0)
        return -errno;
    do
        n = recv(s, &answer, sizeof answer, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    if ((size_t)n >= NLMSG_LENGTH(sizeof(struct rtmsg)) && answer.head.nlmsg_type == RTM_NEWROUTE)
        return ((struct rtmsg *)NLMSG_DATA(&answer.head))->rtm_type;
    if ((size_t)n >= NLMSG_LENGTH(sizeof(struct nlmsgerr)) && answer.head.nlmsg_type == NLMSG_ERROR)
        return ((struct nlmsgerr *)NLMSG_DATA(&answer.head))->error;
    return -EPROTO;
}

int lc_own(const struct lc_addr *a)
{
    int s, type;

    if (a->family != 4 && a->family != 6)
        return -EAFNOSUPPORT;
    if (loopback(a))
        return 1;
    s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (s < 0)
        return -errno;
    type = route_type(s, a);
    close(s);
    /* No route, prohibited, blackholed: nothing that is delivered here. */
    if (type == -ENETUNREACH || type == -EHOSTUNREACH || type == -EACCES || type == -EINVAL)
        return 0;
    return type < 0 ? type : type == RTN_LOCAL;
}

#else
#include <ifaddrs.h>

int lc_own(const struct lc_addr *a)
{
    struct ifaddrs *list, *i;
    struct lc_addr one;
    int found = 0;

    if (a->family != 4 && a->family != 6)
        return -EAFNOSUPPORT;
    if (loopback(a))
        return 1;
    if (getifaddrs(&list) < 0)
        return -errno;
    for (i = list; i != NULL && !found; i = i->ifa_next) {
        struct sockaddr_storage ss;
        socklen_t len;

        if (i->ifa_addr == NULL)
            continue;
        len = i->ifa_addr->sa_family == AF_INET ? sizeof(struct sockaddr_in)
            : i->ifa_addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : 0;
        if (len == 0)
            continue;
        memcpy(&ss, i->ifa_addr, len);
        if (lc_from_sockaddr(&ss, len, &one) < 0 || one.family != a->family)
            continue;
        /* Some KAME stacks keep the interface of a link-local address in its second 16 bits. */
        if (one.family == 6 && one.ip[0] == 0xfe && (one.ip[1] & 0xc0) == 0x80) {
            if (one.scope == 0)
                one.scope = (uint32_t)one.ip[2] << 8 | one.ip[3];
            one.ip[2] = one.ip[3] = 0;
            if (a->scope != 0 && one.scope != a->scope)
                continue;
        }
        found = memcmp(one.ip, a->ip, a->family == 4 ? 4 : 16) == 0;
    }
    freeifaddrs(list);
    return found;
}
#endif
