/* Upstreams: the one that a session has, those that wait for the next session, and new ones.
 *
 * An idle upstream stays with its client, so that a request costs the poller nothing. It goes to the
 * pool when the client goes, or asks for another. In the pool it is a slot of its own; whatever it
 * says there is its end. Only who asks for the very same route gets it: the address, the name it
 * was connected in, the mark. */
#include "plane_http.h"

#include <stdlib.h>
#include <unistd.h>

static uint32_t bucket(const struct route *route)
{
    const uint8_t *b = (const uint8_t *)route;
    uint64_t h = 14695981039346656037u;
    size_t i;

    for (i = 0; i < sizeof *route; i++)
        h = (h ^ b[i]) * 1099511628211u;
    return (uint32_t)(h ^ h >> 32) % LC_BUCKETS;
}

/* -- the pool -------------------------------------------------------------------------------- */

/* Out of the pool; its descriptor and its trail are the caller's. */
static int leave(struct lc_plane *p, struct relay *r, uint64_t *trail)
{
    struct http_plane *hp = p->http;
    uint32_t *place = &hp->bucket[bucket(&r->pooled->route)];
    int fd = LC_GET(r->fd[1]);

    while (*place != r->slot)
        place = &lc_slot(p, *place)->pooled->chain;
    *place = r->pooled->chain;
    if (r->prev == LC_NONE)
        hp->oldest = r->next;
    else
        lc_slot(p, r->prev)->next = r->next;
    if (r->next == LC_NONE)
        hp->newest = r->prev;
    else
        lc_slot(p, r->next)->prev = r->prev;
    hp->pooled--;
    lc_timer_clear(p, r);
    free(r->pooled);
    r->pooled = NULL;
    *trail = r->trail;
    r->trail = 0;
    pthread_mutex_lock(&p->lock);
    lc_give(p, r);
    pthread_mutex_unlock(&p->lock);
    return fd;
}

static void part(int fd, uint64_t trail)
{
    if (trail != 0)
        (void)lc_trail_remove(trail);
    (void)lc_finish(fd);        /* a forked child may hold it, too */
    close(fd);
}

void lc_pool_end(struct lc_plane *p, struct relay *r)
{
    uint64_t trail;
    int fd = leave(p, r, &trail);

    part(fd, trail);
}

/* 1: one that waited for longest was closed: a descriptor is free. */
int lc_pool_spare(struct lc_plane *p)
{
    if (p->http == NULL || p->http->oldest == LC_NONE)
        return 0;
    lc_pool_end(p, lc_slot(p, p->http->oldest));
    return 1;
}

void lc_pool_clear(struct lc_plane *p)
{
    while (lc_pool_spare(p))
        ;
}

static int enter(struct lc_plane *p, struct relay *from)
{
    struct http_plane *hp = p->http;
    const struct service *s = from->http->service;
    struct pooled *pooled = malloc(sizeof *pooled);
    struct relay *r = NULL;
    uint32_t place;

    if (pooled == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&p->lock);
    r = lc_take(p);
    pthread_mutex_unlock(&p->lock);
    if (r == NULL || lc_timer_set(p, r, p->now + s->pool_idle) < 0
        || lc_poll_move(p, LC_GET(from->fd[1]), lc_key(r, 1)) < 0) {
        free(pooled);
        if (r == NULL)
            return -ENOMEM;
        lc_timer_clear(p, r);
        pthread_mutex_lock(&p->lock);
        lc_give(p, r);
        pthread_mutex_unlock(&p->lock);
        return -ENOMEM;
    }
    place = bucket(&from->http->route);
    pooled->route = from->http->route;
    pooled->chain = hp->bucket[place];
    hp->bucket[place] = r->slot;
    r->pooled = pooled;
    r->state = POOLED;
    r->trail = from->trail;
    atomic_store_explicit(&r->fd[1], LC_GET(from->fd[1]), memory_order_relaxed);
    r->next = LC_NONE;
    r->prev = hp->newest;
    if (hp->newest == LC_NONE)
        hp->oldest = r->slot;
    else
        lc_slot(p, hp->newest)->next = r->slot;
    hp->newest = r->slot;
    hp->pooled++;
    while (hp->pooled > s->pool_size)
        (void)lc_pool_spare(p);
    return 0;
}

/* -- of a session ---------------------------------------------------------------------------- */

static void forget(struct lc_plane *p, struct relay *r)
{
    lc_hold_drop(p, r, 0);
    atomic_store_explicit(&r->fd[1], -1, memory_order_relaxed);
    r->side[1] = 0;
    r->trail = 0;
    r->http->route.to.family = 0;
    r->http->bound = 0;
}

/* The upstream is closed. */
void lc_http_drop(struct lc_plane *p, struct relay *r)
{
    int fd = LC_GET(r->fd[1]);

    free(r->job);
    r->job = NULL;
    if (fd < 0)
        return;
    lc_poll_remove(p, fd);
    part(fd, r->trail);
    forget(p, r);
}

