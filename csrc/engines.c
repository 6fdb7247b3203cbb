/* The engine table, and how a connection's original destination is found out from it. */
#include "engine.h"

/* In the order in which they are asked. */
static const struct lc_engine *const table[] = {
    &lc_tproxy4, &lc_tproxy2, &lc_bindany, &lc_netfilter, &lc_pf, &lc_ipfilter, &lc_sockname,
    &lc_null,
};

enum { ROWS = sizeof table / sizeof table[0] };

int lc_engine_count(void)
{
    return ROWS;
}

int lc_engine_row(const struct lc_engine *engine)
{
    int i;

    for (i = 0; i < ROWS; i++)
        if (table[i] == engine)
            return i;
    return -1;
}

const struct lc_engine *lc_engine_at(int row)
{
    return row < 0 || row >= ROWS ? NULL : table[row];
}

const char *lc_engine_name(int engine)
{
    return engine < 0 || engine >= ROWS ? NULL : table[engine]->name;
}

unsigned lc_engine_abilities(int engine)
{
    return engine < 0 || engine >= ROWS ? 0 : table[engine]->can;
}

int lc_engine_probe(int engine)
{
    return engine < 0 || engine >= ROWS ? -EINVAL : table[engine]->probe();
}

int lc_engine_open(int engine)
{
    if (lc_engine_at(engine) == &lc_ipfilter)
        return lc_ipfilter_open();
    return lc_engine_probe(engine);
}

int lc_engine_allow(int engine, int fd, int family)
{
    return engine < 0 || engine >= ROWS ? -EINVAL : table[engine]->allow(fd, family);
}

int lc_allow(int fd, int engine)
{
    struct sockaddr_storage ss;
    struct lc_addr local;
    socklen_t len = sizeof ss;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    /* On Linux the right is more than one to bind. */
    if (lc_engine_at(engine) == &lc_bindany && lc_from_sockaddr(&ss, len, &local) == 0
        && local.port != 0)
        return 0;
    return lc_engine_allow(engine, fd, ss.ss_family);
}

static int describe(int fd, struct lc_conn *conn)
{
    socklen_t len = sizeof conn->type;
    int err;

    conn->fd = fd;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &conn->type, &len) < 0)
        return -errno;
    if ((err = lc_local(fd, &conn->local)) < 0)
        return err;
    return lc_peer(fd, &conn->peer);
}

static int answered(struct lc_origin *out, int row, const struct lc_addr *original, int translated)
{
    out->engine = row;
    out->original = *original;
    out->translated = translated;
    return 0;
}

static int ask_named(const struct lc_conn *conn, int row, struct lc_origin *out)
{
    struct lc_addr original;
    int err = table[row]->lookup(conn, &original);

    if (err < 0) {
        out->nat_errno = -err;
        return err;
    }
    return answered(out, row, &original, !lc_same(&original, &conn->local));
}

/* Which engine brought a connection whose local address is not this machine's; NULL: that says
 * nothing. On Linux it is TPROXY, if the socket has the option too: a redirected connection that
 * reaches a transparent listener has the option, but its local address is the machine's own.
 * Elsewhere only ipfw's fwd and divert-to bring such a connection, and leave no other sign. */
static const struct lc_engine *bearer(const struct lc_origin *out)
{
    if (out->transparent)
        return &lc_tproxy4;
    return strcmp(lc_system(), "linux") == 0 ? NULL : &lc_sockname;
}

/* "I know nothing of this connection", or "I am not there at all", but not "I can't tell". */
static int is_no_answer(int err)
{
    return err == -ENOENT || err == -ENOTSUP || err == -ENOPROTOOPT || err == -ENXIO;
}

/* Conntrack must not be asked before the sign of TPROXY is read: under TPROXY its entry may be
 * absent or another connection's. */
static int ask_all(const struct lc_conn *conn, struct lc_origin *out)
{
    const struct lc_engine *sign = bearer(out);
    struct lc_addr original;
    int row, err, failed = -ENOENT;

    if (sign != NULL) {
        out->own = lc_own(&conn->local);
        if (out->own < 0)
            return out->own;
        if (!out->own)
            return answered(out, lc_engine_row(sign), &conn->local, 0);
    }
    for (row = 0; row < ROWS; row++) {
        if ((table[row]->can & (LC_CAN_LOOKUP | LC_NAMED_ONLY)) != LC_CAN_LOOKUP
            || table[row] == &lc_tproxy4)
            continue;
        err = table[row]->lookup(conn, &original);
        if (err == 0 && !lc_same(&original, &conn->local))
            return answered(out, row, &original, 1);
        if (err != 0 && err != -ENOTSUP)
            out->nat_errno = -err;
        if (err != 0 && !is_no_answer(err)) {
            failed = err;
            out->engine = row;
        }
    }
    /* TPROXY of traffic to the machine's own address: the caller knows whether the port is one of
     * its listeners', which would make this a direct connection. */
    if (out->transparent)
        return answered(out, lc_engine_row(&lc_tproxy4), &conn->local, 0);
    return failed;
}

static int decide(const struct lc_conn *conn, int engine, struct lc_origin *out)
{
    out->local = conn->local;
    out->peer = conn->peer;
    out->transparent = lc_is_transparent(conn->fd);
    return engine >= 0 ? ask_named(conn, engine, out) : ask_all(conn, out);
}

static int begin(int engine, struct lc_origin *out)
{
    memset(out, 0, sizeof *out);
    out->engine = -1;
    out->own = -1;
    return engine < ROWS ? 0 : -EINVAL;
}

int lc_original(int fd, int engine, struct lc_origin *out)
{
    struct lc_conn conn;
    int err = begin(engine, out);

    if (err < 0 || (err = describe(fd, &conn)) < 0)
        return err;
    return decide(&conn, engine, out);
}

int lc_original_of(int fd, int engine, const struct lc_addr *local, const struct lc_addr *peer,
                   struct lc_origin *out)
{
    struct lc_conn conn = {fd, SOCK_DGRAM, *local, *peer};
    int err = begin(engine, out);

    return err < 0 ? err : decide(&conn, engine, out);
}
