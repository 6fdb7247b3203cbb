/* A pair: two directions, each a source, a sink, and what lies between them. */
#include "plane.h"

#include <stdlib.h>
#include <unistd.h>

/* -- the ready line -------------------------------------------------------------------------- */

void lc_ready(struct lc_plane *p, struct relay *r)
{
    if (r->ready)
        return;
    r->ready = 1;
    r->next = LC_NONE;
    r->prev = p->ready == LC_NONE ? LC_NONE : p->ready_tail;
    if (r->prev == LC_NONE)
        p->ready = r->slot;
    else
        lc_slot(p, r->prev)->next = r->slot;
    p->ready_tail = r->slot;
    p->n_ready++;
}

void lc_unready(struct lc_plane *p, struct relay *r)
{
    if (!r->ready)
        return;
    r->ready = 0;
    if (r->prev == LC_NONE)
        p->ready = r->next;
    else
        lc_slot(p, r->prev)->next = r->next;
    if (r->next == LC_NONE)
        p->ready_tail = r->prev;
    else
        lc_slot(p, r->next)->prev = r->prev;
    p->n_ready--;
}

void lc_finished(struct lc_plane *p, struct relay *r)
{
    r->next = LC_NONE;
    if (p->ended == LC_NONE)
        p->ended = r->slot;
    else
        lc_slot(p, p->ended_tail)->next = r->slot;
    p->ended_tail = r->slot;
}

/* -- ends ------------------------------------------------------------------------------------ */

void lc_reset_fd(int fd)
{
    (void)lc_abort(fd);
    (void)shutdown(fd, SHUT_RDWR);  /* what knows no reset */
    close(fd);
}

/* Where both sides have ended, both have been shut down already: each got the other's end. */
static void part(struct lc_plane *p, struct relay *r, int side, int what)
{
    int fd = LC_GET(r->fd[side]);

    if (fd < 0)
        return;
    if (what == LC_END_LIMIT || what == LC_FRAMED || what == LC_CONNECTED) {
        lc_poll_remove(p, fd);
        return;
    }
    if (what == LC_END_CONNECT && side == 0 && !r->silent)
        return;
    atomic_store_explicit(&r->fd[side], -1, memory_order_relaxed);
    if (what != LC_END_EOF) {
        lc_reset_fd(fd);
        return;
    }
    close(fd);
}

void lc_relay_end(struct lc_plane *p, struct relay *r, int what, int err, int side)
{
    int d;

    if (r->state != RELAYING && r->state != CONNECTING)
        return;
    lc_timer_clear(p, r);
    lc_unready(p, r);
    if (r->http != NULL)
        lc_http_end(p, r, what);
    else if (r->tunnel != NULL)
        lc_http_tunnel_end(p, r, what);
    if (what != LC_FRAMED)
        free(lc_framed_leave(r));
    if (what != LC_CONNECTED && r->trail != 0) {
        (void)lc_trail_remove(r->trail);
        r->trail = 0;
    }
    if (what == LC_END_CONNECT)
        LC_ADD(p->failed, 1);
    else if (r->listener >= 0 && p->listener[r->listener].how.report == LC_REPORT_FAILED)
        r->silent = 1;
    if (r->flow != NULL)
        lc_flow_end(p, r);
    for (d = 0; d < 2; d++) {
        lc_hold_drop(p, r, d);
        part(p, r, d, what);
    }
    free(r->job);
    r->job = NULL;
    r->state = ENDED;
    r->what = (uint8_t)what;
    r->err = err;
    r->blame = (uint8_t)side;
    r->began = p->now_ns - r->began;
    lc_finished(p, r);
    lc_left(p, r);
    LC_ADD(p->finished, 1);
    if (p->resume != 0)
        p->resume = p->now;     /* a listener out of descriptors may have one now */
}

void lc_relay_broke(struct lc_plane *p, struct relay *r, int side, int err)
{
    int reset = err == ECONNRESET || err == EPIPE || err == ECONNABORTED;

    lc_relay_end(p, r, reset ? LC_END_RESET : LC_END_ERROR, err, side + 1);
}

/* -- time ------------------------------------------------------------------------------------ */

/* Rounded up: a limit is never early. */
static uint64_t last_moment(const struct relay *r)
{
    return r->total == LC_NONE ? UINT64_MAX : (r->began + 999999u) / 1000000u + r->total;
}

