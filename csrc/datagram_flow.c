/* A socket that answers one client in a foreign name: bound to the original destination, connected to
 * the client.
 *
 * FACT: between bind(2) and connect(2) it is any client's. What arrives meanwhile lies in its queue.
 * Worse: a `socket transparent` rule that finds it unconnected lets the packet of another client
 * through, as one that has its socket, and by the time that it is delivered (udp_rcv) the socket is
 * connected and not its own: it is lost, without an ICMP message (seen on Linux 6.18: 13 datagrams of
 * 6,000, of 50 clients at a time; none since). So on Linux the rule must not find
 * it before it is connected:
 *
 *   IPv6  IPV6_FREEBIND binds, and IPV6_TRANSPARENT comes after connect(2).
 *   IPv4  connect(2) needs IP_TRANSPARENT for its route. The socket is tied to the loopback interface
 *         until it is connected, and sees no packet of any other; sk_dst_reset forgets the route by
 *         it. To untie it takes CAP_NET_RAW (socket(7)): without it the moment stays.
 *
 * FACT: nor may its own client's packet find it connected and not yet transparent. The tproxy rule
 * then looks for no listener, the packet is routed on, and with this socket as its own (early demux) it
 * is dropped (ip6_forward; seen on Linux 6.18: one datagram of 12,000). So on IPv6 the option is set
 * while the socket is connected to the loopback address, from where nothing comes. */
#include "datagram.h"

#include <stdatomic.h>
#include <unistd.h>

/* In plain sight. */
static int open_plainly(const struct lc_open *request, const struct lc_addr *peer, int *step)
{
    int fd = lc_open(request, step), err;

    if (fd < 0)
        return fd;
    *step = LC_STEP_CONNECT;
    err = lc_connect_as(fd, request, peer);
    if (err < 0)
        close(fd);
    return err < 0 ? err : fd;
}

#if defined(__linux__) && defined(IPV6_FREEBIND)

static atomic_int stays_tied;

static int bind_to(int fd, int family, const struct lc_addr *address)
{
    struct sockaddr_storage ss;
    socklen_t len = lc_to_sockaddr(address, family, &ss);

    if (len == 0)
        return -EAFNOSUPPORT;
    return bind(fd, (struct sockaddr *)&ss, len) < 0 ? -errno : 0;
}

static int tie(int fd, const char *device)
{
    return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device)) < 0
        ? -errno : 0;
}

static int connect_4(int fd, const struct lc_open *request, const struct lc_addr *peer, int *step)
{
    int err;

    *step = LC_STEP_RIGHT;
    if ((err = lc_engine_allow(request->engine, fd, AF_INET)) < 0)
        return err;
    *step = LC_STEP_DEVICE;
    if ((err = tie(fd, "lo")) < 0)
        return err;
    *step = LC_STEP_BIND;
    if ((err = bind_to(fd, AF_INET, &request->address)) < 0)
        return err;
    *step = LC_STEP_CONNECT;
    if ((err = lc_connect(fd, peer)) < 0)
        return err;
    *step = LC_STEP_DEVICE;
    return tie(fd, "");
}

static int connect_6(int fd, const struct lc_open *request, const struct lc_addr *peer, int *step)
{
    static const struct lc_addr nobody = {.family = 6, .port = 9, .ip = {[15] = 1}};
    int on = 1, err;

    *step = LC_STEP_BIND;
    if (setsockopt(fd, IPPROTO_IPV6, IPV6_FREEBIND, &on, sizeof on) < 0)
        return -errno;
    if ((err = bind_to(fd, AF_INET6, &request->address)) < 0)
        return err;
    *step = LC_STEP_CONNECT;
    /* A host may have no ::1: then the moment stays. */
    if (lc_connect(fd, &nobody) < 0 && (err = lc_connect(fd, peer)) < 0)
        return err;
    *step = LC_STEP_RIGHT;
    if ((err = lc_engine_allow(request->engine, fd, AF_INET6)) < 0)
        return err;
    *step = LC_STEP_CONNECT;
    return lc_connect(fd, peer);
}

static int open_unseen(const struct lc_open *request, const struct lc_addr *peer, int *step)
{
    struct lc_open unbound = *request;
    int fd, err;

    unbound.engine = -1;
    unbound.flags &= ~(unsigned)(LC_TPROXY_LCL | LC_TPROXY_REM | LC_TRANSPARENT_PORT);
    unbound.address.family = 0;
    if ((fd = lc_open(&unbound, step)) < 0)
        return fd;
    err = request->family == 6 ? connect_6(fd, request, peer, step)
                               : connect_4(fd, request, peer, step);
    if (err < 0)
        close(fd);
    return err < 0 ? err : fd;
}

int lc_open_flow(const struct lc_open *request, const struct lc_addr *peer, int *step)
{
    int fd;

    if (lc_engine_at(request->engine) != &lc_tproxy4 || request->device[0] != '\0'
        || (request->family == 4 && atomic_load(&stays_tied)))
        return open_plainly(request, peer, step);
    fd = open_unseen(request, peer, step);
    if (fd >= 0 || *step != LC_STEP_DEVICE)
        return fd;
    atomic_store(&stays_tied, 1);
    return open_plainly(request, peer, step);
}

#else

int lc_open_flow(const struct lc_open *request, const struct lc_addr *peer, int *step)
{
    return open_plainly(request, peer, step);
}
#endif
