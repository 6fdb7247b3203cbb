/* Another socket in the place of one that can't be bound again. */
#include "engine.h"

#include <fcntl.h>
#include <netinet/ip.h>
#include <unistd.h>

static int set_int(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

/* The integer options that a caller may have set since the socket was opened. */
static const struct { int level, option; } kept[] = {
    {SOL_SOCKET, SO_KEEPALIVE},
    {SOL_SOCKET, SO_OOBINLINE},
    {SOL_SOCKET, SO_RCVLOWAT},
    {SOL_SOCKET, SO_RCVBUF},
    {SOL_SOCKET, SO_SNDBUF},
    {IPPROTO_TCP, TCP_NODELAY},
    {IPPROTO_TCP, TCP_MAXSEG},
#ifdef SO_PRIORITY
    {SOL_SOCKET, SO_PRIORITY},
#endif
#ifdef SO_MARK
    {SOL_SOCKET, SO_MARK},
#endif
#ifdef TCP_KEEPIDLE
    {IPPROTO_TCP, TCP_KEEPIDLE},
    {IPPROTO_TCP, TCP_KEEPINTVL},
    {IPPROTO_TCP, TCP_KEEPCNT},
#endif
#ifdef TCP_USER_TIMEOUT
    {IPPROTO_TCP, TCP_USER_TIMEOUT},
#endif
#ifdef TCP_SYNCNT
    {IPPROTO_TCP, TCP_SYNCNT},
#endif
#ifdef TCP_NOTSENT_LOWAT
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT},
#endif
    {IPPROTO_IP, IP_TOS},
    {IPPROTO_IP, IP_TTL},
#ifdef IP_MTU_DISCOVER
    {IPPROTO_IP, IP_MTU_DISCOVER},
#endif
    {IPPROTO_IPV6, IPV6_TCLASS},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS},
#ifdef IPV6_MTU_DISCOVER
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER},
#endif
};

static int copy_options(int from, int to)
{
    struct linger linger;
    socklen_t len = sizeof linger;
    size_t i;

    for (i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        int had = 0, has = 0, err;
        socklen_t a = sizeof had, b = sizeof has;

        if (getsockopt(from, kept[i].level, kept[i].option, &had, &a) < 0
            || getsockopt(to, kept[i].level, kept[i].option, &has, &b) < 0 || had == has)
            continue;
#ifdef __linux__
        /* Linux answers with twice what was asked for: socket(7). */
        if (kept[i].level == SOL_SOCKET
            && (kept[i].option == SO_RCVBUF || kept[i].option == SO_SNDBUF))
            had /= 2;
#endif
        if ((err = set_int(to, kept[i].level, kept[i].option, had)) < 0)
            return err;
    }
    if (getsockopt(from, SOL_SOCKET, SO_LINGER, &linger, &len) < 0
        || setsockopt(to, SOL_SOCKET, SO_LINGER, &linger, len) < 0)
        return -errno;
    return 0;
}

/* After an identical-4-tuple EADDRNOTAVAIL a socket can never be bound again, so another takes its
 * place under the same number. */
int lc_reopen(int fd, const struct lc_open *request, int *step)
{
    int err, fresh = lc_open(request, step);

    if (fresh < 0)
        return fresh;
    err = copy_options(fd, fresh);
#ifdef LC_NO_SOCK_FLAGS
    if (err == 0 && (dup2(fresh, fd) < 0
                     || (!(request->flags & LC_NOCLOEXEC) && fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)))
        err = -errno;
#else
    if (err == 0 && dup3(fresh, fd, request->flags & LC_NOCLOEXEC ? 0 : O_CLOEXEC) < 0)
        err = -errno;
#endif
    close(fresh);
    return err;
}
