/* What the documentation and the tests' vectors say of the systems' numbers and layouts, held
 * against the systems' own headers. Compiling this is the check. */
#include "../engine.h"

#include <netinet/ip.h>
#include <sys/ioctl.h>

#define IS(name, number) _Static_assert((name) == (number), #name)
#define AT(type, member, offset) _Static_assert(offsetof(type, member) == (offset), #member)

/* The same number is another option elsewhere: 19, 20, 24, 27, 64. */
IS(AF_INET, 2);
IS(IPPROTO_TCP, 6);
IS(IPPROTO_UDP, 17);
IS(IPPROTO_IP, 0);
IS(IPPROTO_IPV6, 41);

#if defined(__linux__)
#include <linux/netfilter_ipv4.h>
IS(AF_INET6, 10);
IS(IP_PKTINFO, 8);
IS(IP_FREEBIND, 15);
IS(IP_TRANSPARENT, 19);
IS(IP_RECVORIGDSTADDR, 20);
IS(IP_BIND_ADDRESS_NO_PORT, 24);
IS(SO_ORIGINAL_DST, 80);
IS(IPV6_V6ONLY, 26);
IS(IPV6_RECVORIGDSTADDR, 74);
IS(IPV6_TRANSPARENT, 75);
IS(IPV6_FREEBIND, 78);
IS(SO_MARK, 36);
IS(SO_REUSEPORT, 15);
IS(SO_BINDTODEVICE, 25);
#ifdef IP_LOCAL_PORT_RANGE          /* 6.3 */
IS(IP_LOCAL_PORT_RANGE, 51);
#endif
#else
IS(IP_PORTRANGE, 19);
IS(IP_RECVDSTADDR, 7);
#ifdef __OpenBSD__
IS(IP_RECVIF, 30);
#else
IS(IP_RECVIF, 20);
#endif
#endif

#if defined(__FreeBSD__)
IS(AF_INET6, 28);
IS(IP_BINDANY, 24);
IS(IPV6_BINDANY, 64);
IS(IP_RECVORIGDSTADDR, 27);
IS(IP_ORIGDSTADDR, 27);
IS(IPV6_ORIGDSTADDR, 72);
IS(IPV6_RECVORIGDSTADDR, 72);
IS(IPV6_PKTINFO, 46);
#ifdef SO_SPLICE                    /* 14.2 */
IS(SO_SPLICE, 0x1023);
#endif
#elif defined(__NetBSD__)
IS(AF_INET6, 24);
IS(IP_MINTTL, 24);
IS(IP_BINDANY, 27);
IS(IPV6_BINDANY, 64);
#elif defined(__OpenBSD__)
IS(AF_INET6, 24);
IS(SO_BINDANY, 0x1000);
IS(SO_SPLICE, 0x1023);
IS(IPV6_RECVDSTPORT, 64);
IS(IP_RECVDSTPORT, 33);
#elif defined(__APPLE__)
IS(AF_INET6, 30);
#if defined(IP_BINDANY) || defined(SO_BINDANY) || defined(SO_SPLICE)
#error macOS has something new
#endif
#endif

#if defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__)
#include <sys/param.h>
#include <net/if.h>
#include <net/pfvar.h>
IS(PF_INOUT, 0);
IS(PF_IN, 1);
IS(PF_OUT, 2);
AT(struct pfioc_natlook, saddr, 0);
AT(struct pfioc_natlook, daddr, 16);
AT(struct pfioc_natlook, rsaddr, 32);
AT(struct pfioc_natlook, rdaddr, 48);
#ifdef __OpenBSD__
IS(DIOCNATLOOK, 0xc0504417);
IS(sizeof(struct pfioc_natlook), 80);
AT(struct pfioc_natlook, rdomain, 64);
AT(struct pfioc_natlook, rrdomain, 66);
AT(struct pfioc_natlook, sport, 68);
AT(struct pfioc_natlook, dport, 70);
AT(struct pfioc_natlook, rsport, 72);
AT(struct pfioc_natlook, rdport, 74);
AT(struct pfioc_natlook, af, 76);
AT(struct pfioc_natlook, proto, 77);
AT(struct pfioc_natlook, direction, 78);
#else
IS(DIOCNATLOOK, 0xc04c4417);
IS(sizeof(struct pfioc_natlook), 76);
AT(struct pfioc_natlook, sport, 64);
AT(struct pfioc_natlook, dport, 66);
AT(struct pfioc_natlook, rsport, 68);
AT(struct pfioc_natlook, rdport, 70);
AT(struct pfioc_natlook, af, 72);
AT(struct pfioc_natlook, proto, 73);
AT(struct pfioc_natlook, direction, 74);
#endif
#endif

#if defined(__FreeBSD__) || defined(__NetBSD__)
#include <netinet/in_systm.h>
#include <netinet/ip_compat.h>
#include <netinet/ipl.h>
#include <netinet/ip_fil.h>
#include <netinet/ip_nat.h>
IS(IPFILTER_VERSION, 5010200);
IS(IPFOBJ_NATLOOKUP, 9);
IS(IPN_TCP, 1);
IS(IPN_UDP, 2);
AT(struct natlookup, nl_inipaddr, 0);
AT(struct natlookup, nl_outipaddr, 16);
AT(struct natlookup, nl_realipaddr, 32);
AT(struct natlookup, nl_v, 48);
AT(struct natlookup, nl_flags, 52);
AT(struct natlookup, nl_inport, 56);
AT(struct natlookup, nl_outport, 58);
AT(struct natlookup, nl_realport, 60);
AT(struct ipfobj, ipfo_rev, 0);
AT(struct ipfobj, ipfo_size, 4);
AT(struct ipfobj, ipfo_ptr, 8);
#ifdef __LP64__
IS(SIOCGNATL, 0xc038723f);
IS(sizeof(struct natlookup), 64);
IS(sizeof(struct ipfobj), 56);
AT(struct ipfobj, ipfo_type, 16);
AT(struct ipfobj, ipfo_offset, 20);
AT(struct ipfobj, ipfo_retval, 24);
#endif
#endif
