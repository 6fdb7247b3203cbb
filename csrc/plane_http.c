/* A session's life: one exchange after the other, its deadlines, its end. */
#include "plane_http.h"

#include <stdlib.h>

/* -- time ------------------------------------------------------------------------------------ */

/* A deadline that a request moves costs nothing: no entry of the heap is later than `shortest` from
 * now, and says then how much later it really is due. Where there is no memory for an entry, the
 * next request asks for one again. */
void lc_http_aim(struct lc_plane *p, struct relay *r, uint64_t due)
{
    uint64_t cap = p->now + r->http->service->shortest;

    if (due > cap)
        due = cap;
    if (r->place != 0 && p->heap[r->place - 1].due <= due)
        return;
    (void)lc_timer_set(p, r, due);
}

static int waits(const struct http *h)
{
    return h->in == NULL || h->in->at == h->in->size;
}

/* The client waits for 100 (Continue): it is the origin's turn. */
static int expects(const struct http *h)
{
    return (h->head.flags & LC_HEAD_EXPECT) && h->taken == 0 && !(h->is & (STREAMED | CONTINUED));
}

/* The rest of a request's body is the client's to send. */
static int client_owes(const struct http *h)
{
    return h->up == UP_BODY && !expects(h);
}

static uint64_t due(const struct relay *r)
{
    const struct http *h = r->http;
    const struct service *s = h->service;

    switch (h->up) {
    case UP_HEAD:
        return h->since + (waits(h) && !(h->is & FIRST) ? s->idle_time : s->head_time);
    case UP_ASKED:
        return UINT64_MAX;
    case UP_CONNECTING:
        return h->since + s->connect_time;
    case UP_LINGER:
        return r->last + LC_LINGER_QUIET < h->since + LC_LINGER ? r->last + LC_LINGER_QUIET
                                                                : h->since + LC_LINGER;
    }
    if (h->down == DOWN_ASKED)
        return UINT64_MAX;
    return r->last + (client_owes(h) || h->down == DOWN_BODY ? s->body_time : s->response_time);
}

static void expire(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;

    if (h->up == UP_HEAD && waits(h) && !(h->is & FIRST))
        lc_http_close(p, r);
    else if (h->up == UP_HEAD && waits(h))
        lc_http_ask(p, r, LC_HTTP_SILENT, 408);
    else if (h->up == UP_HEAD)
        lc_http_ask(p, r, LC_HTTP_REFUSED, 408);
    else if (h->up == UP_CONNECTING)
        lc_http_fail(p, r, LC_HTTP_NO_CONNECT, ETIMEDOUT);
    else if (h->up == UP_LINGER && p->now < h->since + LC_LINGER && lc_unsent(LC_GET(r->fd[0])))
        r->last = p->now;
    else if (h->up == UP_LINGER)
        lc_relay_end(p, r, LC_END_EOF, 0, 0);
    else if (h->down == DOWN_BODY)
        lc_http_cut(p, r, LC_END_IDLE, ETIMEDOUT, 0);
    else if (client_owes(h) && r->hold[0] == NULL)
        lc_http_refuse(p, r, 408);      /* the client sends nothing of its body */
    else
        lc_http_fail(p, r, LC_HTTP_NO_TIME, ETIMEDOUT);
}

void lc_http_timer(struct lc_plane *p, struct relay *r)
{
    uint64_t when = due(r);

    if (when <= p->now)
        expire(p, r);
    if (r->http != NULL)
        lc_http_aim(p, r, due(r));
}

/* -- the end --------------------------------------------------------------------------------- */

/* The session's own part of lc_relay_end: what is left is the client, and an upstream in the middle
 * of something. */