/* The session needs it no more. */
void lc_http_keep(struct lc_plane *p, struct relay *r)
{
    if (p->draining || p->stopping || r->http->service->pool_size == 0 || (r->http->is & SPOILED)
        || r->http->bound || !lc_quiet(r, 1) || enter(p, r) < 0)
        lc_http_drop(p, r);
    else
        forget(p, r);
}

static int from_pool(struct lc_plane *p, struct relay *r, const struct route *to)
{
    struct http_plane *hp = p->http;
    uint32_t slot = hp->bucket[bucket(to)];

    while (slot != LC_NONE) {
        struct relay *idle = lc_slot(p, slot);
        uint64_t trail;
        int fd;

        slot = idle->pooled->chain;
        if (memcmp(&idle->pooled->route, to, sizeof *to) != 0)
            continue;
        idle->side[1] |= READABLE;      /* what came since the poll counts */
        if (!lc_quiet(idle, 1)) {
            lc_pool_end(p, idle);
            continue;
        }
        fd = leave(p, idle, &trail);
        if (lc_poll_move(p, fd, lc_key(r, 1)) < 0) {
            part(fd, trail);
            continue;
        }
        atomic_store_explicit(&r->fd[1], fd, memory_order_relaxed);
        r->trail = trail;
        r->side[1] = WRITABLE;
        r->http->route = *to;
        return 1;
    }
    return 0;
}

/* An upstream for this route: one that there is, or a new one. Then the request goes out. */
void lc_http_reach(struct lc_plane *p, struct relay *r, const struct route *to)
{
    struct http *h = r->http;

    if (LC_GET(r->fd[1]) >= 0) {
        if (memcmp(&h->route, to, sizeof *to) != 0)
            lc_http_keep(p, r);
        else if (!lc_quiet(r, 1))
            lc_http_drop(p, r);
    }
    if (LC_GET(r->fd[1]) >= 0 || from_pool(p, r, to)) {
        h->is |= REUSED;
        lc_http_send(p, r);
        return;
    }
    h->is &= (uint16_t)~REUSED;
    h->route = *to;
    lc_http_connect(p, r);
}

/* -- new ones -------------------------------------------------------------------------------- */

static int begin(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    struct job *job;
    int fd, err;

    if (lc_own_listener(&h->route.to))
        return -ELOOP;
    if ((job = r->job = calloc(1, sizeof *job)) == NULL)
        return -ENOMEM;
    job->to = h->route.to;
    job->open.family = h->route.to.family;
    job->open.type = SOCK_STREAM;
    job->open.flags = LC_REUSEADDR;
    job->open.engine = -1;
    job->open.has_mark = h->route.has_mark;
    job->open.mark = h->route.mark;
    job->open.address = h->route.source;
    if (h->route.spoofs) {
        if (h->service->spoofer < 0)
            return -ENOTSUP;
        job->open.flags |= LC_TPROXY_REM;
        job->open.engine = h->service->spoofer;
    }
    err = lc_connect_go(job, &fd, &r->trail);
    if (fd < 0)
        return err;
    atomic_store_explicit(&r->fd[1], fd, memory_order_relaxed);
    if (err < 0 && err != -EINPROGRESS)
        return err;
    (void)lc_set_nodelay(fd);
    r->side[1] = 0;
    return lc_poll_add(p, fd, lc_key(r, 1));
}

/* Connects to h->route. The poller tells of the end, also where it came at once. */
void lc_http_connect(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    struct route route = h->route;
    int err;

    h->up = UP_CONNECTING;
    h->since = p->now;
    err = begin(p, r);
    if ((err == -EMFILE || err == -ENFILE) && lc_pool_spare(p)) {
        lc_http_drop(p, r);
        h->route = route;
        err = begin(p, r);
    }
    if (err < 0) {
        if (err == -ELOOP)
            LC_ADD(p->looped, 1);
        lc_http_fail(p, r, LC_HTTP_NO_CONNECT, -err);
        return;
    }
    lc_http_aim(p, r, p->now + h->service->connect_time);
}

/* As lc_connect_event. */
void lc_http_connected(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    struct lc_addr peer;
    int fd = LC_GET(r->fd[1]), err;

    if (!(r->side[1] & (READABLE | WRITABLE | BROKEN | HUNG)))
        return;
    err = lc_error(fd);
    if (err == 0 && (err = -lc_peer(fd, &peer)) == ENOTCONN) {
        r->side[1] = 0;
        return;
    }
    if (err != 0) {
        lc_http_fail(p, r, LC_HTTP_NO_CONNECT, err < 0 ? -err : err);
        return;
    }
    free(r->job);
    r->job = NULL;
    if (h->is & TUNNEL)
        lc_http_tunnel_on(p, r);
    else
        lc_http_send(p, r);
}
