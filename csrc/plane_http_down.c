/* A response on its way back. */
#include "plane_http.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Nothing came of the response, or not the whole head. A connection that has served before may have
 * been closed before the request arrived: what can be sent twice is, once, on a fresh one. */
static void lost(struct lc_plane *p, struct relay *r, int err)
{
    struct http *h = r->http;

    if ((h->is & (RETRY | REUSED | BEGUN)) == (RETRY | REUSED) && h->out != NULL) {
        struct route route = h->route;

        h->is &= (uint16_t)~REUSED;
        h->down = DOWN_NONE;
        lc_http_drop(p, r);
        h->route = route;
        lc_http_connect(p, r);
        return;
    }
    lc_http_fail(p, r, LC_HTTP_NO_RESPONSE, err == 0 ? ECONNRESET : err);
}

/* Its bytes in `bytes` belong to the client: 0, or -errno of what was wrong with them. */
static int first_bytes(struct lc_plane *p, struct relay *r, uint8_t *bytes, size_t size,
                       size_t *kept)
{
    struct http *h = r->http;
    const struct lc_head *reply = &h->reply;
    size_t used = size;

    *kept = size;
    switch (reply->body) {
    case LC_BODY_NONE:
        *kept = used = 0;
        break;
    case LC_BODY_LENGTH:
        if (size > reply->length)
            *kept = used = (size_t)reply->length;
        break;
    case LC_BODY_CHUNKED:
        memset(&h->chunks[1], 0, sizeof h->chunks[1]);
        h->chunks[1].bare = (uint32_t)lc_head_names(reply);
        if (size == 0)
            break;
        switch (lc_chunks_walk(&h->chunks[1], &h->service->limits, bytes, size, &used, kept)) {
        case LC_HEAD_REFUSED:
            return -EPROTO;
        case LC_HEAD_WHOLE:
            h->body[1] = LC_BODY_NONE;
            break;
        default:
            if (used < size && lc_buffer_add(p, &h->part, bytes + used, size - used) < 0)
                return -ENOMEM;
            return 0;
        }
        break;
    }
    if (used < size)
        h->is |= SPOILED;       /* more than it said: nobody's */
    return 0;
}

static int switches(const struct http *h)
{
    return h->reply.code == 101
        || ((h->head.flags & LC_HEAD_CONNECT) && h->reply.code / 100 == 2);
}

