/* Datagrams with the addresses that recvfrom(2) and sendto(2) leave out: where one was going, and
 * from which of this machine's addresses one shall leave. */
#include "engine.h"

/* Room for the control messages of both families. */
union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(struct sockaddr_in)) + CMSG_SPACE(sizeof(struct sockaddr_in6))];
};

/* The destination that the packet came with: a sockaddr, as ip(7) and FreeBSD's ip(4) have it. */
static int is_original(const struct cmsghdr *c)
{
#ifdef IP_ORIGDSTADDR
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_ORIGDSTADDR)
        return 1;
#endif
#ifdef IPV6_ORIGDSTADDR
    if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_ORIGDSTADDR)
        return 1;
#endif
    (void)c;
    return 0;
}

int lc_recv(int fd, void *buffer, int size, struct lc_addr *peer, struct lc_addr *original)
{
    struct sockaddr_storage from, to;
    union control control;
    struct iovec iov = {.iov_base = buffer, .iov_len = (size_t)size};
    struct msghdr msg;
    struct cmsghdr *c;
    ssize_t n;

    memset(&msg, 0, sizeof msg);
    msg.msg_name = &from;
    msg.msg_namelen = sizeof from;
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = &control;
    msg.msg_controllen = sizeof control;
    do
        n = recvmsg(fd, &msg, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    (void)lc_from_sockaddr(&from, msg.msg_namelen, peer);   /* family 0: no internet address */
    original->family = 0;
    for (c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
        size_t len = (size_t)c->cmsg_len - CMSG_LEN(0);
        if (is_original(c) && len <= sizeof to) {
            memset(&to, 0, sizeof to);
            memcpy(&to, CMSG_DATA(c), len);
            (void)lc_from_sockaddr(&to, (socklen_t)len, original);
        }
    }
    return (int)n;
}

/* The control message that names the source, ip(7), ipv6(7), FreeBSD's ip(4). Where a system has none
 * the route decides. */
static void put_source(struct msghdr *msg, int family, const struct lc_addr *from)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(msg);
    struct sockaddr_storage ss;

    msg->msg_controllen = 0;
    if (lc_to_sockaddr(from, family, &ss) == 0)
        return;
#ifdef IPV6_PKTINFO
    if (family == AF_INET6) {
        struct in6_pktinfo info = {.ipi6_addr = ((struct sockaddr_in6 *)(void *)&ss)->sin6_addr,
                                   .ipi6_ifindex = from->scope};
        c->cmsg_level = IPPROTO_IPV6;
        c->cmsg_type = IPV6_PKTINFO;
        c->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(c), &info, sizeof info);
        msg->msg_controllen = CMSG_SPACE(sizeof info);
    }
#endif
#if defined(__linux__)
    if (family == AF_INET) {
        struct in_pktinfo info = {.ipi_spec_dst = ((struct sockaddr_in *)(void *)&ss)->sin_addr};
        c->cmsg_level = IPPROTO_IP;
        c->cmsg_type = IP_PKTINFO;
        c->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(c), &info, sizeof info);
        msg->msg_controllen = CMSG_SPACE(sizeof info);
    }
#elif defined(IP_SENDSRCADDR)
    if (family == AF_INET) {
        struct in_addr source = ((struct sockaddr_in *)(void *)&ss)->sin_addr;
        c->cmsg_level = IPPROTO_IP;
        c->cmsg_type = IP_SENDSRCADDR;
        c->cmsg_len = CMSG_LEN(sizeof source);
        memcpy(CMSG_DATA(c), &source, sizeof source);
        msg->msg_controllen = CMSG_SPACE(sizeof source);
    }
#endif
}

int lc_send(int fd, const void *data, int size, const struct lc_addr *to,
            const struct lc_addr *from)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    union control control;
    /* sendmsg(2) does not write to it. */
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = (size_t)size};
    struct msghdr msg;
    ssize_t n;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    memset(&msg, 0, sizeof msg);
    memset(&control, 0, sizeof control);
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    if (from != NULL && from->family != 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control;
        put_source(&msg, ss.ss_family, from);
    }
    msg.msg_namelen = lc_to_sockaddr(to, ss.ss_family, &ss);
    if (msg.msg_namelen == 0)
        return -EAFNOSUPPORT;
    msg.msg_name = &ss;
    do
        n = sendmsg(fd, &msg, 0);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int)n;
}
