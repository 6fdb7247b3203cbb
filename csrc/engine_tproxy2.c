/* TPROXY2: Balabit's cttproxy 2.0 for Linux 2.4 and 2.6, the patch before IP_TRANSPARENT.
 *
 * It is NAT by connection tracking, not a right: a socket is bound to an address of this machine,
 * and the kernel is told which foreign address to put in its place. setsockopt and getsockopt with
 * SOL_IP and IP_TPROXY carry `struct in_tproxy`, whose first word is the operation:
 *
 *   to connect   bind(local) ASSIGN(foreign) CONNECT(remote) FLAGS(ITP_CONNECT) connect(remote)
 *   to listen    bind(local) ASSIGN(foreign) listen FLAGS(ITP_LISTEN)
 *
 * The kernel finds a packet's assignment by the socket's local address and port, so both have to be
 * concrete before ASSIGN. getsockname(2) goes on telling them; QUERY tells the foreign ones. IPv4,
 * TCP and UDP only. ASSIGN needs CAP_NET_ADMIN.
 *
 * Where the local address comes from: for a socket that connects, from the route to its
 * destination, so a TCP socket is bound at connect. A listener and a datagram socket, which may
 * never connect, are bound when they are opened, from the route to the foreign address.
 *
 * No header of today's has these numbers. 11274 is no other option anywhere, so a kernel without
 * the patch answers ENOPROTOOPT. Options 20 to 25 are the patch's first version, and others today:
 * nothing that is done with this engine touches them.
 */
#include "engine.h"

#ifdef __linux__
#include <unistd.h>

enum { IP_TPROXY = 11274 };

enum { VERSION = 0, ASSIGN = 1, UNASSIGN = 2, QUERY = 3, FLAGS = 4, ALLOC = 5, CONNECT = 6 };

enum {
    ITP_CONNECT = 1,
    ITP_LISTEN = 2,
    ITP_ESTABLISHED = 4,        /* both, for one remote address */
    ITP_ONCE = 0x10000,         /* one connection: what follows from this port is not translated */
    ITP_UNIDIR = 0x80000        /* datagrams in alone, one by one, without connection tracking */
};

enum { MAJOR_2 = 0x02000000 };

struct in_tproxy {
    uint32_t op;
    union {
        uint32_t version;
        struct {
            struct in_addr faddr;
            uint16_t fport;
        } addr;
        uint32_t flags;
    } v;
};

_Static_assert(sizeof(struct in_tproxy) == 12, "struct in_tproxy is 12 bytes to the kernel");

static int tell(int fd, const struct in_tproxy *what)
{
    return setsockopt(fd, IPPROTO_IP, IP_TPROXY, what, sizeof *what) < 0 ? -errno : 0;
}

static int tell_number(int fd, uint32_t op, uint32_t number)
{
    struct in_tproxy what;

    memset(&what, 0, sizeof what);
    what.op = op;
    what.v.version = number;    /* flags lie in the same place */
    return tell(fd, &what);
}

static int tell_address(int fd, uint32_t op, const struct lc_addr *address)
{
    struct in_tproxy what;

    memset(&what, 0, sizeof what);
    what.op = op;
    memcpy(&what.v.addr.faddr, address->ip, 4);
    what.v.addr.fport = htons(address->port);
    return tell(fd, &what);
}

static int probe(void)
{
    int err, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    err = tell_number(fd, VERSION, MAJOR_2);
    close(fd);
    return err;
}

/* ASSIGN looks at the caller's capabilities first and at the socket then: on one that is not bound
 * EINVAL says that the caller may. */
static int permitted(void)
{
    static const struct lc_addr none = {.family = 4};
    int err, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    err = tell_address(fd, ASSIGN, &none);
    close(fd);
    return err == -EINVAL ? 0 : err;
}

static int allow(int fd, int family)
{
    int err;

    if (family != AF_INET)
        return -EAFNOSUPPORT;
    err = tell_number(fd, VERSION, MAJOR_2);
    if (err < 0)
        return err == -EINVAL ? -EPROTONOSUPPORT : err;     /* neither TCP nor UDP */
    return permitted();
}

/* 1: the address is foreign; 0: it is this machine's, or none in particular. */
static int foreign(const struct lc_addr *address)
{
    int own = lc_is_wildcard(address) ? 1 : lc_own(address);

    return own < 0 ? own : !own;
}

static int bind_local(int fd, const struct lc_open *request, const struct lc_addr *towards)
{
    struct lc_addr local;
    struct sockaddr_storage ss;
    socklen_t len;
    int err = lc_source(request, towards, &local);

    if (err < 0)
        return err;
    local.port = 0;
    len = lc_to_sockaddr(&local, AF_INET, &ss);
    return bind(fd, (struct sockaddr *)&ss, len) < 0 ? -errno : 0;
}

