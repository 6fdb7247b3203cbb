/* Flows: relays of datagrams. What plane_flows.c and plane_flow.c share. */
#ifndef LC_PLANE_FLOWS_H
#define LC_PLANE_FLOWS_H

#include "datagram.h"
#include "plane.h"

enum {
    LC_FLOW_WAITS = 64,             /* datagrams of one flow that wait for its decision */
    LC_FLOWS_WAIT = 16 << 20        /* bytes, of all flows of a plane */
};

struct parcel {
    struct parcel *next;
    int size;
    uint8_t bytes[];
};

/* What a flow has beside a relay. Its state is RELAYING where it was denied, too: its client's
 * datagrams are dropped until it has been idle for long enough. */
struct flow {
    struct lc_addr peer, original;  /* its key */
    struct lc_addr to;              /* the upstream */
    uint32_t chain;                 /* the next one of its bucket */
    uint32_t older, newer;          /* by last use */
    int denied;
    int waits;
    struct parcel *first, *last;    /* until there is an upstream; while ASKED the user reads `first` */
};

/* The flows of a listener, by key and by last use. */
struct flows {
    uint32_t most, count, mask, oldest, newest;
    uint64_t seed;
    uint32_t bucket[];
};

/* plane_flows.c */
void lc_flows_meet(struct lc_plane *p, uint32_t number, int i, const struct lc_addr *peer,
                   const struct lc_addr *original);
void lc_flow_use(struct lc_plane *p, struct relay *r);
void lc_flow_unlink(struct lc_plane *p, struct relay *r);
/* The longest unused, but not `r`, ends. 0: there is none that can. */
int lc_flows_evict(struct lc_plane *p, struct flows *t, const struct relay *r);

/* plane_flow.c */
void lc_flow_go(struct lc_plane *p, struct relay *r, int action);
void lc_flow_deny(struct lc_plane *p, struct relay *r);
void lc_flow_keep(struct lc_plane *p, struct relay *r, const struct lc_datagram *d,
                  const uint8_t *bytes);
void lc_flow_forward(struct lc_plane *p, struct relay *r, int d, int first, int n);

#endif
