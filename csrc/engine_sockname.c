/* getsockname(2) taken at its word: ipfw fwd, OpenBSD's divert-to, Linux AnyIP routes.
 *
 * These deliver a connection without a sign on the socket that would tell it from a direct one, so
 * this engine answers only where the user names it.
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
    LC_CAN_LOOKUP | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4 | LC_CAN_V6 | LC_NAMED_ONLY,
    probe, allow, lookup,
};
