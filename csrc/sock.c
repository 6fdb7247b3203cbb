/* comm_open, comm_accept and comm_connect, each in one call. */
#include "datagram.h"

#include <fcntl.h>
#include <netinet/ip.h>
#include <unistd.h>

static int set_int(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

static int new_socket(int family, int type, int proto, int inherit)
{
    int fd;

#ifdef LC_NO_SOCK_FLAGS
    fd = socket(family, type, proto);
    if (fd >= 0 && (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0
                    || (!inherit && fcntl(fd, F_SETFD, FD_CLOEXEC) < 0))) {
        int err = -errno;
        close(fd);
        return err;
    }
#else
    fd = socket(family, type | SOCK_NONBLOCK | (inherit ? 0 : SOCK_CLOEXEC), proto);
#endif
    return fd < 0 ? -errno : fd;
}

/* The type of service of both families, where the socket can carry both. */
static int set_tos(int fd, int family, int tos)
{
    int err;

    if (family == AF_INET)
        return set_int(fd, IPPROTO_IP, IP_TOS, tos);
    if ((err = set_int(fd, IPPROTO_IPV6, IPV6_TCLASS, tos)) < 0)
        return err;
#ifdef __linux__
    return set_int(fd, IPPROTO_IP, IP_TOS, tos);
#else
    return 0;
#endif
}

static int set_mark(int fd, uint32_t mark)
{
#ifdef SO_MARK
    return setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof mark) < 0 ? -errno : 0;
#else
    (void)fd, (void)mark;
    return -ENOTSUP;
#endif
}

static int set_device(int fd, const char *device)
{
#ifdef SO_BINDTODEVICE
    return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device)) < 0
        ? -errno : 0;
#else
    (void)fd, (void)device;
    return -ENOTSUP;
#endif
}

/* Without it a bind to (address, 0) takes a port of that address at once, and one client's ports
 * run out; with it the limit is per 4-tuple (ip(7), 4.2 and newer). Older kernels do without. */
