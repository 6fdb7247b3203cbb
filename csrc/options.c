/* Socket options by what they mean; -ENOTSUP where the system has no such option. */
#include "engine.h"

#include <netinet/ip.h>

static int set_int(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

static int get_int(int fd, int level, int option)
{
    int value = 0;
    socklen_t len = sizeof value;

    return getsockopt(fd, level, option, &value, &len) < 0 ? -errno : value;
}

static int family_of(int fd)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    return getsockname(fd, (struct sockaddr *)&ss, &len) < 0 ? -errno : ss.ss_family;
}

/* A Linux AF_INET6 socket has both: IP_TOS goes into v4-mapped packets. */
int lc_set_tos(int fd, int tos)
{
    int family = family_of(fd), err;

    if (family < 0)
        return family;
    if (family != AF_INET6)
        return set_int(fd, IPPROTO_IP, IP_TOS, tos);
    err = set_int(fd, IPPROTO_IPV6, IPV6_TCLASS, tos);
#ifdef __linux__
    if (err == 0)
        err = set_int(fd, IPPROTO_IP, IP_TOS, tos);
#endif
    return err;
}

int lc_get_tos(int fd)
{
    int family = family_of(fd);

    if (family < 0)
        return family;
    return family == AF_INET6 ? get_int(fd, IPPROTO_IPV6, IPV6_TCLASS)
                              : get_int(fd, IPPROTO_IP, IP_TOS);
}

/* Of an accepted socket: its listener's, or with tcp_fwmark_accept that of the client's packet. */
uint32_t lc_mark_of(int fd)
{
    uint32_t mark = 0;
#ifdef SO_MARK
    socklen_t len = sizeof mark;

    if (getsockopt(fd, SOL_SOCKET, SO_MARK, &mark, &len) < 0)
        return 0;
#else
    (void)fd;
#endif
    return mark;
}

int lc_set_nodelay(int fd)
{
    return set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

int lc_set_keepalive(int fd, int idle, int interval, int count)
{
    int err = 0;

#if defined(TCP_KEEPIDLE)
    if (idle > 0)
        err = set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle);
#elif defined(TCP_KEEPALIVE)    /* macOS */
    if (idle > 0)
        err = set_int(fd, IPPROTO_TCP, TCP_KEEPALIVE, idle);
#else
    if (idle > 0)
        err = -ENOTSUP;
#endif
#if defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT)
    if (err == 0 && interval > 0)
        err = set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval);
    if (err == 0 && count > 0)
        err = set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, count);
#else
    if (err == 0 && (interval > 0 || count > 0))
        err = -ENOTSUP;
#endif
    return err < 0 ? err : set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

int lc_set_buffers(int fd, int bytes)
{
    int err = set_int(fd, SOL_SOCKET, SO_RCVBUF, bytes);

    return err < 0 ? err : set_int(fd, SOL_SOCKET, SO_SNDBUF, bytes);
}

/* Packets leave without the don't-fragment bit. */
int lc_set_no_pmtu_discover(int fd)
{
    int family = family_of(fd);

    if (family < 0)
        return family;
#if defined(IP_MTU_DISCOVER) && defined(IP_PMTUDISC_DONT)
    if (family == AF_INET6) {
        int err = set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT);
        if (err < 0)
            return err;
    }
    return set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT);
#elif defined(IP_DONTFRAG)
    return family == AF_INET ? set_int(fd, IPPROTO_IP, IP_DONTFRAG, 0) : -ENOTSUP;
#else
    return -ENOTSUP;
#endif
}

int lc_set_priority(int fd, int priority)
{
#ifdef SO_PRIORITY
    return set_int(fd, SOL_SOCKET, SO_PRIORITY, priority);
#else
    (void)fd, (void)priority;
    return -ENOTSUP;
#endif
}
