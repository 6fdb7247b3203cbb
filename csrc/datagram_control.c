/* The control messages of datagrams: where one was going, and from which of this machine's addresses
 * one shall leave.
 *
 *            address and port                    address         port
 *   Linux    IP_ORIGDSTADDR, IPV6_ORIGDSTADDR                                    ip(7), ipv6(7)
 *   FreeBSD  IP_ORIGDSTADDR, IPV6_ORIGDSTADDR                                    ip(4), ip6(4)
 *   OpenBSD                                      IP_RECVDSTADDR  IP_RECVDSTPORT
 *                                                IPV6_PKTINFO    IPV6_RECVDSTPORT  ip(4), ip6(4)
 *   NetBSD, macOS                                IP_RECVDSTADDR  none: the listener's
 *                                                IPV6_PKTINFO                    ip(4), ip6(4)
 */
#include "datagram.h"

#include <stdlib.h>

enum { SOCKADDR = 1, ADDRESS, PACKET, PORT };

/* So that one code serves all systems and is tested for all, here are the numbers of each; below,
 * those of this system are held against its headers. */
struct message {
    const char *system;
    int level, type, tells;
};

static const struct message messages[] = {
    {"linux", IPPROTO_IP, 20, SOCKADDR},    {"linux", IPPROTO_IPV6, 74, SOCKADDR},
    {"freebsd", IPPROTO_IP, 27, SOCKADDR},  {"freebsd", IPPROTO_IPV6, 72, SOCKADDR},
    {"openbsd", IPPROTO_IP, 7, ADDRESS},    {"openbsd", IPPROTO_IP, 33, PORT},
    {"openbsd", IPPROTO_IPV6, 46, PACKET},  {"openbsd", IPPROTO_IPV6, 64, PORT},
    {"netbsd", IPPROTO_IP, 7, ADDRESS},     {"netbsd", IPPROTO_IPV6, 46, PACKET},
    {"macos", IPPROTO_IP, 7, ADDRESS},      {"macos", IPPROTO_IPV6, 46, PACKET},
};

#if defined(__linux__)
_Static_assert(IP_ORIGDSTADDR == 20 && IPV6_ORIGDSTADDR == 74, "as in the table");
#elif defined(__FreeBSD__)
_Static_assert(IP_ORIGDSTADDR == 27 && IPV6_ORIGDSTADDR == 72, "as in the table");
#else
_Static_assert(IP_RECVDSTADDR == 7 && IPV6_PKTINFO == 46, "as in the table");
#ifdef __OpenBSD__
_Static_assert(IP_RECVDSTPORT == 33 && IPV6_RECVDSTPORT == 64, "as in the table");
#endif
#endif

static int set(int fd, int level, int option)
{
    int on = 1;

    return setsockopt(fd, level, option, &on, sizeof on) < 0 ? -errno : 0;
}

/* On Linux a dual-stack socket needs both options. On FreeBSD they are one bit of the socket, which
 * its own family's option sets and the other's refuses. */
int lc_ask_original(int fd, int family, int dualstack)
{
    int err = 0;

#if defined(IP_RECVORIGDSTADDR) && defined(IPV6_RECVORIGDSTADDR)
    if (family == AF_INET6)
        err = set(fd, IPPROTO_IPV6, IPV6_RECVORIGDSTADDR);
#ifndef __linux__
    dualstack = 0;
#endif
    if (err == 0 && (family == AF_INET || dualstack))
        err = set(fd, IPPROTO_IP, IP_RECVORIGDSTADDR);
#else
    (void)dualstack;
    err = family == AF_INET6 ? set(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO)
                             : set(fd, IPPROTO_IP, IP_RECVDSTADDR);
#ifdef __OpenBSD__
    if (err == 0)
        err = family == AF_INET6 ? set(fd, IPPROTO_IPV6, IPV6_RECVDSTPORT)
                                 : set(fd, IPPROTO_IP, IP_RECVDSTPORT);
#endif
#endif
    return err;
}

int lc_tell_original(int fd)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    int only = 1;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    len = sizeof only;
    if (ss.ss_family == AF_INET6)
        (void)getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, &len);
    return lc_ask_original(fd, ss.ss_family, !only);
}

int lc_tells_original(int fd)
{
    int v4 = 0, v6 = 0;
    socklen_t len = sizeof v4;

#if defined(IP_RECVORIGDSTADDR) && defined(IPV6_RECVORIGDSTADDR)
    (void)getsockopt(fd, IPPROTO_IP, IP_RECVORIGDSTADDR, &v4, &len);
    len = sizeof v6;
    (void)getsockopt(fd, IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, &v6, &len);
#else
    (void)getsockopt(fd, IPPROTO_IP, IP_RECVDSTADDR, &v4, &len);
    len = sizeof v6;
    (void)getsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &v6, &len);
#endif
    return v4 != 0 || v6 != 0;
}