static void late_port(int fd)
{
#ifdef IP_BIND_ADDRESS_NO_PORT
    (void)set_int(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
#else
    (void)fd;
#endif
}

static int wants_bind(const struct lc_open *r)
{
    if (r->address.family == 0)
        return 0;
    return (r->flags & (LC_DOBIND | LC_TPROXY_LCL | LC_TPROXY_REM | LC_INTERCEPT)) != 0
        || r->address.port != 0 || !lc_is_wildcard(&r->address);
}

static int only_connects(const struct lc_open *r)
{
    return (r->flags & (LC_TPROXY_REM | LC_TPROXY_LCL)) == LC_TPROXY_REM;
}

/* To connect from the client's address the port is the kernel's choice, unless it was asked for; a
 * listener is bound as given. */
static struct lc_addr wanted(const struct lc_open *r)
{
    struct lc_addr address = r->address;

    if (only_connects(r) && !(r->flags & LC_TRANSPARENT_PORT))
        address.port = 0;
    return address;
}

/* The engine, where it binds in its own way; else NULL. */
static const struct lc_engine *binder(const struct lc_open *r)
{
    const struct lc_engine *engine = lc_engine_at(r->engine);

    return engine != NULL && engine->bind != NULL ? engine : NULL;
}

static int do_bind(int fd, int family, const struct lc_open *r)
{
    const struct lc_engine *engine = binder(r);
    struct lc_addr address = wanted(r);
    struct sockaddr_storage ss;
    socklen_t len;

    if (engine != NULL) {
        int err = engine->bind(fd, r, &address);
        if (err <= 0)
            return err;
    } else if (only_connects(r) && address.port == 0 && r->type == SOCK_STREAM)
        late_port(fd);
    len = lc_to_sockaddr(&address, family, &ss);
    if (len == 0)
        return -EAFNOSUPPORT;
    return bind(fd, (struct sockaddr *)&ss, len) < 0 ? -errno : 0;
}

/* TPROXY delivers to no listener without the right, whatever its address. Elsewhere it is a right to
 * bind, which a listener on an address of this machine needs no root for. */
static int needs_right(const struct lc_open *r)
{
#ifdef __linux__
    (void)r;
    return 1;
#else
    return (r->flags & LC_TPROXY_REM) || !(lc_is_wildcard(&r->address) || lc_own(&r->address) == 1);
#endif
}

/* Lusca's order: socket, TOS, close-on-exec, reuse, the right to a foreign address, bind,
 * non-blocking, no delay. A step that fails closes the socket. */
static int set_up(int fd, int family, const struct lc_open *r, int *step)
{
    int err;

    *step = LC_STEP_TOS;
    if (r->tos != 0 && (err = set_tos(fd, family, r->tos)) < 0)
        return err;
    *step = LC_STEP_REUSE;
    if ((r->flags & LC_REUSEADDR) && (err = set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1)) < 0)
        return err;
    if ((r->flags & LC_REUSEPORT) && (err = set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1)) < 0)
        return err;
    *step = LC_STEP_V6ONLY;
    if (family == AF_INET6) {
        int only = r->address.family == 6 && !r->dualstack;
        err = set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, only);
        /* OpenBSD has IPv6-only sockets and refuses anything else. */
        if (err < 0 && (only || r->dualstack || r->address.family == 4))
            return err;
    }
    *step = LC_STEP_MARK;
    if (r->has_mark && (err = set_mark(fd, r->mark)) < 0)
        return err;
    *step = LC_STEP_DEVICE;
    if (r->device[0] != '\0' && (err = set_device(fd, r->device)) < 0)
        return err;
    *step = LC_STEP_RIGHT;
    if (r->engine >= 0 && needs_right(r)
        && (err = lc_engine_allow(r->engine, fd, family)) < 0)
        return err;
    *step = LC_STEP_ORIGDST;
    if (r->type == SOCK_DGRAM && (r->flags & (LC_TPROXY_LCL | LC_INTERCEPT)) && binder(r) == NULL
        && (err = lc_ask_original(fd, family, r->dualstack)) < 0)
        return err;
    *step = LC_STEP_BIND;
    if (wants_bind(r) && (err = do_bind(fd, family, r)) < 0)
        return err;
    if (r->type == SOCK_STREAM)
        (void)set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);     /* a proto that is not TCP has none */
    return 0;
}

int lc_open(const struct lc_open *request, int *step)
{
    int family = request->family == 6 ? AF_INET6 : AF_INET;
    int fd, err;

    *step = LC_STEP_SOCKET;
    fd = new_socket(family, request->type, request->proto, (request->flags & LC_NOCLOEXEC) != 0);
    if (fd < 0)
        return fd;
    if ((err = set_up(fd, family, request, step)) < 0) {
        close(fd);
        return err;
    }
    return fd;
}

/* Errors of the one connection at the head of the queue, which accept has taken off it; accept(2)
 * says to treat them like EAGAIN, but more may be waiting behind it. EPERM: a firewall rule. */
static int of_one_connection(int err)
{
    switch (err) {
    case ECONNABORTED: case ECONNREFUSED: case ECONNRESET: case EINTR: case EPROTO: case EPERM:
    case ENETDOWN: case ENETUNREACH: case EHOSTDOWN: case EHOSTUNREACH: case ENOPROTOOPT:
#ifdef ENONET
    case ENONET:
#endif
        return 1;
    default:
        return 0;
    }
}

int lc_accept(int lfd, int inherit, struct lc_accepted *out)
{
    struct sockaddr_storage ss;
    socklen_t len;
    int fd, tries;

    memset(out, 0, sizeof *out);
    for (tries = 0; ; tries++) {
        len = sizeof ss;
#ifdef LC_NO_SOCK_FLAGS
        fd = accept(lfd, (struct sockaddr *)&ss, &len);
        if (fd >= 0 && (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0
                        || (!inherit && fcntl(fd, F_SETFD, FD_CLOEXEC) < 0))) {
            int err = -errno;
            close(fd);
            return err;
        }
#else
        fd = accept4(lfd, (struct sockaddr *)&ss, &len,
                     SOCK_NONBLOCK | (inherit ? 0 : SOCK_CLOEXEC));
#endif
        if (fd >= 0)
            break;
        if (!of_one_connection(errno))
            return -errno;
        if (tries == 64)
            return -EAGAIN;
    }
    out->fd = fd;
    out->family = ss.ss_family;
    /* Not an internet socket: there are no addresses to tell. */
    if (lc_from_sockaddr(&ss, len, &out->peer) == 0)
        (void)lc_local(fd, &out->me);
    return 0;
}