static uint64_t due(const struct relay *r)
{
    uint64_t idle = r->idle == LC_NONE ? UINT64_MAX : r->last + r->idle + 1;    /* likewise */
    uint64_t total = last_moment(r);

    return idle < total ? idle : total;
}

void lc_relay_timer(struct lc_plane *p, struct relay *r)
{
    uint64_t when, look = UINT64_MAX;
    int d;

    if (r->state == CONNECTING) {
        lc_relay_end(p, r, LC_END_CONNECT, ETIMEDOUT, 2);
        return;
    }
    if (r->state == POOLED) {
        lc_pool_end(p, r);
        return;
    }
    if (r->state == RELAYING && r->http != NULL) {
        lc_http_timer(p, r);
        return;
    }
    if (r->state == RELAYING && r->framing != NULL) {
        lc_framed_over(p, r, LC_END_IDLE);
        return;
    }
    if (r->state != RELAYING)
        return;
    for (d = 0; d < 2; d++)
        if (lc_bulk_look(p, r, d))
            look = p->now + LC_LOOK;
    when = due(r);
    if (when > p->now) {
        if (look < when)
            when = look;
        if (when != UINT64_MAX && lc_timer_set(p, r, when) < 0)
            lc_relay_end(p, r, LC_END_ERROR, ENOMEM, 0);
        return;
    }
    lc_relay_end(p, r, when == last_moment(r) ? LC_END_TOTAL : LC_END_IDLE, 0, 0);
}

/* -- a turn ---------------------------------------------------------------------------------- */

/* An error on a side that is not being read shows in its SO_ERROR alone. */
static void look_for_error(struct lc_plane *p, struct relay *r, int side)
{
    int err;

    r->side[side] &= (uint8_t)~BROKEN;
    if (!(r->side[side] & FINISHED))
        return;                 /* reading brings it, behind the last byte */
    err = lc_error(LC_GET(r->fd[side]));
    if (err > 0)
        lc_relay_broke(p, r, side, err);
}

void lc_relay_run(struct lc_plane *p, struct relay *r)
{
    size_t budget[2] = {LC_BUDGET, LC_BUDGET};
    int d;

    lc_unready(p, r);
    if (r->http != NULL) {
        lc_http_run(p, r);
        return;
    }
    if (r->framing != NULL) {
        lc_framed_run(p, r);
        return;
    }
    if (r->flow != NULL) {
        lc_flow_run(p, r);
        return;
    }
    for (d = 0; d < 2 && r->state == RELAYING; d++)
        lc_pump(p, r, d, &budget[d]);
    /* The limit may have been reached by the second direction; the first still holds something. */
    if (r->state == RELAYING && r->limited && r->hold[0] == NULL && r->hold[1] == NULL)
        lc_relay_end(p, r, LC_END_LIMIT, 0, 0);
    for (d = 0; d < 2 && r->state == RELAYING; d++)
        if (r->side[d] & BROKEN)
            look_for_error(p, r, d);
}

static int inexact(int fd)
{
#ifdef SO_DOMAIN
    int domain = 0;
    socklen_t len = sizeof domain;

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0
        || (domain != AF_INET && domain != AF_INET6);
#else
    (void)fd;
    return 1;
#endif
}

/* Both descriptors are there and connected. */
int lc_relay_start(struct lc_plane *p, struct relay *r)
{
    int side, err = 0;

    r->state = RELAYING;
    r->last = p->now;
    LC_ADD(p->relayed, 1);
    for (side = 0; side < 2 && err == 0; side++) {
        int fd = LC_GET(r->fd[side]);

        r->side[side] |= WRITABLE;
        int connected = side == 1 && r->job != NULL;    /* here, and the poller has it already */

        if (!connected && r->listener < 0 && inexact(fd))
            r->side[side] |= EXACT;
        if (!connected)
            err = lc_poll_add(p, fd, lc_key(r, side));
        if (err < 0)
            lc_relay_end(p, r, LC_END_ERROR, -err, side + 1);
    }
    free(r->job);
    r->job = NULL;
    if (err == 0 && due(r) != UINT64_MAX && (err = lc_timer_set(p, r, due(r))) < 0)
        lc_relay_end(p, r, LC_END_ERROR, -err, 0);
    if (err == 0)
        lc_ready(p, r);
    return err;
}
