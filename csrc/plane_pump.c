/* The bytes of one direction, from its source to its sink: by copying, or in bulk, up to a limit. */
#include "plane.h"

#include <stdlib.h>
#include <unistd.h>

struct hold *lc_hold_bytes(const uint8_t *bytes, size_t size)
{
    struct hold *h = malloc(sizeof *h + size);

    if (h == NULL)
        return NULL;
    h->pipe[0] = h->pipe[1] = -1;
    h->size = size;
    h->done = 0;
    if (bytes != NULL)
        memcpy(h->bytes, bytes, size);
    return h;
}

void lc_hold_drop(struct lc_plane *p, struct relay *r, int d)
{
    struct hold *h = r->hold[d];

    r->hold[d] = NULL;
    if (h != NULL && h->pipe[0] >= 0)
        lc_bulk_drop(p, r, d, h);
    free(h);
}

static void delivered(struct lc_plane *p, struct relay *r, int d, size_t n)
{
    LC_ADD(r->count[d], n);
    if (d == 0)
        LC_ADD(p->up, n);
    else
        LC_ADD(p->down, n);
    r->last = p->now;
}

/* Sends until all is gone or the sink is full: bytes sent; *err is the sink's errno, or 0. */
size_t lc_push(struct lc_plane *p, struct relay *r, int d, const uint8_t *bytes, size_t size,
                   int *err)
{
    size_t sent = 0;

    *err = 0;
    while (sent < size) {
        ssize_t n = send(LC_GET(r->fd[!d]), bytes + sent, size - sent, MSG_NOSIGNAL);

        if (n >= 0) {
            sent += (size_t)n;
            continue;
        }
        /* FACT: OpenBSD tells of a splice at its maximum by EFBIG, left on its source for the next
         * call of any kind (sosplice(9)). */
        if (errno == EINTR || errno == EFBIG)
            continue;
        if (errno == EAGAIN)
            r->side[!d] &= (uint8_t)~WRITABLE;
        else
            *err = errno;
        break;
    }
    if (sent > 0)
        delivered(p, r, d, sent);
    return sent;
}

/* 0: nothing is held any more; -EAGAIN; -errno of the sink. */
static int drain(struct lc_plane *p, struct relay *r, int d)
{
    struct hold *h = r->hold[d];
    uint64_t before = LC_GET(r->count[d]);
    int err;

    if (!(r->side[!d] & WRITABLE))
        return -EAGAIN;
    if (h->pipe[0] >= 0) {
        err = lc_bulk_drain(p, r, d);
        if (LC_GET(r->count[d]) != before)
            r->last = p->now;
        if (err < 0)
            return err;
        if (r->hold[d] == NULL)
            return 0;
        h = r->hold[d];         /* what the sink would not take from a pipe, as bytes */
    }
    h->done += lc_push(p, r, d, h->bytes + h->done, h->size - h->done, &err);
    if (err != 0)
        return -err;
    if (h->done < h->size)
        return -EAGAIN;
    lc_hold_drop(p, r, d);
    return 0;
}

/* One read and its write by copying: bytes read, 0 the source's end, -errno of the source. */
static ssize_t copy(struct lc_plane *p, struct relay *r, int d, size_t most, int *sink)
{
    size_t want = most < LC_COPY ? most : LC_COPY, sent;
    ssize_t n;

    do
        n = recv(LC_GET(r->fd[d]), p->buffer, want, 0);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    sent = lc_push(p, r, d, p->buffer, (size_t)n, sink);
    if (sent < (size_t)n && *sink == 0) {
        r->hold[d] = lc_hold_bytes(p->buffer + sent, (size_t)n - sent);
        if (r->hold[d] == NULL)
            *sink = ENOMEM;
    }
    /* FACT: a stream's short read has emptied the queue, so there will be an event (epoll(7));
     * not so at an urgent byte, or before a descriptor passed over a Unix socket. */
    if ((size_t)n < want && !(r->side[d] & (EXACT | HUNG)))
        r->side[d] &= (uint8_t)~READABLE;
    return n;
}

static int limits_reached(const struct relay *r)
{
    return (r->limit[0] == UINT64_MAX || (r->side[0] & FINISHED))
        && (r->limit[1] == UINT64_MAX || (r->side[1] & FINISHED));
}

/* The source of `d` has ended, and all of it has been delivered. */
static void pass_end(struct lc_plane *p, struct relay *r, int d)
{
    if (r->http != NULL) {
        lc_http_ended(p, r, d);
        return;
    }
    r->side[d] |= FINISHED;
    (void)lc_finish(LC_GET(r->fd[!d]));
    if (!(r->side[!d] & FINISHED))
        return;
    /* One that has reached its limit has not come to its end: its sender may go on. */
    lc_relay_end(p, r, LC_GET(r->count[!d]) >= r->limit[!d] ? LC_END_LIMIT : LC_END_EOF, 0, 0);
}

static void broke(struct lc_plane *p, struct relay *r, int d, int side, int err)
{
    if (r->http != NULL)
        lc_http_broke(p, r, d, side, err);
    else
        lc_relay_broke(p, r, side, err);
}

/* Moves bytes of one direction until something blocks, ends, or the budget is spent. */
void lc_pump(struct lc_plane *p, struct relay *r, int d, size_t *budget)
{
    while (r->state == RELAYING) {
        uint64_t left = r->limit[d] - LC_GET(r->count[d]);
        size_t most = left < LC_BUDGET ? (size_t)left : LC_BUDGET;
        ssize_t n = -ENOTSUP;
        int err, sink = 0;

        if (r->hold[d] != NULL) {
            err = drain(p, r, d);
            if (err < 0 && err != -EAGAIN)
                broke(p, r, d, !d, -err);
            if (err < 0)
                return;
            continue;
        }
        if (r->limited || (r->side[d] & FINISHED))
            return;
        if (left == 0 && r->http != NULL)
            return;
        if (left == 0) {
            r->side[d] |= FINISHED;
            r->limited = (uint8_t)limits_reached(r);
            if (r->limited)
                lc_ready(p, r);     /* the other direction may be moving without the thread */
            return;
        }
        if (!(r->side[d] & READABLE))
            return;
        if (*budget == 0) {
            lc_ready(p, r);
            return;
        }
        if (r->big[d] >= 2 && !(r->side[d] & NO_SPLICE))
            n = lc_bulk(p, r, d, most, &sink);
        if (n == -ENOTSUP)
            n = copy(p, r, d, most, &sink);
        if (n == -EAGAIN) {
            r->side[d] &= (uint8_t)~READABLE;
            return;
        }
        if (n < 0) {
            broke(p, r, d, d, (int)-n);
            return;
        }
        if (n == 0) {
            pass_end(p, r, d);
            return;
        }
        r->last = p->now;
        r->big[d] = (uint8_t)(n < LC_BIG ? 0 : r->big[d] < 2 ? r->big[d] + 1 : 2);
        *budget -= (size_t)n < *budget ? (size_t)n : *budget;
        if (sink != 0) {
            broke(p, r, d, !d, sink);
            return;
        }
    }
}
