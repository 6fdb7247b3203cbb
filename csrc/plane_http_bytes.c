/* Buffers of sessions, and moving their bytes: a session that waits for its client holds none. */
#include "plane_http.h"

#include <stdlib.h>

struct buffer *lc_buffer(struct lc_plane *p, size_t room)
{
    struct http_plane *hp = p->http;
    struct buffer *b = hp->spare;

    if (b != NULL && room <= LC_ROOM) {
        hp->spare = b->next;
        hp->spares--;
    } else {
        if (room < LC_ROOM)
            room = LC_ROOM;
        if ((b = malloc(sizeof *b + room)) == NULL)
            return NULL;
        b->room = (uint32_t)room;
    }
    b->next = NULL;
    b->at = b->size = 0;
    return b;
}

void lc_buffer_free(struct lc_plane *p, struct buffer **of)
{
    struct http_plane *hp = p->http;
    struct buffer *b = *of;

    *of = NULL;
    if (b == NULL)
        return;
    if (b->room != LC_ROOM || hp->spares == LC_SPARES) {
        free(b);
        return;
    }
    b->next = hp->spare;
    hp->spare = b;
    hp->spares++;
}

/* Room for `size` bytes more behind what there is. Offsets into the buffer stay what they are. */
int lc_buffer_room(struct lc_plane *p, struct buffer **of, size_t size)
{
    struct buffer *b = *of, *more;
    size_t room;

    if (b == NULL)
        return (*of = lc_buffer(p, size)) == NULL ? -ENOMEM : 0;
    if (b->room - b->size >= size)
        return 0;
    room = (size_t)b->size + size + LC_ROOM;
    if (room > UINT32_MAX / 2 || (more = lc_buffer(p, room)) == NULL)
        return -ENOMEM;
    memcpy(more->bytes, b->bytes, b->size);
    more->at = b->at;
    more->size = b->size;
    lc_buffer_free(p, of);
    *of = more;
    return 0;
}

int lc_buffer_add(struct lc_plane *p, struct buffer **of, const uint8_t *bytes, size_t size)
{
    int err = lc_buffer_room(p, of, size);

    if (err < 0)
        return err;
    memcpy((*of)->bytes + (*of)->size, bytes, size);
    (*of)->size += (uint32_t)size;
    return 0;
}

/* To the sink of `d`, behind what it has not taken yet: 0, or the sink's errno. The direction's limit
 * is then right behind it. */
int lc_deliver(struct lc_plane *p, struct relay *r, int d, const uint8_t *bytes, size_t size)
{
    struct hold *h = r->hold[d], *more = NULL;
    size_t sent = 0, left = h == NULL ? 0 : h->size - h->done;
    int err = 0;

    if (h == NULL)
        sent = lc_push(p, r, d, bytes, size, &err);
    if (err != 0)
        return err;
    if (sent < size) {
        if ((more = lc_hold_bytes(NULL, left + size - sent)) == NULL)
            return ENOMEM;
        if (h != NULL)
            memcpy(more->bytes, h->bytes + h->done, left);
        memcpy(more->bytes + left, bytes + sent, size - sent);
        free(h);
        r->hold[d] = more;
        left = more->size;
    }
    r->limit[d] = LC_GET(r->count[d]) + left;
    return 0;
}

/* Bytes read, 0 the end, -errno. After less than `room` there is no more, as in a relay. */
ssize_t lc_receive(struct relay *r, int side, uint8_t *bytes, size_t room)
{
    ssize_t n;

    do
        n = recv(LC_GET(r->fd[side]), bytes, room, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EAGAIN)
        return -errno;
    if (n < 0 || ((size_t)n < room && n > 0 && !(r->side[side] & (EXACT | HUNG))))
        r->side[side] &= (uint8_t)~READABLE;
    return n < 0 ? -EAGAIN : n;
}

