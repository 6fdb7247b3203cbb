/* The engine table, and how a connection's original destination is found out from it. */
#include "engine.h"

/* In the order in which they are asked. */
static const struct lc_engine *const table[] = {
    &lc_tproxy4, &lc_tproxy2, &lc_netfilter, &lc_sockname, &lc_null,
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

int lc_engine_allow(int engine, int fd, int family)
{
    return engine < 0 || engine >= ROWS ? -EINVAL : table[engine]->allow(fd, family);
}

int lc_allow(int fd, int engine)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
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

/* "IP_TRANSPARENT and a local address that is not this machine's" is the sign of TPROXY: a
 * redirected connection that reaches a transparent listener carries the option too, but its local
 * address is the machine's own. Conntrack must not be asked before that sign is read: under
 * TPROXY its entry may be absent or another connection's. */
static int ask_all(const struct lc_conn *conn, struct lc_origin *out)
{
    struct lc_addr original;
    int row, err;

    if (out->transparent) {
        out->own = lc_own(&conn->local);
        if (out->own < 0)
            return out->own;
        if (!out->own)
            return answered(out, lc_engine_row(&lc_tproxy4), &conn->local, 0);
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
    }
    /* TPROXY of traffic to the machine's own address: the caller knows whether the port is one of
     * its listeners', which would make this a direct connection. */
    if (out->transparent)
        return answered(out, lc_engine_row(&lc_tproxy4), &conn->local, 0);
    return -ENOENT;
}

int lc_original(int fd, int engine, struct lc_origin *out)
{
    struct lc_conn conn;
    int err;

    memset(out, 0, sizeof *out);
    out->engine = -1;
    out->own = -1;
    if (engine >= ROWS)
        return -EINVAL;
    if ((err = describe(fd, &conn)) < 0)
        return err;
    out->local = conn.local;
    out->peer = conn.peer;
    out->transparent = lc_is_transparent(fd);
    return engine >= 0 ? ask_named(&conn, engine, out) : ask_all(&conn, out);
}
