/* A flow: two connected sockets. The client's side is bound to the original destination, the
 * upstream's to the client's address where the policy says so.
 *
 * FACT: once there is a socket bound to the original destination and connected to the client, the
 * kernel gives it what the client sends there, and the listener no more of it.
 *
 * SAFETY: between its bind(2) and its connect(2) a socket may take anybody's datagrams (datagram_flow.c).
 * So who sent one is looked at, always.
 *
 * FACT: with SO_REUSEADDR Linux may choose the very port that another such socket of that address
 * has (udp_lib_lport_inuse). So it is set only where the port is given. */
#include "plane_flows.h"

#include <stdlib.h>
#include <unistd.h>

#ifdef __linux__
enum { SHARED = LC_REUSEADDR };
#else
enum { SHARED = LC_REUSEADDR | LC_REUSEPORT };  /* one address, several peers: both need it */
#endif

/* -- what waits ------------------------------------------------------------------------------ */

static void drop_waiting(struct lc_plane *p, struct flow *f)
{
    while (f->first != NULL) {
        struct parcel *next = f->first->next;

        p->waiting -= (size_t)f->first->size;
        free(f->first);
        f->first = next;
    }
    f->last = NULL;
    f->waits = 0;
}

void lc_flow_keep(struct lc_plane *p, struct relay *r, const struct lc_datagram *d,
                  const uint8_t *bytes)
{
    struct flow *f = r->flow;
    size_t size = (size_t)d->size;
    struct parcel *kept;

    if (f->waits == LC_FLOW_WAITS || p->waiting + size > LC_FLOWS_WAIT
        || (kept = malloc(sizeof *kept + size)) == NULL) {
        LC_ADD(p->dropped, 1);
        return;
    }
    kept->next = NULL;
    kept->size = d->size;
    memcpy(kept->bytes, bytes, size);
    if (f->last == NULL)
        f->first = kept;
    else
        f->last->next = kept;
    f->last = kept;
    f->waits++;
    p->waiting += size;
}

static void count(struct lc_plane *p, struct relay *r, int d, int datagrams, uint64_t bytes)
{
    LC_ADD(r->count[d], bytes);
    if (d == 0)
        LC_ADD(p->up, bytes);
    else
        LC_ADD(p->down, bytes);
    LC_ADD(p->datagrams, datagrams);
}

static void send_waiting(struct lc_plane *p, struct relay *r)
{
    struct flow *f = r->flow;
    const struct parcel *kept;

    for (kept = f->first; kept != NULL; kept = kept->next) {
        struct lc_parcel parcel = {LC_GET(r->fd[1]), kept->size, kept->bytes, 0};

        if (lc_send_many(&parcel, 1) == 1)
            count(p, r, 0, 1, (uint64_t)kept->size);
        else
            LC_ADD(p->dropped, 1);
    }
    drop_waiting(p, f);
}

int lc_plane_waiting(struct lc_plane *p, uint64_t id, void *buffer, int size)
{
    struct relay *r;
    int n = -ESRCH;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    r = lc_by_id(p, id);
    if (r != NULL && r->state == ASKED && r->flow != NULL) {
        const struct parcel *first = r->flow->first;

        n = first == NULL ? 0 : first->size;
        if (n > 0)
            memcpy(buffer, first->bytes, (size_t)(n < size ? n : size));
    }
    pthread_mutex_unlock(&p->lock);
    return n;
}

/* -- its two sockets ------------------------------------------------------------------------- */

static int open_client(const struct lc_listen *how, const struct flow *f, int *fd)
{
    struct lc_open open;
    int step;

    memset(&open, 0, sizeof open);
    open.family = f->original.family;
    open.type = SOCK_DGRAM;
    open.flags = SHARED | LC_TPROXY_REM | LC_TRANSPARENT_PORT;
    open.engine = how->spoofer;
    open.has_mark = how->has_mark;
    open.mark = how->mark;
    open.address = f->original;
    *fd = lc_open_flow(&open, &f->peer, &step);
    return *fd < 0 ? *fd : 0;
}

