/* A whole datagram listener: whose a datagram is, new flows and their policy, and which flow goes
 * where there are too many. */
#include "plane_flows.h"

#include <stdlib.h>

enum { TURNS = 16 };        /* batches of one event: about what a receive buffer holds */

/* -- the table ------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, const struct lc_addr *a)
{
    uint64_t half[2];

    memcpy(half, a->ip, sizeof half);
    h ^= (uint64_t)a->port << 32 | a->family | (uint64_t)a->scope << 8;
    h = (h ^ half[0]) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    h = (h ^ half[1]) * 0xbf58476d1ce4e5b9u;
    return h ^ h >> 32;
}

static uint32_t *bucket(struct flows *t, const struct lc_addr *peer, const struct lc_addr *original)
{
    return &t->bucket[mix(mix(t->seed, peer), original) & t->mask];
}

static struct relay *find(struct lc_plane *p, struct flows *t, const struct lc_addr *peer,
                          const struct lc_addr *original)
{
    uint32_t slot = *bucket(t, peer, original);

    while (slot != LC_NONE) {
        struct relay *r = lc_slot(p, slot);

        if (lc_same(&r->flow->peer, peer) && lc_same(&r->flow->original, original))
            return r;
        slot = r->flow->chain;
    }
    return NULL;
}

static void unline(struct lc_plane *p, struct flows *t, struct flow *f)
{
    if (f->older == LC_NONE)
        t->oldest = f->newer;
    else
        lc_slot(p, f->older)->flow->newer = f->newer;
    if (f->newer == LC_NONE)
        t->newest = f->older;
    else
        lc_slot(p, f->newer)->flow->older = f->older;
}

static void line(struct lc_plane *p, struct flows *t, struct relay *r)
{
    r->flow->newer = LC_NONE;
    r->flow->older = t->newest;
    if (t->newest == LC_NONE)
        t->oldest = r->slot;
    else
        lc_slot(p, t->newest)->flow->newer = r->slot;
    t->newest = r->slot;
}

void lc_flow_use(struct lc_plane *p, struct relay *r)
{
    struct flows *t = p->listener[r->listener].flows;

    r->last = p->now;
    if (t->newest == r->slot)
        return;
    unline(p, t, r->flow);
    line(p, t, r);
}

void lc_flow_unlink(struct lc_plane *p, struct relay *r)
{
    struct flows *t = p->listener[r->listener].flows;
    uint32_t *at = bucket(t, &r->flow->peer, &r->flow->original);

    while (*at != r->slot)
        at = &lc_slot(p, *at)->flow->chain;
    *at = r->flow->chain;
    unline(p, t, r->flow);
    t->count--;
}

static void insert(struct lc_plane *p, struct flows *t, struct relay *r)
{
    uint32_t *at = bucket(t, &r->flow->peer, &r->flow->original);

    r->flow->chain = *at;
    *at = r->slot;
    line(p, t, r);
    t->count++;
}

/* One that has been answered and has not begun yet (NEW) stays: its answer is on its way. */
int lc_flows_evict(struct lc_plane *p, struct flows *t, const struct relay *spared)
{
    uint32_t slot = t->oldest;

    while (slot != LC_NONE) {
        struct relay *r = lc_slot(p, slot);
        int asked = r->state == ASKED;

        slot = r->flow->newer;
        if (r == spared)
            continue;
        if (asked)
            lc_asked_end(p, r);
        else
            lc_relay_end(p, r, LC_END_EVICTED, 0, 0);
        if (r->flow == NULL) {
            LC_ADD(p->evicted, 1);
            return 1;
        }
    }
    return 0;
}

/* -- new flows ------------------------------------------------------------------------------- */

/* Meant for the listener itself, or brought there by NAT, which says no more of it. */
static int is_direct(const struct listener *l, const struct lc_addr *original)
{
    if (original->port != l->at.port)
        return 0;
    if (!lc_is_wildcard(&l->at))
        return lc_same(original, &l->at);
    return lc_own(original) != 0;
}

static struct relay *make(struct lc_plane *p, uint32_t number, const struct lc_addr *peer,
                          const struct lc_addr *original)
{
    struct listener *l = &p->listener[number];
    struct job *job = calloc(1, sizeof *job);
    struct flow *f = calloc(1, sizeof *f);
    struct relay *r = NULL;

    if (job != NULL && f != NULL) {
        pthread_mutex_lock(&p->lock);
        r = lc_take(p);
        pthread_mutex_unlock(&p->lock);
    }
    if (r == NULL) {
        free(job);
        free(f);
        return NULL;
    }
    f->peer = job->peer = *peer;
    f->original = f->to = job->to = *original;
    job->engine = lc_engine_row(l->transparent ? &lc_tproxy4 : &lc_sockname);
    job->timeout = LC_NONE;
    r->job = job;
    r->flow = f;
    r->listener = (int32_t)number;
    r->idle = l->how.idle < 0 ? LC_NONE : (uint32_t)l->how.idle;
    r->total = l->how.total < 0 ? LC_NONE : (uint32_t)l->how.total;
    r->began = p->now_ns;
    insert(p, l->flows, r);
    LC_ADD(p->live, 1);
    l->live++;
    return r;
}

