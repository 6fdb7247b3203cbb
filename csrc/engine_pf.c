/* PF: rdr and rdr-to, DIOCNATLOOK on /dev/pf; pf(4) of FreeBSD, NetBSD, OpenBSD and macOS.
 *
 * PF is asked for the state of this connection, as the answer to it leaves (PF_OUT); the answer is
 * the destination before translation. A connection that began on the machine itself is found the
 * other way round (PF_IN). UDP is asked about like TCP: the control message of a datagram shows
 * the translated address alone.
 *
 * A direct connection that has a state is answered with its own local address, which the caller
 * takes for "not translated". No state, or PF switched off: ENOENT. More than one: E2BIG.
 *
 * Only root may open the device (0600), so probing opens it, before privileges are dropped.
 *
 * PF sees IPv6 addresses as they are on the wire, without the interface that a KAME kernel
 * otherwise writes into link-local ones.
 */
#include "device.h"

/* Every system has its own struct pfioc_natlook, and the header only its own; so that one code
 * serves them all, and is tested for them all, here is where each has what.
 *
 *             size  ports: s   d  rs  rd  rdomain  af proto direction  AF_INET6 */
#define FREEBSD  76,       64, 66, 68, 70,   NONE,  72, 73,   74,          28
#define NETBSD   76,       64, 66, 68, 70,   NONE,  72, 73,   74,          24
#define OPENBSD  80,       68, 70, 72, 74,     64,  76, 77,   78,          24
#define MACOS    84,       64, 68, 72, 76,   NONE,  80, 81,   83,          30

enum {
    SADDR = 0, DADDR = 16, RSADDR = 32, RDADDR = 48,
    NONE = 0,
    LARGEST = 84,
    IN = 1, OUT = 2
};

struct layout {
    const char *system;
    uint8_t size, sport, dport, rsport, rdport, rdomain, af, proto, direction, inet6;
};

static const struct layout layouts[] = {
    {"freebsd", FREEBSD}, {"netbsd", NETBSD}, {"openbsd", OPENBSD}, {"macos", MACOS},
};

/* On each of those systems its header, or for macOS, whose SDK has none, its struct as XNU's
 * bsd/net/pfvar.h has it, must agree with the table. */
#if defined(__FreeBSD__)
#define HERE FREEBSD
#elif defined(__NetBSD__)
#define HERE NETBSD
#elif defined(__OpenBSD__)
#define HERE OPENBSD
#elif defined(__APPLE__)
#define HERE MACOS
#endif

#if defined(HERE) && defined(__has_include) && !defined(__APPLE__)
#if !__has_include(<net/pfvar.h>)
#undef HERE                     /* built where PF is not installed */
#endif
#endif

#ifdef HERE
#include <sys/param.h>
#include <sys/ioctl.h>
#include <net/if.h>
#ifdef __APPLE__
union pf_port {
    uint16_t port;
    uint32_t spi;
};
struct pfioc_natlook {
    struct in6_addr saddr, daddr, rsaddr, rdaddr;
    union pf_port sport, dport, rsport, rdport;
    sa_family_t af;
    uint8_t proto, proto_variant, direction;
};
#define DIOCNATLOOK _IOWR('D', 23, struct pfioc_natlook)
enum { PF_INOUT, PF_IN, PF_OUT };
#else
#include <net/pfvar.h>
#endif

#define AT(member, offset) (offsetof(struct pfioc_natlook, member) == (offset))
#ifdef __OpenBSD__
#define RDOMAIN_AT(offset) AT(rdomain, offset)
#else
#define RDOMAIN_AT(offset) ((offset) == NONE)
#endif
#define AGREE(...) AGREE_(__VA_ARGS__)
#define AGREE_(size, sp, dp, rsp, rdp, rdomain, af_, proto_, direction_, inet6) \
    _Static_assert(sizeof(struct pfioc_natlook) == (size) && (size) <= LARGEST \
                   && DIOCNATLOOK == LC_IOWR('D', 23, size), "the size of pfioc_natlook"); \
    _Static_assert(AT(sport, sp) && AT(dport, dp) && AT(rsport, rsp) && AT(rdport, rdp) \
                   && RDOMAIN_AT(rdomain), "the ports of pfioc_natlook"); \
    _Static_assert(AT(af, af_) && AT(proto, proto_) && AT(direction, direction_), \
                   "the end of pfioc_natlook"); \
    _Static_assert(AF_INET == 2 && AF_INET6 == (inet6), "address families")
AGREE(HERE);
_Static_assert(AT(saddr, SADDR) && AT(daddr, DADDR) && AT(rsaddr, RSADDR) && AT(rdaddr, RDADDR),
               "the addresses of pfioc_natlook");
_Static_assert(PF_IN == IN && PF_OUT == OUT, "directions");
#endif

static const struct layout *layout(void)
{
    const char *system = lc_system();
    size_t i;

    for (i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        if (strcmp(layouts[i].system, system) == 0)
            return &layouts[i];
    return NULL;
}

static int probe(void)
{
    return layout() == NULL ? -ENOTSUP : lc_device_open(LC_PF);
}

static int allow(int fd, int family)
{
    (void)fd, (void)family;
    return -ENOTSUP;
}

static void put16(uint8_t *at, uint16_t value)
{
    memcpy(at, &value, sizeof value);
}

static int link_local(const struct lc_addr *a)
{
    return a->family == 6 && a->ip[0] == 0xfe && (a->ip[1] & 0xc0) == 0x80;
}

static int ask(const struct layout *l, const struct lc_conn *conn, uint8_t direction,
               struct lc_addr *original)
{
    uint8_t natlook[LARGEST] = {0};
    size_t length = conn->local.family == 4 ? 4 : 16;
    uint16_t port;
    int err;

    memcpy(natlook + SADDR, conn->peer.ip, length);
    memcpy(natlook + DADDR, conn->local.ip, length);
    put16(natlook + l->sport, htons(conn->peer.port));
    put16(natlook + l->dport, htons(conn->local.port));
    natlook[l->af] = conn->local.family == 4 ? AF_INET : l->inet6;
    natlook[l->proto] = conn->type == SOCK_DGRAM ? IPPROTO_UDP : IPPROTO_TCP;
    natlook[l->direction] = direction;
    if (l->rdomain != NONE) {
        int rdomain = lc_device_rdomain(conn->fd);
        if (rdomain < 0)
            return rdomain;
        put16(natlook + l->rdomain, (uint16_t)rdomain);
    }
    if ((err = lc_device_control(LC_PF, LC_IOWR('D', 23, l->size), natlook)) < 0)
        return err;
    memset(original, 0, sizeof *original);
    original->family = conn->local.family;
    memcpy(original->ip, natlook + RDADDR, length);
    memcpy(&port, natlook + l->rdport, sizeof port);
    original->port = ntohs(port);
    if (link_local(original))
        original->scope = conn->local.scope != 0 ? conn->local.scope : conn->peer.scope;
    return 0;
}

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    const struct layout *l = layout();
    int err;

    if (l == NULL)
        return -ENOTSUP;
    if (conn->type != SOCK_STREAM && conn->type != SOCK_DGRAM)
        return -EPROTONOSUPPORT;
    err = ask(l, conn, OUT, original);
    return err == -ENOENT ? ask(l, conn, IN, original) : err;
}

const struct lc_engine lc_pf = {
    "pf", LC_CAN_LOOKUP | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4 | LC_CAN_V6, probe, allow, lookup,
};
