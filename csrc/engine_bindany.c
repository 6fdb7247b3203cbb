/* Binding to any address on BSD, ip(4), ip6(4), getsockopt(2):
 *
 *   FreeBSD   IP_BINDANY, IPV6_BINDANY     the privilege PRIV_NETINET_BINDANY: root, outside of a
 *   NetBSD    IP_BINDANY, IPV6_BINDANY     jail or in one with a network stack of its own
 *   OpenBSD   SO_BINDANY at SOL_SOCKET     root
 *
 * The option is the socket's, by its own family: an IPv4 address on an AF_INET6 socket needs
 * IPV6_BINDANY, and the other level's option is EINVAL there. Set as root it stays over setuid(2).
 * Without it bind(2) says EADDRNOTAVAIL; it may be set after that.
 *
 * The numbers are other options elsewhere (24 is IP_BIND_ADDRESS_NO_PORT on Linux and IP_MINTTL on
 * NetBSD, 27 IP_ORIGDSTADDR on FreeBSD, 64 IPV6_RECVDSTPORT on OpenBSD), so they come from the
 * system's header and from nowhere else. macOS and DragonFly have none.
 */
#include "engine.h"

#if defined(SO_BINDANY)
#define LEVEL(family) ((void)(family), SOL_SOCKET)
#define OPTION(family) ((void)(family), SO_BINDANY)
#elif defined(IP_BINDANY) && defined(IPV6_BINDANY)
#define LEVEL(family) ((family) == AF_INET6 ? IPPROTO_IPV6 : IPPROTO_IP)
#define OPTION(family) ((family) == AF_INET6 ? IPV6_BINDANY : IP_BINDANY)
#endif

#ifdef OPTION
/* Setting it needs the privilege, so there is nothing to ask of the kernel: the header is the
 * system's. */
static int probe(void)
{
    return 0;
}

static int allow(int fd, int family)
{
    int on = 1;

    return setsockopt(fd, LEVEL(family), OPTION(family), &on, sizeof on) < 0 ? -errno : 0;
}

#else

static int probe(void)
{
    return -ENOTSUP;
}

static int allow(int fd, int family)
{
    (void)fd, (void)family;
    return -ENOTSUP;
}
#endif

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    (void)conn, (void)original;
    return -ENOTSUP;
}

const struct lc_engine lc_bindany = {
    "bindany",
    LC_CAN_LISTEN | LC_CAN_SPOOF | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4 | LC_CAN_V6,
    probe, allow, lookup,
};