/* The flow of a datagram that belongs to none yet; NULL: it is not to be relayed. */
static struct relay *begin(struct lc_plane *p, uint32_t number, const struct lc_addr *peer,
                           const struct lc_addr *original)
{
    struct listener *l = &p->listener[number];
    struct relay *r;
    int action;

    LC_ADD(p->accepted, 1);
    if (original->family == 0 || is_direct(l, original)) {
        LC_ADD(p->failed, 1);
        return NULL;
    }
    if (lc_own_connection(peer, original)) {
        LC_ADD(p->looped, 1);
        return NULL;
    }
    action = lc_judge(l->rules->row, l->rules->n, peer, original, 0);
    if (action == LC_DENY) {
        LC_ADD(p->denied, 1);
        return NULL;
    }
    if ((l->flows->count >= l->flows->most && !lc_flows_evict(p, l->flows, NULL))
        || (r = make(p, number, peer, original)) == NULL)
        return NULL;
    if (action != LC_ASK)
        lc_flow_go(p, r, action);
    return r->flow == NULL ? NULL : r;
}

static void ask(struct lc_plane *p, struct relay *r)
{
    r->state = ASKED;
    r->what = LC_ASKED;         /* until it is fetched */
    lc_finished(p, r);
    LC_ADD(p->asked, 1);
}

/* -- datagrams ------------------------------------------------------------------------------- */

/* Datagram `i` of the batch. */
void lc_flows_meet(struct lc_plane *p, uint32_t number, int i, const struct lc_addr *peer,
                   const struct lc_addr *original)
{
    struct relay *r = find(p, p->listener[number].flows, peer, original);
    int fresh = r == NULL;

    if (fresh && (r = begin(p, number, peer, original)) == NULL) {
        LC_ADD(p->dropped, 1);
        return;
    }
    lc_flow_use(p, r);
    if (r->flow->denied)
        LC_ADD(p->dropped, 1);
    else if (r->state == RELAYING)
        lc_flow_forward(p, r, 0, i, 1);
    else
        lc_flow_keep(p, r, &lc_batch_datagrams(p->batch)[i],
                     lc_batch_bytes(p->batch) + (size_t)i * LC_STRIDE);
    if (fresh && r->state == NEW)
        ask(p, r);              /* its first datagram is there to be looked at */
}

/* All that waits is read before any flow is, so that what came before a flow had a socket of its own
 * goes on before what came there. */
void lc_flows_event(struct lc_plane *p, uint32_t number)
{
    struct lc_datagram *got = lc_batch_datagrams(p->batch);
    int i, n, turn;

    for (turn = 0; turn < TURNS && p->listener[number].fd >= 0; turn++) {
        lc_batch_clear(p->batch);
        n = lc_batch_recv(p->batch, p->listener[number].fd, LC_BATCH);
        for (i = 0; i < n; i++)
            lc_flows_meet(p, number, i, &got[i].peer, &got[i].original);
        if (n < LC_BATCH)
            return;
    }
}

/* -- listeners ------------------------------------------------------------------------------- */

int lc_flows_start(struct lc_plane *p, struct listener *l)
{
    struct flows *t;
    uint32_t i, places = 64;

    while (places < l->how.flows && places < UINT32_C(1) << 31)
        places *= 2;
    if (p->batch == NULL && (p->batch = lc_batch_new()) == NULL)
        return -ENOMEM;
    if ((t = malloc(sizeof *t + places * sizeof t->bucket[0])) == NULL)
        return -ENOMEM;
    t->most = l->how.flows;
    t->count = 0;
    t->mask = places - 1;
    t->oldest = t->newest = LC_NONE;
    t->seed = p->now_ns ^ (uint64_t)(uintptr_t)t;
    for (i = 0; i < places; i++)
        t->bucket[i] = LC_NONE;
    l->flows = t;
    return 0;
}

/* Nobody asks any more whether they are denied. */
void lc_flows_stop(struct lc_plane *p, struct listener *l)
{
    uint32_t slot = l->flows->oldest;

    while (slot != LC_NONE) {
        struct relay *r = lc_slot(p, slot);

        slot = r->flow->newer;
        if (r->flow->denied)
            lc_relay_end(p, r, LC_END_KILLED, 0, 0);
    }
}