int lc_connect(int fd, const struct lc_addr *to)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    len = lc_to_sockaddr(to, ss.ss_family, &ss);
    if (len == 0)
        return -EAFNOSUPPORT;
    if (connect(fd, (struct sockaddr *)&ss, len) == 0)
        return 0;
    if (errno != EINPROGRESS)
        return -errno;
    /* On one machine the handshake is over by now, and nobody need wait to be told so. */
    len = sizeof ss;
    return getpeername(fd, (struct sockaddr *)&ss, &len) == 0 ? 0 : -EINPROGRESS;
}

/* Linux takes the option before listen(2), FreeBSD its filter only after (accf_data(9)). Elsewhere
 * connections are not deferred. */
int lc_listen(int fd, const struct lc_open *request, int backlog, int defer)
{
    const struct lc_engine *engine = request == NULL ? NULL : lc_engine_at(request->engine);

    (void)defer;
#ifdef TCP_DEFER_ACCEPT
    if (defer > 0) {
        int err = set_int(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, defer);
        if (err < 0)
            return err;
    }
#endif
    if (listen(fd, backlog) < 0)
        return -errno;
#ifdef SO_ACCEPTFILTER
    if (defer > 0) {
        struct accept_filter_arg filter = {.af_name = "dataready"};
        if (setsockopt(fd, SOL_SOCKET, SO_ACCEPTFILTER, &filter, sizeof filter) < 0)
            return -errno;
    }
#endif
    return engine == NULL || engine->listening == NULL ? 0 : engine->listening(fd);
}

int lc_finish(int fd)
{
    return shutdown(fd, SHUT_WR) < 0 ? -errno : 0;
}

int lc_abort(int fd)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    struct lc_addr peer;

    if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) < 0)
        return -errno;
    if (lc_peer(fd, &peer) < 0)
        return 0;
#ifdef __linux__
    /* SO_LINGER acts with the last close, and a dup or a forked child may hold the socket too.
     * Dissolving the association (connect(2)) resets at once. */
    struct sockaddr unspec = {.sa_family = AF_UNSPEC};
    if (connect(fd, &unspec, sizeof unspec) < 0)
        return -errno;
#endif
    return 0;
}

int lc_connect_as(int fd, const struct lc_open *request, const struct lc_addr *to)
{
    const struct lc_engine *engine = lc_engine_at(request->engine);
    struct lc_addr address = wanted(request);
    int err = 0;

    if (engine != NULL && engine->connecting != NULL)
        err = engine->connecting(fd, request, &address, to);
    return err < 0 ? err : lc_connect(fd, to);
}

int lc_seen(int fd, const struct lc_open *request, struct lc_addr *out)
{
    const struct lc_engine *engine = lc_engine_at(request->engine);
    int err = lc_local(fd, out);

    if (err < 0 || engine == NULL || engine->seen == NULL)
        return err;
    if (out->port == 0) {           /* not bound yet: connecting will see to it */
        *out = wanted(request);
        return 0;
    }
    err = engine->seen(fd, out);
    return err == -ENOENT ? 0 : err;
}

/* connect(2) on a datagram socket routes and chooses, and sends nothing. */
int lc_source(const struct lc_open *request, const struct lc_addr *to, struct lc_addr *out)
{
    int err, fd = new_socket(to->family == 6 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0, 0);

    if (fd < 0)
        return fd;
    err = request->has_mark ? set_mark(fd, request->mark) : 0;
    if (err == 0 && request->device[0] != '\0')
        err = set_device(fd, request->device);
    if (err == 0)
        err = lc_connect(fd, to);
    if (err == 0)
        err = lc_local(fd, out);
    close(fd);
    return err;
}

int lc_error(int fd)
{
    int err = 0;
    socklen_t len = sizeof err;

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0 ? -errno : err;
}
