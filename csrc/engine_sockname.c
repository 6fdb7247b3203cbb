/* getsockname(2) taken at its word: ipfw(8) fwd, OpenBSD's divert-to of pf.conf(5), Linux AnyIP
 * routes.
 *
 * These deliver a connection without an option on the socket that would tell it from a direct one.
 * On BSD a local address that is not this machine's can have come by nothing else, so there this
 * engine answers for such connections unasked (engines.c). For an address of this machine (a `fwd`
 * to another port of it), and on Linux always, it answers only where the user names it.
 *
 * A datagram's local address is that of its control message: IP_RECVORIGDSTADDR and
 * IPV6_ORIGDSTADDR on FreeBSD.
 */
#include "engine.h"

static int probe(void)
{
    return 0;
}

static int allow(int fd, int family)
{
    (void)fd, (void)family;
    return -ENOTSUP;
}

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    *original = conn->local;
    return 0;
}

const struct lc_engine lc_sockname = {
    "sockname",
    LC_CAN_LOOKUP | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4 | LC_CAN_V6
#ifdef __linux__
        | LC_NAMED_ONLY
#endif
    ,
    probe, allow, lookup,
};