void lc_http_end(struct lc_plane *p, struct relay *r, int what)
{
    struct http *h = r->http;
    int busy = h->down != DOWN_NONE || h->up == UP_CONNECTING || h->up == UP_BODY, told;

    told = atomic_load(&h->told);
    if (busy || (h->up == UP_ASKED && h->question != LC_HTTP_SILENT && told != TOLD_TAKEN))
        lc_http_log(p, r, what);
    if (!busy && LC_GET(r->fd[1]) >= 0)
        lc_http_keep(p, r);
    lc_buffer_free(p, &h->out);
    /* Who fetches reads the buffers of a question, and frees it where its session has ended. */
    pthread_mutex_lock(&p->lock);
    r->http = NULL;
    told = atomic_load(&h->told);
    h->id = 0;
    lc_buffer_free(p, &h->in);
    lc_buffer_free(p, &h->part);
    pthread_mutex_unlock(&p->lock);
    if (told == TOLD_TAKEN)
        atomic_store_explicit(&r->fd[0], -1, memory_order_relaxed);
    else if (what == LC_END_EOF && LC_GET(r->fd[0]) >= 0)
        (void)lc_finish(LC_GET(r->fd[0]));
    if (told != TOLD_LISTED && told != TOLD_WAITING)
        free(h);
}

/* A side broke while direction `d` read from it or wrote to it. */
void lc_http_broke(struct lc_plane *p, struct relay *r, int d, int side, int err)
{
    struct http *h = r->http;

    if (d == 0 && side == 1) {
        /* What it answered before it took no more may be there. */
        h->up = UP_LOST;
        h->is |= SPOILED;
        lc_hold_drop(p, r, 0);
        r->limit[0] = LC_GET(r->count[0]);
        r->side[1] |= READABLE;
        lc_ready(p, r);
    } else if (d == 0 && err == EPROTO && h->down == DOWN_HEAD) {
        lc_http_refuse(p, r, 400);
    } else {
        int reset = err == ECONNRESET || err == EPIPE || err == ECONNABORTED;
        int what = reset ? LC_END_RESET : LC_END_ERROR;

        if (side == 1)
            lc_http_cut(p, r, what, err, 2);
        else
            lc_relay_end(p, r, what, err, 1);
    }
}

/* A body's source has ended. A part must not look like the whole. */
void lc_http_ended(struct lc_plane *p, struct relay *r, int d)
{
    struct http *h = r->http;

    if (d == 1 && h->body[1] == LC_BODY_CLOSE) {
        h->body[1] = LC_BODY_NONE;
        r->limit[1] = LC_GET(r->count[1]);
        return;
    }
    lc_http_cut(p, r, LC_END_RESET, ECONNRESET, d + 1);
}

/* No more from this client: it gets its last response to the end, even where it is still sending, or
 * sends something before it has all of it. */
void lc_http_close(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    int quiet = h->up != UP_LOST && h->up != UP_BODY && waits(h) && lc_quiet(r, 0)
        && !lc_unsent(LC_GET(r->fd[0]));

    if (LC_GET(r->fd[1]) >= 0)
        lc_http_keep(p, r);
    if (quiet) {
        lc_relay_end(p, r, LC_END_EOF, 0, 0);
        return;
    }
    lc_buffer_free(p, &h->in);
    (void)lc_finish(LC_GET(r->fd[0]));
    h->up = UP_LINGER;
    h->down = DOWN_NONE;
    h->since = r->last = p->now;
    lc_http_aim(p, r, p->now + LC_LINGER_QUIET);
    lc_ready(p, r);
}

/* An exchange that breaks off. A reset says so, and takes along what the client has not had of the
 * responses before it: where there is such, the connection ends in order, and the framing says that
 * the last response is a part. */
void lc_http_cut(struct lc_plane *p, struct relay *r, int what, int err, int side)
{
    struct http *h = r->http;
    uint64_t sent = LC_GET(r->count[1]) - h->count[1];
    int until_close = h->down == DOWN_BODY && h->reply.body == LC_BODY_CLOSE;

    if (until_close || (uint64_t)lc_unsent(LC_GET(r->fd[0])) <= sent) {
        lc_relay_end(p, r, what, err, side);
        return;
    }
    lc_hold_drop(p, r, 1);
    lc_http_log(p, r, what);
    lc_http_drop(p, r);
    h->up = UP_LOST;
    lc_http_close(p, r);
}

