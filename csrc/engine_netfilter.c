/* Linux Netfilter: REDIRECT and DNAT, SO_ORIGINAL_DST (linux/netfilter_ipv4.h).
 *
 * Conntrack is asked for the entry of this connection; the answer is the destination before NAT.
 * A direct connection has an entry too, and answers with the socket's own address: the caller must
 * take that for "not translated". No entry (or a connection in another conntrack zone): ENOENT.
 * TCP and SCTP only: UDP gives ENOPROTOOPT.
 */
#include "engine.h"

#ifdef __linux__
#include <unistd.h>
#include <linux/netfilter_ipv4.h>       /* SO_ORIGINAL_DST */
#ifndef IP6T_SO_ORIGINAL_DST            /* linux/netfilter_ipv6/ip6_tables.h: 80, 3.8 and newer */
#define IP6T_SO_ORIGINAL_DST SO_ORIGINAL_DST
#endif

static int ask(int fd, int level, struct sockaddr_storage *ss, socklen_t *len)
{
    /* The buffer has to hold the family's sockaddr; the length is not shrunk. */
    *len = level == IPPROTO_IP ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    memset(ss, 0, sizeof *ss);
    if (getsockopt(fd, level, level == IPPROTO_IP ? SO_ORIGINAL_DST : IP6T_SO_ORIGINAL_DST,
                   ss, len) < 0)
        return -errno;
    return 0;
}

/* An unconnected TCP socket has no entry: ENOENT says that conntrack is there to be asked,
 * ENOPROTOOPT that nf_conntrack is not loaded. */
static int probe(void)
{
    struct sockaddr_storage ss;
    socklen_t len;
    int err, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    err = ask(fd, IPPROTO_IP, &ss, &len);
    close(fd);
    return err == -ENOENT ? 0 : err;
}

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    struct sockaddr_storage ss;
    socklen_t len;
    int err;

    if (conn->type != SOCK_STREAM)
        return -ENOPROTOOPT;
    /* By the family of the connection, not of the socket: a v4-mapped one is an IPv4 entry. */
    err = ask(conn->fd, conn->local.family == 4 ? IPPROTO_IP : IPPROTO_IPV6, &ss, &len);
    return err < 0 ? err : lc_from_sockaddr(&ss, len, original);
}

#else

static int probe(void)
{
    return -ENOTSUP;
}

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    (void)conn, (void)original;
    return -ENOTSUP;
}
#endif

static int allow(int fd, int family)
{
    (void)fd, (void)family;
    return -ENOTSUP;
}

const struct lc_engine lc_netfilter = {
    "netfilter", LC_CAN_LOOKUP | LC_CAN_TCP | LC_CAN_V4 | LC_CAN_V6, probe, allow, lookup,
};
