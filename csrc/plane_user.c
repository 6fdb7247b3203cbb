/* Relays in, completions out: what the other threads call. */
#include "plane.h"

#include <stdlib.h>

static uint32_t patience(int64_t ms)
{
    return ms < 0 ? LC_NONE : ms >= LC_NONE ? LC_NONE - 1 : (uint32_t)ms;
}

int lc_say_how(struct relay *r, const struct lc_pair *pair)
{
    if (pair->prefix_size > 0
        && (r->hold[0] = lc_hold_bytes(pair->prefix, pair->prefix_size)) == NULL)
        return -ENOMEM;
    if (pair->prefix_down_size > 0
        && (r->hold[1] = lc_hold_bytes(pair->prefix_down, pair->prefix_down_size)) == NULL) {
        free(r->hold[0]);
        r->hold[0] = NULL;
        return -ENOMEM;
    }
    r->idle = patience(pair->idle);
    r->total = patience(pair->total);
    if (pair->limit_up >= 0)
        r->limit[0] = (uint64_t)pair->limit_up;
    if (pair->limit_down >= 0)
        r->limit[1] = (uint64_t)pair->limit_down;
    if (r->job != NULL)
        r->job->timeout = patience(pair->timeout);
    return 0;
}

static int fill(struct relay *r, const struct lc_pair *pair)
{
    if (pair->upstream < 0) {
        if ((r->job = calloc(1, sizeof *r->job)) == NULL)
            return -ENOMEM;
        r->job->open = *pair->open;
        r->job->to = *pair->to;
    }
    r->trail = pair->trail;
    atomic_store_explicit(&r->fd[0], pair->client, memory_order_relaxed);
    atomic_store_explicit(&r->fd[1], pair->upstream, memory_order_relaxed);
    return lc_say_how(r, pair);
}

int lc_plane_submit(struct lc_plane *p, struct lc_pair *pairs, int n)
{
    int i, err;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    err = p->closed ? -ESHUTDOWN : lc_reserve(p, (size_t)n);
    for (i = 0; i < n && err == 0; i++) {
        struct relay *r = lc_take(p);

        if (r == NULL) {
            err = -ENOMEM;
            break;
        }
        pairs[i].id = lc_id(r);
        err = fill(r, &pairs[i]);
    }
    while (err < 0 && i-- > 0) {
        struct relay *r = lc_by_id(p, pairs[i].id);

        free(r->hold[0]);
        free(r->hold[1]);
        free(r->job);
        lc_give(p, r);
    }
    for (i = 0; i < n && err == 0; i++) {
        struct command start = {.what = DO_START, .id = pairs[i].id};
        (void)lc_command(p, &start);
    }
    pthread_mutex_unlock(&p->lock);
    return err < 0 ? err : n;
}

static void describe(struct relay *r, struct lc_done *out)
{
    memset(out, 0, sizeof *out);
    out->id = lc_id(r);
    out->client = LC_GET(r->fd[0]);
    out->upstream = LC_GET(r->fd[1]);
    out->listener = r->listener;
    out->engine = -1;
    out->up = LC_GET(r->count[0]);
    out->down = LC_GET(r->count[1]);
    if (r->job != NULL) {       /* asked, or refused */
        out->peer = r->job->peer;
        out->original = r->job->to;
        out->engine = r->job->engine;
    }
    if (r->state == ASKED) {
        out->what = LC_ASKED;
        return;
    }
    out->what = r->what;
    out->err = r->err;
    out->side = r->blame;
    out->seconds = (double)r->began / 1e9;
    out->trail = r->what == LC_CONNECTED ? r->trail : 0;
}

static void describe_nobody(int what, int listener, struct lc_done *out)
{
    memset(out, 0, sizeof *out);
    out->what = what;
    out->client = out->upstream = out->engine = -1;
    out->listener = listener;
}

void lc_hush(struct lc_plane *p)
{
    if (p->done == LC_NONE && p->tell_over == 0 && !p->tell_drained && !lc_http_waiting(p))
        lc_bell_quiet(p->notify);
}

int lc_plane_reap(struct lc_plane *p, struct lc_done *out, int max)
{
    int i, n = 0;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    while (n < max && p->done != LC_NONE) {
        struct relay *r = lc_slot(p, p->done);

        p->done = r->next;
        r->next = LC_NONE;
        describe(r, &out[n]);
        out[n++].framed = lc_framed_leave(r);
        if (r->state == ASKED) {
            r->what = 0;
            continue;
        }
        free(r->job);
        r->job = NULL;
        lc_give(p, r);
    }
    /* Behind all that came by them, so that their numbers are free. */
    for (i = 0; n < max && p->tell_over != 0; i++) {
        uint64_t bit = UINT64_C(1) << i;

        if (!(p->tell_over & bit))
            continue;
        p->tell_over &= ~bit;
        p->unused |= bit;
        describe_nobody(LC_CLOSED, i, &out[n++]);
    }
    if (n < max && p->tell_drained) {
        describe_nobody(LC_DRAINED, -1, &out[n++]);
        p->tell_drained = 0;
    }
    lc_hush(p);
    pthread_mutex_unlock(&p->lock);
    return n;
}

int lc_plane_fd(struct lc_plane *p)
{
    return lc_alive(p) ? p->notify[0] : -ESRCH;
}

static int say(struct lc_plane *p, const struct command *c)
{
    int err;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    if (c->what == DO_DRAIN && !p->closed)
        p->closed = 1;
    err = lc_command(p, c);
    pthread_mutex_unlock(&p->lock);
    return err;
}

int lc_plane_kill(struct lc_plane *p, uint64_t id)
{
    struct command c = {.what = DO_KILL, .id = id};

    return say(p, &c);
}

int lc_plane_drain(struct lc_plane *p)
{
    struct command c = {.what = DO_DRAIN};

    return say(p, &c);
}

int lc_plane_totals(struct lc_plane *p, struct lc_totals *out)
{
    out->accepted = LC_GET(p->accepted);
    out->relayed = LC_GET(p->relayed);
    out->asked = LC_GET(p->asked);
    out->denied = LC_GET(p->denied);
    out->looped = LC_GET(p->looped);
    out->failed = LC_GET(p->failed);
    out->ended = LC_GET(p->finished);
    out->up = LC_GET(p->up);
    out->down = LC_GET(p->down);
    out->live = LC_GET(p->live);
    out->requests = LC_GET(p->requests);
    out->datagrams = LC_GET(p->datagrams);
    out->dropped = LC_GET(p->dropped);
    out->evicted = LC_GET(p->evicted);
    return lc_alive(p) ? 0 : -ESRCH;
}