/* For a response that has none (RFC 9110, 6.6.1). strftime would speak the locale's language. */
static const char *date(struct http_plane *hp)
{
    static const char day[] = "SunMonTueWedThuFriSat";
    static const char month[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t now = time(NULL);
    struct tm tm;

    if (now != hp->dated && gmtime_r(&now, &tm) != NULL) {
        hp->dated = now;
        (void)snprintf(hp->date, sizeof hp->date, "Date: %.3s, %02d %.3s %d %02d:%02d:%02d GMT\r\n",
                       day + 3 * tm.tm_wday, tm.tm_mday, month + 3 * tm.tm_mon,
                       1900 + tm.tm_year, tm.tm_hour, tm.tm_min, tm.tm_sec);
    }
    return hp->date;
}

/* A whole head and what came with it. */
void lc_http_reply(struct lc_plane *p, struct relay *r, uint8_t *bytes, size_t size,
                   const struct lc_edit *told)
{
    struct http *h = r->http;
    const struct lc_head *reply = &h->reply;
    struct lc_edit edit = {.append = h->service->append, .append_size = h->service->append_size};
    uint8_t *out = p->http->write;
    uint8_t *body = bytes + reply->size;
    size_t kept;
    int err, n;

    if (told != NULL)
        edit = *told;
    edit.date = date(p->http);
    h->body[1] = (uint8_t)reply->body;
    if (switches(h))
        edit.what |= LC_EDIT_UPGRADE;
    /* One that comes before the request's end is the last: see finish. */
    else if (!(h->is & CLIENT_KEEPS) || h->up != UP_DONE || reply->body == LC_BODY_CLOSE
             || p->draining)
        edit.what |= LC_EDIT_CLOSE, h->is &= (uint16_t)~CLIENT_KEEPS;
    else if (h->head.flags & LC_HEAD_OLD)
        edit.what |= LC_EDIT_KEEP;
    n = lc_edit_room(reply, &edit) > LC_SCRATCH - LC_TOGETHER ? -ENOBUFS
        : lc_head_edit(bytes, reply, &edit, out, LC_SCRATCH);
    if (n < 0) {
        lc_http_fail(p, r, LC_HTTP_NO_RESPONSE, -n);
        return;
    }
    size -= reply->size;
    h->status = (uint16_t)reply->code;
    if (switches(h)) {
        if ((err = lc_deliver(p, r, 1, out, (size_t)n)) == 0)
            err = lc_deliver(p, r, 1, body, size);
        if (err == 0)
            lc_http_tunnel(p, r);
        else
            lc_http_broke(p, r, 1, 0, err);
        return;
    }
    if ((err = first_bytes(p, r, body, size, &kept)) < 0) {
        lc_http_fail(p, r, LC_HTTP_NO_RESPONSE, -err);
        return;
    }
    if (!(reply->flags & LC_HEAD_KEEP) || reply->body == LC_BODY_CLOSE)
        h->is |= SPOILED;
    lc_buffer_free(p, &h->out);
    h->down = DOWN_BODY;
    if (kept <= LC_TOGETHER) {
        memcpy(out + n, body, kept);
        err = lc_deliver(p, r, 1, out, (size_t)n + kept);
    } else if ((err = lc_deliver(p, r, 1, out, (size_t)n)) == 0) {
        err = lc_deliver(p, r, 1, body, kept);
    }
    if (err != 0) {
        lc_http_broke(p, r, 1, 0, err);
        return;
    }
    if (reply->body == LC_BODY_LENGTH)
        r->limit[1] += reply->length - kept;
    else if (reply->body == LC_BODY_CLOSE)
        r->limit[1] = UINT64_MAX;
}

/* 1: the head of the final response was dealt with; 0: more has to be read. */
static int judge(struct lc_plane *p, struct relay *r, uint8_t *bytes, size_t size)
{
    struct http *h = r->http;
    unsigned about = h->head.flags;
    int state, n, err;

    if (!(h->is & KEEP_UPGRADE))
        about &= ~(unsigned)LC_HEAD_UPGRADE;
    for (;;) {
        state = lc_frame_head(LC_FRAMER_HTTP_RESPONSE, bytes, size, &h->service->limits, about,
                              &h->reply);
        if (state == LC_HEAD_MORE) {
            lc_buffer_free(p, &h->part);
            if (size > 0 && lc_buffer_add(p, &h->part, bytes, size) < 0)
                break;
            return 0;
        }
        if (state != LC_HEAD_WHOLE)
            break;
        h->bound |= (h->reply.flags & LC_HEAD_BOUND) != 0;
        if (h->reply.code >= 200 || h->reply.code == 101) {
            lc_buffer_free(p, &h->part);
            if (!(h->is & ON_RESPONSE)) {
                lc_http_reply(p, r, bytes, size, NULL);
                return 1;
            }
            if (lc_buffer_add(p, &h->part, bytes, size) < 0)
                break;
            lc_http_ask(p, r, LC_HTTP_RESPONSE, h->reply.code);
            return 1;
        }
        if (++h->interim > LC_INTERIM)
            break;
        if (h->reply.code == 100)
            h->is |= CONTINUED;
        if (!(h->head.flags & LC_HEAD_OLD)) {
            const struct lc_edit edit = {.append = h->service->append,
                                         .append_size = h->service->append_size};

            n = lc_edit_room(&h->reply, &edit) > LC_SCRATCH ? -ENOBUFS
                : lc_head_edit(bytes, &h->reply, &edit, p->http->write, LC_SCRATCH);
            if (n < 0)
                break;
            if ((err = lc_deliver(p, r, 1, p->http->write, (size_t)n)) != 0) {
                lc_http_broke(p, r, 1, 0, err);
                return 1;
            }
        }
        bytes += h->reply.size;
        size -= h->reply.size;
        memset(&h->reply, 0, sizeof h->reply);
    }
    lc_http_fail(p, r, LC_HTTP_NO_RESPONSE, EPROTO);
    return 1;
}

static void read_reply(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    uint8_t *bytes = p->http->read;
    size_t carried;
    ssize_t n;

    while ((r->side[1] & READABLE) && r->hold[1] == NULL) {
        carried = h->part == NULL ? 0 : h->part->size;
        if (carried > 0)
            memcpy(bytes, h->part->bytes, carried);
        n = lc_receive(r, 1, bytes + carried, LC_COPY);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            lost(p, r, (int)-n);
            return;
        }
        if (!(h->is & BEGUN))
            memset(&h->reply, 0, sizeof h->reply);
        h->is |= BEGUN;
        r->last = p->now;
        if (judge(p, r, bytes, carried + (size_t)n))
            return;
    }
}

void lc_http_down(struct lc_plane *p, struct relay *r, size_t *budget)
{
    struct http *h = r->http;

    if (h->down == DOWN_NONE && h->up != UP_CONNECTING && LC_GET(r->fd[1]) >= 0
        && (r->side[1] & (READABLE | BROKEN | HUNG)) && !lc_quiet(r, 1))
        lc_http_drop(p, r);     /* idle, and closed or talking out of turn */
    if (h->down == DOWN_HEAD && r->hold[1] != NULL)
        lc_pump(p, r, 1, budget);       /* a 1xx that the client has not taken: nothing is read */
    if (r->http == h && h->down == DOWN_HEAD)
        read_reply(p, r);
    if (r->http != h || h->down != DOWN_BODY)
        return;
    lc_http_body(p, r, 1, budget);
    if (r->http == h && h->down == DOWN_BODY && lc_http_complete(r, 1))
        h->down = DOWN_DONE;
}