static int tells(const char *system, const struct cmsghdr *c)
{
    size_t i;

    for (i = 0; i < sizeof messages / sizeof messages[0]; i++)
        if (c->cmsg_level == messages[i].level && c->cmsg_type == messages[i].type
            && strcmp(system, messages[i].system) == 0)
            return messages[i].tells;
    return 0;
}

static int link_local(const uint8_t *ip)
{
    return ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

/* One message of `size` bytes; a port may come before its address or behind it. */
static void read_one(int tells, const void *data, size_t size, struct lc_addr *out)
{
    uint16_t port = out->port;

    if (tells == SOCKADDR && size <= sizeof(struct sockaddr_storage)) {
        struct sockaddr_storage ss;

        memset(&ss, 0, sizeof ss);
        memcpy(&ss, data, size);
        (void)lc_from_sockaddr(&ss, (socklen_t)size, out);
    } else if (tells == ADDRESS && size >= sizeof(struct in_addr)) {
        memset(out, 0, sizeof *out);
        out->family = 4;
        out->port = port;
        memcpy(out->ip, data, sizeof(struct in_addr));
    } else if (tells == PACKET && size >= sizeof(struct in6_pktinfo)) {
        struct in6_pktinfo info;
        struct sockaddr_in6 sin6;
        struct sockaddr_storage ss;

        memcpy(&info, data, sizeof info);
        memset(&sin6, 0, sizeof sin6);
        sin6.sin6_family = AF_INET6;
        sin6.sin6_addr = info.ipi6_addr;
        if (link_local((const uint8_t *)&info.ipi6_addr))
            sin6.sin6_scope_id = (uint32_t)info.ipi6_ifindex;
        memset(&ss, 0, sizeof ss);
        memcpy(&ss, &sin6, sizeof sin6);
        (void)lc_from_sockaddr(&ss, sizeof sin6, out);
        out->port = port;
    } else if (tells == PORT && size >= sizeof port) {
        memcpy(&port, data, sizeof port);
        out->port = ntohs(port);
    }
}

void lc_get_original(struct msghdr *msg, struct lc_addr *original)
{
    const char *system = lc_system(), *end;
    struct cmsghdr *c;

    memset(original, 0, sizeof *original);
    if (msg->msg_controllen == 0)
        return;
    end = (const char *)msg->msg_control + msg->msg_controllen;
    for (c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        const char *data = (const char *)CMSG_DATA(c);
        size_t len = (size_t)c->cmsg_len;

        /* What does not fit is no message; CMSG_NXTHDR leaves that of the first one unchecked. */
        if (len < CMSG_LEN(0) || len > (size_t)(end - (const char *)c))
            return;
        read_one(tells(system, c), data, len - CMSG_LEN(0), original);
    }
}

void lc_complete_original(int fd, struct lc_addr *original)
{
    struct lc_addr here;

    if (original->family == 0)
        original->port = 0;     /* a port alone is nothing */
    else if (original->port == 0 && lc_local(fd, &here) == 0)
        original->port = here.port;
}

static void put(struct msghdr *msg, int level, int type, const void *data, size_t size)
{
    struct cmsghdr *c = msg->msg_control;

    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(c), data, size);
    msg->msg_controllen = CMSG_SPACE(size);
}

/* ip(7), ipv6(7), FreeBSD's ip(4). Where a system has no such message the route decides. */
void lc_put_source(struct msghdr *msg, int family, const struct lc_addr *from)
{
    struct sockaddr_storage ss;

    if (lc_to_sockaddr(from, family, &ss) > 0 && family == AF_INET6) {
        struct in6_pktinfo info = {.ipi6_addr = ((struct sockaddr_in6 *)(void *)&ss)->sin6_addr,
                                   .ipi6_ifindex = from->scope};
        put(msg, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
        return;
    }
#if defined(__linux__)
    if (from->family == 4) {
        struct in_pktinfo info = {.ipi_spec_dst = ((struct sockaddr_in *)(void *)&ss)->sin_addr};
        put(msg, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
        return;
    }
#elif defined(IP_SENDSRCADDR)
    if (from->family == 4) {
        put(msg, IPPROTO_IP, IP_SENDSRCADDR, &((struct sockaddr_in *)(void *)&ss)->sin_addr,
            sizeof(struct in_addr));
        return;
    }
#endif
    msg->msg_controllen = 0;
}

int lc_read_control(const void *bytes, size_t size, struct lc_addr *original)
{
    /* As long as it is told to be, so that a sanitizer sees one byte too many. */
    struct msghdr msg;
    void *control = malloc(size == 0 ? 1 : size);

    if (control == NULL)
        return -ENOMEM;
    memcpy(control, bytes, size);
    memset(&msg, 0, sizeof msg);
    msg.msg_control = control;
    msg.msg_controllen = size;
    lc_get_original(&msg, original);
    free(control);
    return original->family != 0;
}
