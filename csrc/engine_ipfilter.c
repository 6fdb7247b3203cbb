/* IPFilter: rdr in ipnat.conf(5), SIOCGNATL on /dev/ipnat; ipnat(4) of FreeBSD and NetBSD.
 *
 * WARNING: on a stock FreeBSD 14 kernel any well-formed SIOCGNATL panics the machine:
 * ipf_nat_lookupredir() in netpfil/ipfilter/netinet/ip_nat.c hands on a fr_info_t whose
 * fin_main_soft it never set, and newer public sources have the same code. So this engine answers
 * only where the user names it, and until then the device is not even opened.
 *
 * The command takes the wrapper `struct ipfobj` alone. The lookup's "in" is the connection's own
 * local address and its "out" the client; the answer is in "real". No entry: ESRCH. A wrong
 * revision, size or type: EINVAL. The device is root's, and once open it stays usable.
 */
#include "device.h"

#if (defined(__FreeBSD__) || defined(__NetBSD__)) && defined(__has_include)
#if __has_include(<netinet/ip_nat.h>) && __has_include(<netinet/ipl.h>)
#include <sys/param.h>
#include <sys/ioctl.h>
#include <net/if.h>
#include <netinet/in_systm.h>
#include <netinet/ip.h>
#include <netinet/ip_compat.h>
#include <netinet/ipl.h>
#include <netinet/ip_fil.h>
#include <netinet/ip_nat.h>
#define HAS_HEADERS 1
#endif
#endif

struct object {
    uint32_t rev, size;
    void *ptr;
    int32_t type, offset, retval;
    uint8_t reserved[28];
};

struct nat_lookup {
    uint8_t in[16], out[16], real[16];
    int32_t version, flags;
    uint16_t in_port, out_port, real_port;
};

enum { NATLOOKUP = 9, TCP = 1, UDP = 2, OLDEST = 5010000 };

#ifdef HAS_HEADERS
enum { REVISION = IPFILTER_VERSION };

#define SAME(ours, member, theirs, their_member) \
    (offsetof(ours, member) == offsetof(theirs, their_member))
_Static_assert(sizeof(struct object) == sizeof(struct ipfobj)
               && SAME(struct object, rev, struct ipfobj, ipfo_rev)
               && SAME(struct object, size, struct ipfobj, ipfo_size)
               && SAME(struct object, ptr, struct ipfobj, ipfo_ptr)
               && SAME(struct object, type, struct ipfobj, ipfo_type)
               && SAME(struct object, offset, struct ipfobj, ipfo_offset)
               && SAME(struct object, retval, struct ipfobj, ipfo_retval), "ipfobj");
_Static_assert(sizeof(struct nat_lookup) == sizeof(struct natlookup)
               && SAME(struct nat_lookup, in, struct natlookup, nl_inipaddr)
               && SAME(struct nat_lookup, out, struct natlookup, nl_outipaddr)
               && SAME(struct nat_lookup, real, struct natlookup, nl_realipaddr)
               && SAME(struct nat_lookup, version, struct natlookup, nl_v)
               && SAME(struct nat_lookup, flags, struct natlookup, nl_flags)
               && SAME(struct nat_lookup, in_port, struct natlookup, nl_inport)
               && SAME(struct nat_lookup, out_port, struct natlookup, nl_outport)
               && SAME(struct nat_lookup, real_port, struct natlookup, nl_realport), "natlookup");
_Static_assert(SIOCGNATL == LC_IOWR('r', 63, sizeof(struct object)), "SIOCGNATL");
_Static_assert(IPFOBJ_NATLOOKUP == NATLOOKUP && IPN_TCP == TCP && IPN_UDP == UDP
               && IPFILTER_VERSION >= OLDEST, "IPFilter's numbers");
#else
enum { REVISION = 5010200 };    /* of FreeBSD 14 and NetBSD 10 */
#endif

static int is_here(void)
{
    const char *system = lc_system();

    return strcmp(system, "freebsd") == 0 || strcmp(system, "netbsd") == 0;
}

/* Touches nothing: nobody has named the engine. */
static int probe(void)
{
    return is_here() ? -ECANCELED : -ENOTSUP;
}

int lc_ipfilter_open(void)
{
    return is_here() ? lc_device_open(LC_IPNAT) : -ENOTSUP;
}

static int allow(int fd, int family)
{
    (void)fd, (void)family;
    return -ENOTSUP;
}

static int lookup(const struct lc_conn *conn, struct lc_addr *original)
{
    struct nat_lookup natlookup;
    struct object object;
    size_t length = conn->local.family == 4 ? 4 : 16;
    int err;

    if (!is_here())
        return -ENOTSUP;
    if (conn->type != SOCK_STREAM && conn->type != SOCK_DGRAM)
        return -EPROTONOSUPPORT;
    memset(&natlookup, 0, sizeof natlookup);
    memcpy(natlookup.in, conn->local.ip, length);
    memcpy(natlookup.out, conn->peer.ip, length);
    natlookup.in_port = htons(conn->local.port);
    natlookup.out_port = htons(conn->peer.port);
    natlookup.version = conn->local.family;
    natlookup.flags = conn->type == SOCK_DGRAM ? UDP : TCP;
    memset(&object, 0, sizeof object);
    object.rev = REVISION;
    object.size = sizeof natlookup;
    object.ptr = &natlookup;
    object.type = NATLOOKUP;
    err = lc_device_control(LC_IPNAT, LC_IOWR('r', 63, sizeof object), &object);
    if (err < 0)
        return err == -ESRCH ? -ENOENT : err;
    memset(original, 0, sizeof *original);
    original->family = conn->local.family;
    original->port = ntohs(natlookup.real_port);
    memcpy(original->ip, natlookup.real, length);
    return 0;
}

const struct lc_engine lc_ipfilter = {
    "ipfilter",
    LC_CAN_LOOKUP | LC_CAN_TCP | LC_CAN_UDP | LC_CAN_V4 | LC_CAN_V6 | LC_NAMED_ONLY,
    probe, allow, lookup,
};
