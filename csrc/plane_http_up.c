/* A request on its way: its head from the client, a question, and what the upstream gets. */
#include "plane_http.h"

#include <stdlib.h>

/* -- questions ------------------------------------------------------------------------------- */

static void enlist(struct lc_plane *p, struct relay *r, int question)
{
    struct http_plane *hp = p->http;
    struct http *h = r->http;

    h->question = (uint8_t)question;
    h->next = NULL;
    h->id = lc_id(r);
    atomic_store_explicit(&h->told, TOLD_LISTED, memory_order_relaxed);
    if (hp->asked == NULL)
        hp->asked = h;
    else
        hp->asked_tail->next = h;
    hp->asked_tail = h;
    LC_ADD(p->asked, 1);
}

void lc_http_ask(struct lc_plane *p, struct relay *r, int question, int status)
{
    struct http *h = r->http;

    if (h->up == UP_HEAD) {     /* the first of this exchange */
        h->began = p->now_ns;
        h->count[0] = LC_GET(r->count[0]);
        h->count[1] = LC_GET(r->count[1]);
        h->taken = 0;
        h->failed = 0;
        h->err = 0;
    }
    if (question == LC_HTTP_RESPONSE)
        h->down = DOWN_ASKED;
    else
        h->up = UP_ASKED;
    h->status = (uint16_t)status;
    enlist(p, r, question);
}

/* The upstream did not answer. What was sent to it is gone; Python may know another way, unless the
 * client has had a part of the response. */
void lc_http_fail(struct lc_plane *p, struct relay *r, int failed, int err)
{
    struct http *h = r->http;

    lc_http_drop(p, r);
    LC_ADD(p->failed, 1);
    if (h->down >= DOWN_ASKED) {
        lc_http_cut(p, r, LC_END_ERROR, err, 2);
        return;
    }
    h->down = DOWN_NONE;
    h->failed = (uint8_t)failed;
    h->err = err;
    lc_http_ask(p, r, LC_HTTP_FAILED, failed == LC_HTTP_NO_TIME ? 504 : 502);
}

/* The request deserves `status`, and what is left of it is not read. */
void lc_http_refuse(struct lc_plane *p, struct relay *r, int status)
{
    if (LC_GET(r->fd[1]) >= 0 && r->http->down != DOWN_NONE)
        lc_http_drop(p, r);
    if (r->http->down >= DOWN_ASKED) {
        lc_http_cut(p, r, LC_END_ERROR, ETIMEDOUT, 1);
        return;
    }
    r->http->down = DOWN_NONE;
    lc_http_ask(p, r, LC_HTTP_REFUSED, status);
}

/* -- a head ---------------------------------------------------------------------------------- */

/* Bytes behind those there are: read, 0 the end, -errno. */
static ssize_t fill(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    struct buffer *b;
    ssize_t n;

    if (h->in != NULL && h->in->at > 0 && h->in->room - h->in->size < LC_ROOM / 2) {
        b = h->in;
        memmove(b->bytes, b->bytes + b->at, b->size - b->at);
        b->size -= b->at;
        b->at = 0;
    }
    if (lc_buffer_room(p, &h->in, h->in == NULL || h->in->room - h->in->size < 1024
                       ? LC_ROOM / 2 : 1024) < 0)
        return -ENOMEM;
    b = h->in;
    n = lc_receive(r, 0, b->bytes + b->size, b->room - b->size);
    if (n > 0)
        b->size += (uint32_t)n;
    return n;
}

static void judged(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    const struct lc_head *head = &h->head;
    uint64_t most = h->service->body;

    h->body[0] = (uint8_t)head->body;
    switch (head->state) {
    case LC_HEAD_WHOLE:
        if (head->flags & LC_HEAD_KEEP)
            h->is |= CLIENT_KEEPS;
        if (head->body == LC_BODY_LENGTH && head->length > most)
            lc_http_ask(p, r, LC_HTTP_REFUSED, 413);
        else
            lc_http_ask(p, r, LC_HTTP_REQUEST, 0);
        break;
    case LC_HEAD_REFUSED:
        lc_http_ask(p, r, LC_HTTP_REFUSED, head->status);
        break;
    /* Behind a request these are bad requests: nothing of HTTP turns into them. */
    case LC_HEAD_H2:
        lc_http_ask(p, r, h->is & FIRST ? LC_HTTP_H2 : LC_HTTP_REFUSED, 505);
        break;
    default:
        lc_http_ask(p, r, h->is & FIRST ? LC_HTTP_OTHER : LC_HTTP_REFUSED, 400);
    }
}