/* -- exchanges ------------------------------------------------------------------------------- */

/* The response was delivered. An early one ends the connection: the rest of the request would be
 * taken for the next. */
static void finish(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;

    lc_http_log(p, r, LC_END_EOF);
    lc_buffer_free(p, &h->part);
    lc_buffer_free(p, &h->out);
    if (LC_GET(r->fd[1]) >= 0 && (h->up != UP_DONE || (h->is & SPOILED) || !lc_quiet(r, 1)))
        lc_http_drop(p, r);
    h->down = DOWN_NONE;
    if (h->up != UP_DONE || !(h->is & CLIENT_KEEPS) || p->draining) {
        if (h->up == UP_DONE && h->in != NULL)
            h->in->at += h->head.size + h->taken;
        lc_http_close(p, r);
        return;
    }
    h->in->at += h->head.size + h->taken;
    if (h->in->at == h->in->size)
        lc_buffer_free(p, &h->in);
    h->up = UP_HEAD;
    h->is = 0;
    h->since = p->now;
    r->limit[0] = r->limit[1] = UINT64_MAX;
    r->big[0] = r->big[1] = 0;
    memset(&h->head, 0, sizeof h->head);
}

/* Also while it is asked about, unless somebody has taken it. */
static int client_broke(struct lc_plane *p, struct relay *r)
{
    int err = 0;

    r->side[0] &= (uint8_t)~BROKEN;
    pthread_mutex_lock(&p->lock);
    if (atomic_load(&r->http->told) != TOLD_TAKEN)
        err = lc_error(LC_GET(r->fd[0]));
    pthread_mutex_unlock(&p->lock);
    if (err > 0)
        lc_relay_end(p, r, LC_END_RESET, err, 1);
    return err > 0;
}

void lc_http_run(struct lc_plane *p, struct relay *r)
{
    size_t budget[2] = {LC_BUDGET, LC_BUDGET};
    struct http *h = r->http;

    if ((r->side[0] & BROKEN) && client_broke(p, r))
        return;
    for (;;) {
        lc_http_up(p, r, &budget[0]);
        if (r->http == NULL)
            return;
        lc_http_down(p, r, &budget[1]);
        if (r->http == NULL || h->down != DOWN_DONE)
            return;
        finish(p, r);
        if (r->http == NULL || h->up != UP_HEAD)
            return;
    }
}

/* `r` is a connected client that the poller does not know yet. */
void lc_http_start(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    int err;

    LC_ADD(p->live, 1);
    r->began = p->now_ns;
    r->state = RELAYING;
    r->silent = 1;
    r->last = h->since = p->now;
    r->side[0] |= WRITABLE;
    h->is = FIRST;
    h->route.to.family = 0;
    (void)lc_set_nodelay(LC_GET(r->fd[0]));
    err = lc_poll_add(p, LC_GET(r->fd[0]), lc_key(r, 0));
    if (err < 0) {
        lc_relay_end(p, r, LC_END_ERROR, -err, 1);
        return;
    }
    if (h->in != NULL)
        lc_ready(p, r);
    lc_http_aim(p, r, p->now + h->service->head_time);
}

/* A listener's connection. */
void lc_http_accepted(struct lc_plane *p, uint32_t number, const struct lc_accepted *got,
                      const struct lc_origin *o)
{
    const struct lc_listen *how = &p->listener[number].how;
    uint32_t service = (uint32_t)how->service - 1;
    struct relay *r;

    pthread_mutex_lock(&p->lock);
    r = lc_http_make(p, service, got->fd, &o->peer, &o->original, o->engine);
    pthread_mutex_unlock(&p->lock);
    if (r == NULL) {
        lc_reset_fd(got->fd);
        return;
    }
    r->listener = (int32_t)number;
    p->listener[number].live++;
    r->http->has_mark = how->has_mark != 0;
    r->http->mark = how->mark;
    lc_http_start(p, r);
}
