/* The last row: refuses everything. LUSCA_COMM_ENGINE=null switches interception off. */
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
    (void)conn, (void)original;
    return -ENOTSUP;
}

const struct lc_engine lc_null = {
    "null",
    LC_CAN_LOOKUP | LC_CAN_LISTEN | LC_CAN_SPOOF | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4 | LC_CAN_V6
        | LC_NAMED_ONLY,
    probe, allow, lookup,
};