/* Between requests a session has no buffer, and its upstream stays with it. */
static void read_head(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    unsigned about = h->original.family != 0 ? LC_HEAD_ANY_HOST : 0;
    struct buffer *b;
    ssize_t n;

    for (;;) {
        b = h->in;
        /* An empty line, which some clients send behind a body, begins no request (RFC 9112, 2.2). */
        if (b != NULL && !(h->is & FIRST) && h->head.seen == 0 && b->size - b->at == 2
            && memcmp(b->bytes + b->at, "\r\n", 2) == 0)
            b->at = b->size;
        if (b != NULL && b->size - b->at > h->head.seen) {
            if (h->head.seen == 0)
                h->since = p->now;
            if (lc_frame_head(LC_FRAMER_HTTP_REQUEST, b->bytes + b->at, b->size - b->at,
                              &h->service->limits, about, &h->head) != LC_HEAD_MORE) {
                judged(p, r);
                return;
            }
        }
        if (!(r->side[0] & READABLE))
            break;
        n = fill(p, r);
        if (n == -EAGAIN)
            break;
        if (n <= 0) {
            lc_relay_end(p, r, n == 0 ? LC_END_EOF : LC_END_RESET, (int)-n, 1);
            return;
        }
    }
    if (h->in == NULL || h->in->at == h->in->size) {
        lc_buffer_free(p, &h->in);
        lc_http_aim(p, r, h->since + (h->is & FIRST ? h->service->head_time
                                                    : h->service->idle_time));
    } else {
        lc_http_aim(p, r, h->since + h->service->head_time);
    }
}

/* -- to the upstream ------------------------------------------------------------------------- */

/* The upstream is connected, `out` has the head and what there was of the body. */
void lc_http_send(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    int err;

    h->up = UP_BODY;
    h->down = DOWN_HEAD;
    h->is &= (uint16_t)~BEGUN;
    h->interim = 0;
    h->bound |= (h->head.flags & LC_HEAD_BOUND) != 0;
    lc_buffer_free(p, &h->part);        /* what an upstream before this one left of a head */
    r->last = p->now;
    lc_http_aim(p, r, p->now + h->service->shortest);
    if (r->side[1] & READABLE)
        lc_ready(p, r);
    err = lc_deliver(p, r, 0, h->out->bytes, h->out->size);
    if (h->body[0] == LC_BODY_LENGTH)
        r->limit[0] += h->head.length - h->taken;
    if ((h->is & (RETRY | REUSED)) != (RETRY | REUSED))
        lc_buffer_free(p, &h->out);
    if (err != 0)
        lc_http_broke(p, r, 0, 1, err);
    else if (lc_http_complete(r, 0))
        h->up = UP_DONE;
    else
        lc_ready(p, r);
}

/* What a client still sends behind its last response. Closing would reset it, and a response that it
 * has not read yet would be lost with that (RFC 9112, 9.6). */
static void discard(struct lc_plane *p, struct relay *r, size_t *budget)
{
    ssize_t n = 1;

    while (n > 0 && (r->side[0] & READABLE) && *budget > 0) {
        n = lc_receive(r, 0, p->http->read, LC_COPY);
        if (n == -EAGAIN)
            return;
        *budget -= n > 0 && (size_t)n < *budget ? (size_t)n : *budget;
        r->last = p->now;
    }
    if (n <= 0)
        lc_relay_end(p, r, LC_END_EOF, 0, 0);
    else if (r->side[0] & READABLE)
        lc_ready(p, r);
}

void lc_http_up(struct lc_plane *p, struct relay *r, size_t *budget)
{
    struct http *h = r->http;

    switch (h->up) {
    case UP_HEAD:
        read_head(p, r);
        break;
    case UP_CONNECTING:
        lc_http_connected(p, r);
        break;
    case UP_BODY:
        /* Reading on: what is read is in no buffer, so it can be sent but once. */
        if (h->body[0] == LC_BODY_LENGTH && h->head.length > h->taken && (r->side[0] & READABLE))
            h->is |= STREAMED;
        lc_http_body(p, r, 0, budget);
        if (r->http == h && h->up == UP_BODY && lc_http_complete(r, 0))
            h->up = UP_DONE;
        break;
    case UP_LINGER:
        discard(p, r, budget);
        break;
    }
}
