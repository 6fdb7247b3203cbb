/* TPROXY, Linux 2.6.28 and newer (IPv6: 2.6.37): IP_TRANSPARENT, ip(7).
 *
 * The option lets a socket bind to, and take connections for, any address. A connection that the
 * firewall's TPROXY target delivered has its original destination as the local address, and the
 * accepted socket inherits the option from its listener.
 *
 * SOL_IP/IP_TRANSPARENT works on AF_INET6 sockets too and is the same bit, so one option serves
 * both families and dual-stack sockets. Setting it needs CAP_NET_ADMIN or CAP_NET_RAW in the user
 * namespace that owns the network namespace; reading it needs nothing.
 */
#include "engine.h"

#if defined(__linux__) && defined(IP_TRANSPARENT)
#include <unistd.h>

int lc_is_transparent(int fd)
{
    int on = 0;
    socklen_t len = sizeof on;

    if (getsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, &len) < 0)
        return 0;
    return on != 0;
}

static int probe(void)
{
    int on, err = 0;
    socklen_t len = sizeof on;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (getsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, &len) < 0)
        err = -errno;
    close(fd);
    return err;
}

static int allow(int fd, int family)
{
    int on = 1;

    (void)family;
    return setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, sizeof on) < 0 ? -errno : 0;
}

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    if (!lc_is_transparent(conn->fd))
        return -ENOENT;
    *original = conn->local;
    return 0;
}

#else

int lc_is_transparent(int fd)
{
    (void)fd;
    return 0;
}

static int probe(void)
{
    return -ENOTSUP;
}

static int allow(int fd, int family)
{
    (void)fd, (void)family;
    return -ENOTSUP;
}

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    (void)conn, (void)original;
    return -ENOTSUP;
}
#endif

const struct lc_engine lc_tproxy4 = {
    "tproxy4",
    LC_CAN_LOOKUP | LC_CAN_LISTEN | LC_CAN_SPOOF | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4 | LC_CAN_V6,
    probe, allow, lookup,
};