/* Nothing waits to be read, and the other end is there. */
int lc_quiet(struct relay *r, int side)
{
    uint8_t byte;
    ssize_t n;

    if (r->side[side] & HUNG)
        return 0;
    if (!(r->side[side] & (READABLE | BROKEN)))
        return 1;
    n = recv(LC_GET(r->fd[side]), &byte, 1, MSG_PEEK);
    if (n >= 0 || (errno != EAGAIN && errno != EINTR))
        return 0;
    r->side[side] &= (uint8_t)~(READABLE | BROKEN);
    return 1;
}

/* -- bodies ---------------------------------------------------------------------------------- */

/* Reads behind what the walker left over, and sends on what it keeps. */
static int walk(struct lc_plane *p, struct relay *r, int d, size_t *budget)
{
    struct http *h = r->http;
    struct buffer **rest = d == 0 ? &h->in : &h->part;
    uint32_t before = d == 0 ? h->in->at + h->head.size + h->taken : 0;
    size_t carried = *rest == NULL ? 0 : (*rest)->size - before, used, kept, size;
    uint8_t *bytes = p->http->read;
    ssize_t n;
    int err, state;

    if (carried > 0)
        memcpy(bytes, (*rest)->bytes + before, carried);
    n = lc_receive(r, d, bytes + carried, LC_COPY);
    if (n == -EAGAIN)
        return 0;
    if (n < 0) {
        lc_http_broke(p, r, d, d, (int)-n);
        return 0;
    }
    if (n == 0) {
        lc_http_ended(p, r, d);
        return 0;
    }
    size = carried + (size_t)n;
    *budget -= (size_t)n < *budget ? (size_t)n : *budget;
    r->last = p->now;
    state = lc_chunks_walk(&h->chunks[d], &h->service->limits, bytes, size, &used, &kept);
    if (state == LC_HEAD_REFUSED) {
        lc_http_broke(p, r, d, d, EPROTO);
        return 0;
    }
    if (d == 0)
        h->is |= STREAMED;
    if (*rest != NULL)
        (*rest)->size = before;
    if (used < size && state == LC_HEAD_WHOLE && d == 1)
        h->is |= SPOILED;
    else if (used < size && lc_buffer_add(p, rest, bytes + used, size - used) < 0) {
        lc_relay_end(p, r, LC_END_ERROR, ENOMEM, 0);
        return 0;
    }
    if (state == LC_HEAD_WHOLE)
        h->body[d] = LC_BODY_NONE;
    if (kept > 0 && (err = lc_deliver(p, r, d, bytes, kept)) != 0) {
        lc_http_broke(p, r, d, !d, err);
        return 0;
    }
    if (d == 0 && h->chunks[0].data > h->service->body) {
        lc_http_refuse(p, r, 413);
        return 0;
    }
    return 1;
}

/* What follows a head, until something blocks. It is complete once nothing is held, and nothing
 * left: lc_http_complete. */
void lc_http_body(struct lc_plane *p, struct relay *r, int d, size_t *budget)
{
    struct http *h = r->http;

    if (h->body[d] != LC_BODY_CHUNKED) {
        lc_pump(p, r, d, budget);
        return;
    }
    while (r->http != NULL && h->body[d] == LC_BODY_CHUNKED) {
        if (r->hold[d] != NULL)
            lc_pump(p, r, d, budget);   /* at its limit: only what is held goes out */
        if (r->http == NULL || r->hold[d] != NULL || !(r->side[d] & READABLE))
            return;
        if (*budget == 0) {
            lc_ready(p, r);
            return;
        }
        if (!walk(p, r, d, budget))
            return;
    }
    if (r->http != NULL && r->hold[d] != NULL)
        lc_pump(p, r, d, budget);
}

/* All of it was delivered. */
int lc_http_complete(const struct relay *r, int d)
{
    return r->hold[d] == NULL && r->http->body[d] != LC_BODY_CHUNKED
        && LC_GET(r->count[d]) >= r->limit[d];
}