/* Whether the socket has a port only bind(2) knows: EINVAL. After a connect that failed it has lost
 * it, connect(2) would choose another, and getsockname(2) goes on telling the old one. */
static int assign(int fd, const struct lc_open *request, const struct lc_addr *wanted,
                  const struct lc_addr *towards)
{
    int err = bind_local(fd, request, towards), bound = err == -EINVAL;

    if (err < 0 && !bound)
        return err;
    /* Until now it could send anywhere, or was to connect elsewhere: its hold on the foreign port
     * was for that. -ENOENT: it had none. */
    if (bound && !(request->flags & LC_TPROXY_LCL))
        (void)tell_number(fd, UNASSIGN, 0);
    err = tell_address(fd, ASSIGN, wanted);
    return bound && err == -EEXIST ? 0 : err;
}

/* EINVAL: the foreign address and port are another socket's. */
static int set_flags(int fd, uint32_t flags)
{
    int err = tell_number(fd, FLAGS, flags);

    return err == -EINVAL ? -EADDRINUSE : err;
}

static int seen(int fd, struct lc_addr *out)
{
    struct in_tproxy what;
    socklen_t len = sizeof what;

    memset(&what, 0, sizeof what);
    what.op = QUERY;
    if (getsockopt(fd, IPPROTO_IP, IP_TPROXY, &what, &len) < 0)
        return -errno;
    memset(out, 0, sizeof *out);
    out->family = 4;
    memcpy(out->ip, &what.v.addr.faddr, 4);
    out->port = ntohs(what.v.addr.fport);
    return 0;
}

/* NAT chooses the port of a connection; a listener's has to be known before the first packet. */
static int listen_with(int fd, uint32_t flags)
{
    struct lc_addr address = {0};
    int err = seen(fd, &address);

    if (err == 0 && address.port == 0)
        err = tell_number(fd, ALLOC, 0);
    return err < 0 ? err : set_flags(fd, flags);
}

static int listening(int fd)
{
    int err = listen_with(fd, ITP_LISTEN);

    return err == -ENOENT ? 0 : err;    /* nothing foreign about it */
}

static int do_bind(int fd, const struct lc_open *request, const struct lc_addr *wanted)
{
    int listens = (request->flags & LC_TPROXY_LCL) != 0;
    int err = foreign(wanted);

    if (err <= 0)
        return err < 0 ? err : 1;
    if (request->type == SOCK_STREAM && !listens)
        return 0;
    err = assign(fd, request, wanted, wanted);
    if (err < 0 || request->type == SOCK_STREAM)
        return err;
    return listens ? listen_with(fd, ITP_LISTEN | ITP_UNIDIR) : set_flags(fd, ITP_CONNECT);
}

/* With the remote address known, one foreign port serves several sockets that connect to different
 * ones. A datagram socket may send again after conntrack has forgotten it, so no ITP_ONCE. */
static int connecting(int fd, const struct lc_open *request, const struct lc_addr *wanted,
                      const struct lc_addr *to)
{
    int listens = (request->flags & LC_TPROXY_LCL) != 0;
    int err = foreign(wanted);

    if (err <= 0)
        return err;
    if (to->family != 4)
        return -EAFNOSUPPORT;
    if ((err = assign(fd, request, wanted, to)) == 0 && (err = tell_address(fd, CONNECT, to)) == 0)
        err = set_flags(fd, request->type == SOCK_STREAM ? ITP_CONNECT | ITP_ONCE
                        : listens ? ITP_ESTABLISHED : ITP_CONNECT);
    return err == -EADDRINUSE ? -EADDRNOTAVAIL : err;
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

static int do_bind(int fd, const struct lc_open *request, const struct lc_addr *wanted)
{
    (void)fd, (void)request, (void)wanted;
    return -ENOTSUP;
}

static int listening(int fd)
{
    (void)fd;
    return -ENOTSUP;
}

static int connecting(int fd, const struct lc_open *request, const struct lc_addr *wanted,
                      const struct lc_addr *to)
{
    (void)fd, (void)request, (void)wanted, (void)to;
    return -ENOTSUP;
}

static int seen(int fd, struct lc_addr *out)
{
    (void)fd, (void)out;
    return -ENOTSUP;
}
#endif

/* Inbound, SO_ORIGINAL_DST tells: see engine_netfilter.c. */
static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    (void)conn, (void)original;
    return -ENOTSUP;
}

const struct lc_engine lc_tproxy2 = {
    .name = "tproxy2",
    .can = LC_CAN_LISTEN | LC_CAN_SPOOF | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4,
    .probe = probe,
    .allow = allow,
    .lookup = lookup,
    .bind = do_bind,
    .listening = listening,
    .connecting = connecting,
    .seen = seen,
};