/* In the client's name, its port too; where that can't be had (-EADDRINUSE, -EACCES), any. */
static int open_upstream(const struct lc_listen *how, struct relay *r, int action, int *fd)
{
    struct lc_open *open = &r->job->open;
    int step, err;

    memset(open, 0, sizeof *open);
    open->family = r->job->to.family;
    open->type = SOCK_DGRAM;
    open->engine = -1;
    open->has_mark = how->has_mark;
    open->mark = how->mark;
    if (action == LC_SPOOF) {
        open->flags = LC_TPROXY_REM;
        open->engine = how->spoofer;
        open->address = r->job->peer;
    }
    if (action == LC_SPOOF && (how->flags & LC_TRANSPARENT_PORT)) {
        open->flags |= LC_TRANSPARENT_PORT | SHARED;
        *fd = lc_open_flow(open, &r->job->to, &step);
        if (*fd >= 0)
            return 0;
        if (step != LC_STEP_BIND || (*fd != -EADDRINUSE && *fd != -EACCES))
            return *fd;
        open->flags = LC_TPROXY_REM;
    }
    err = lc_connect_go(r->job, fd, &r->trail);
    if (err < 0 && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    return err;
}

static int out_of_descriptors(int err)
{
    return err == -EMFILE || err == -ENFILE;
}

/* Both, or -errno and whose. Out of descriptors, another flow goes. */
static int open_both(struct lc_plane *p, struct relay *r, int action, int fd[2], int *side)
{
    struct listener *l = &p->listener[r->listener];
    int err;

    fd[0] = fd[1] = -1;
    *side = 1;
    do
        err = open_client(&l->how, r->flow, &fd[0]);
    while (out_of_descriptors(err) && lc_flows_evict(p, l->flows, r));
    if (err < 0)
        return err;
    *side = 2;
    do
        err = open_upstream(&l->how, r, action, &fd[1]);
    while (out_of_descriptors(err) && lc_flows_evict(p, l->flows, r));
    if (err < 0)
        close(fd[0]);
    return err;
}

static int set_timer(struct lc_plane *p, struct relay *r)
{
    uint32_t first = r->idle < r->total ? r->idle : r->total;

    return first == LC_NONE ? 0 : lc_timer_set(p, r, p->now + first);
}

void lc_flow_go(struct lc_plane *p, struct relay *r, int action)
{
    const struct lc_listen *how = &p->listener[r->listener].how;
    int fd[2], side, err;

    r->silent = how->report == LC_REPORT_NONE;
    r->state = CONNECTING;
    if ((err = open_both(p, r, action, fd, &side)) < 0) {
        lc_relay_end(p, r, LC_END_CONNECT, -err, side);
        return;
    }
    atomic_store_explicit(&r->fd[0], fd[0], memory_order_relaxed);
    atomic_store_explicit(&r->fd[1], fd[1], memory_order_relaxed);
    r->flow->to = r->job->to;
    free(r->job);
    r->job = NULL;
    r->state = RELAYING;
    r->last = p->now;
    LC_ADD(p->relayed, 1);
    for (side = 0; side < 2 && err == 0; side++)
        err = lc_poll_add_reader(p, fd[side], lc_key(r, side));
    if (err == 0)
        err = set_timer(p, r);
    if (err < 0)
        lc_relay_end(p, r, LC_END_ERROR, -err, 0);
    else
        send_waiting(p, r);
}

void lc_flow_deny(struct lc_plane *p, struct relay *r)
{
    drop_waiting(p, r->flow);
    free(r->job);
    r->job = NULL;
    r->flow->denied = 1;
    r->silent = 1;
    r->state = RELAYING;
    r->last = p->now;
    LC_ADD(p->denied, 1);
    if (p->listener[r->listener].fd < 0 || set_timer(p, r) < 0)
        lc_relay_end(p, r, LC_END_KILLED, 0, 0);
}

void lc_flow_answered(struct lc_plane *p, struct relay *r)
{
    int action = r->job->action;

    if (action == LC_RELAY || action == LC_SPOOF)
        lc_flow_go(p, r, action);
    else
        lc_flow_deny(p, r);
}

/* -- a turn ---------------------------------------------------------------------------------- */

void lc_flow_forward(struct lc_plane *p, struct relay *r, int d, int first, int n)
{
    uint64_t bytes;
    int went = lc_batch_forward(p->batch, first, n, LC_GET(r->fd[!d]), &bytes);

    count(p, r, d, went, bytes);
    LC_ADD(p->dropped, n - went);
    lc_flow_use(p, r);
}

/* One batch of one direction. What is not of this flow came while the socket had no peer: from
 * another client of that destination, or from anybody. */
static void carry(struct lc_plane *p, struct relay *r, int d)
{
    struct lc_datagram *got = lc_batch_datagrams(p->batch);
    const struct lc_addr from = d == 0 ? r->flow->peer : r->flow->to, original = r->flow->original;
    uint32_t number = (uint32_t)r->listener;
    int n, i, end;

    lc_batch_clear(p->batch);
    n = lc_batch_recv(p->batch, LC_GET(r->fd[d]), LC_BATCH);
    if (n < 0 && n != -EAGAIN)
        return;                 /* what an ICMP message said; asked again */
    if (n < LC_BATCH)
        r->side[d] &= (uint8_t)~READABLE;
    for (i = 0; i < n; i = end) {
        for (end = i; end < n && lc_same(&got[end].peer, &from); end++)
            ;
        if (end > i) {
            if (r->state == RELAYING)
                lc_flow_forward(p, r, d, i, end - i);
            continue;
        }
        if (d == 0 && p->listener[number].fd >= 0)
            lc_flows_meet(p, number, i, &got[i].peer, &original);  /* may end `r` */
        else
            LC_ADD(p->dropped, 1);
        end++;
    }
}

void lc_flow_run(struct lc_plane *p, struct relay *r)
{
    int d;

    for (d = 0; d < 2 && r->state == RELAYING; d++)
        if (r->side[d] & READABLE)
            carry(p, r, d);
    if (r->state == RELAYING && ((r->side[0] | r->side[1]) & READABLE))
        lc_ready(p, r);
}

/* What the client's side has received goes on before it is closed. (FACT: a packet that is then between a
 * `socket transparent` rule, which has seen the socket, and udp_rcv, which does not find it any more, is
 * lost: one datagram of 30,000 where flows go all the time, on Linux 6.18. No order of connect(2), reading
 * and close(2) mends that.) The batch may be in use: a flow
 * that has to go makes room for a datagram of it. */
static void flush(struct lc_plane *p, struct relay *r)
{
    struct sockaddr_storage ss;
    struct lc_addr from;
    int i;

    for (i = 0; i < LC_FLOW_WAITS; i++) {
        socklen_t len = sizeof ss;
        ssize_t n = recvfrom(LC_GET(r->fd[0]), p->buffer, LC_COPY, MSG_DONTWAIT | MSG_TRUNC,
                             (struct sockaddr *)&ss, &len);
        struct lc_parcel parcel = {LC_GET(r->fd[1]), (int)n, p->buffer, 0};

        if (n < 0)
            return;
        if (n < LC_COPY && lc_from_sockaddr(&ss, len, &from) == 0
            && lc_same(&from, &r->flow->peer) && lc_send_many(&parcel, 1) == 1)
            count(p, r, 0, 1, (uint64_t)n);
        else
            LC_ADD(p->dropped, 1);
    }
}

/* Its sockets, its place in the table, what waits. There is no end to pass on. */
void lc_flow_end(struct lc_plane *p, struct relay *r)
{
    int side, fd;

    if (LC_GET(r->fd[0]) >= 0)
        flush(p, r);
    for (side = 0; side < 2; side++) {
        fd = LC_GET(r->fd[side]);
        atomic_store_explicit(&r->fd[side], -1, memory_order_relaxed);
        if (fd >= 0)
            close(fd);
    }
    lc_flow_unlink(p, r);
    drop_waiting(p, r->flow);
    free(r->flow);
    r->flow = NULL;
}
