/* What Python answered, carried out. */
#include "plane_http.h"

#include <stdlib.h>

struct answer {
    const struct lc_http_answer *a;
    const uint8_t *start, *drop, *append;
};

static struct lc_edit edit_of(const struct answer *answer)
{
    const struct lc_http_answer *a = answer->a;
    struct lc_edit edit = {
        .start = a->start > 0 ? answer->start : NULL,
        .start_size = a->start,
        .drop = (const char *)answer->drop,
        .drop_size = a->drop,
        .append = answer->append,
        .append_size = a->append,
    };

    return edit;
}

/* -- requests -------------------------------------------------------------------------------- */

static int route_of(const struct relay *r, const struct lc_http_answer *a, struct route *route)
{
    const struct http *h = r->http;

    memset(route, 0, sizeof *route);
    route->to = a->to.family != 0 ? a->to : h->original;
    if (route->to.family == 0)
        return -EDESTADDRREQ;
    route->source = a->source;
    if (a->flags & LC_HTTP_SPOOF) {
        route->spoofs = 1;
        if (a->source.family == 0)
            route->source = h->peer;
        if (route->source.family != route->to.family)
            return -EAFNOSUPPORT;
        route->source.port = 0;
    }
    route->has_mark = a->flags & LC_HTTP_MARK ? 1 : h->has_mark;
    route->mark = a->flags & LC_HTTP_MARK ? a->mark : h->mark;
    return 0;
}

/* What of the body is in the session's buffer already goes behind the head. */
static int first_bytes(struct lc_plane *p, struct http *h)
{
    struct buffer *in = h->in;
    uint32_t at = in->at + h->head.size;
    size_t size = in->size - at, used, kept;
    uint8_t *bytes;
    int state;

    h->taken = 0;
    h->body[0] = (uint8_t)h->head.body;
    memset(&h->chunks[0], 0, sizeof h->chunks[0]);
    h->chunks[0].bare = (uint32_t)lc_head_names(&h->head);
    if (h->head.body == LC_BODY_LENGTH && size > h->head.length)
        size = (size_t)h->head.length;
    if (h->head.body == LC_BODY_NONE || size == 0)
        return 0;
    if (lc_buffer_room(p, &h->out, size) < 0)
        return -ENOMEM;
    bytes = h->out->bytes + h->out->size;
    memcpy(bytes, in->bytes + at, size);
    used = kept = size;
    if (h->head.body == LC_BODY_CHUNKED) {
        state = lc_chunks_walk(&h->chunks[0], &h->service->limits, bytes, size, &used, &kept);
        if (state == LC_HEAD_REFUSED)
            return -EPROTO;
        if (state == LC_HEAD_WHOLE)
            h->body[0] = LC_BODY_NONE;
    }
    h->out->size += (uint32_t)kept;
    h->taken = (uint32_t)used;
    return h->chunks[0].data > h->service->body ? -EFBIG : 0;
}

static void forward(struct lc_plane *p, struct relay *r, const struct answer *answer)
{
    const struct lc_http_answer *a = answer->a;
    struct http *h = r->http;
    struct lc_edit edit = edit_of(answer);
    struct route route;
    int n, err = route_of(r, a, &route);

    h->is &= (uint16_t)~(RETRY | KEEP_UPGRADE | ON_RESPONSE | TUNNEL | SPOILED);
    if (a->flags & LC_HTTP_UPGRADE) {
        h->is |= KEEP_UPGRADE;
        edit.what |= LC_EDIT_UPGRADE;
    }
    if (a->flags & LC_HTTP_ORIGIN_FORM)
        edit.what |= LC_EDIT_ORIGIN;
    if (a->flags & LC_HTTP_ON_RESPONSE)
        h->is |= ON_RESPONSE;
    if ((a->flags & LC_HTTP_RETRY)
        && (h->head.body == LC_BODY_NONE
            || (h->head.body == LC_BODY_LENGTH && h->head.length == 0))
        && (h->head.flags & LC_HEAD_IDEMPOTENT))
        h->is |= RETRY;
    if (h->head.flags & LC_HEAD_OLD)
        edit.what |= LC_EDIT_KEEP;
    lc_buffer_free(p, &h->out);
    if (err == 0 && h->head.state != LC_HEAD_WHOLE)
        err = -EINVAL;
    if (err == 0 && (h->is & STREAMED))
        err = -ESPIPE;
    if (err == 0 && (h->out = lc_buffer(p, lc_edit_room(&h->head, &edit))) == NULL)
        err = -ENOMEM;
    if (err == 0) {
        n = lc_head_edit(h->in->bytes + h->in->at, &h->head, &edit, h->out->bytes, h->out->room);
        if (n > 0)
            h->out->size = (uint32_t)n;
        err = n < 0 ? n : first_bytes(p, h);
    }
    if (err == -EPROTO || err == -EFBIG)
        lc_http_refuse(p, r, err == -EPROTO ? 400 : 413);
    else if (err < 0)
        lc_http_fail(p, r, LC_HTTP_NO_CONNECT, -err);
    else
        lc_http_reach(p, r, &route);
}

/* How much of the request is there behind its head; 1: all of it. */
static int is_whole(struct lc_plane *p, struct http *h)
{
    struct buffer *in = h->in;
    size_t size;

    if (h->question != LC_HTTP_REQUEST && h->question != LC_HTTP_FAILED)
        return 0;
    if (h->head.state != LC_HEAD_WHOLE || (h->is & STREAMED))
        return 0;
    size = in->size - in->at - h->head.size;
    h->taken = 0;
    if (h->head.body == LC_BODY_NONE)
        return 1;
    if (h->head.body == LC_BODY_LENGTH) {
        h->taken = (uint32_t)(size < h->head.length ? size : h->head.length);
        return h->taken == h->head.length;
    }
    if (size > LC_SCRATCH)
        return 0;
    lc_buffer_free(p, &h->out);
    if ((h->out = lc_buffer(p, LC_ROOM)) == NULL || first_bytes(p, h) < 0)
        return 0;
    lc_buffer_free(p, &h->out);
    return h->body[0] == LC_BODY_NONE;
}

/* Of the response that Python wrote, if it wrote one. */
static uint16_t status_of(const struct answer *answer)
{
    const uint8_t *line = answer->append;

    if (answer->a->append < 12 || line[8] != ' ')
        return 0;
    return (uint16_t)((line[9] - '0') * 100 + (line[10] - '0') * 10 + line[11] - '0');
}

static void respond(struct lc_plane *p, struct relay *r, const struct answer *answer)
{
    const struct lc_http_answer *a = answer->a;
    struct http *h = r->http;
    int whole = is_whole(p, h), err;

    if (!whole || (a->flags & LC_HTTP_CLOSE))
        h->is &= (uint16_t)~CLIENT_KEEPS;
    h->is |= OWN;
    h->up = whole ? UP_DONE : UP_LOST;
    h->down = DOWN_BODY;
    h->body[0] = h->body[1] = LC_BODY_NONE;
    h->status = status_of(answer);
    r->last = p->now;
    err = lc_deliver(p, r, 1, answer->append, a->append);
    if (err != 0)
        lc_http_broke(p, r, 1, 0, err);
    else
        lc_ready(p, r);
}

/* -- tunnels --------------------------------------------------------------------------------- */

static void tunnel(struct lc_plane *p, struct relay *r, const struct answer *answer)
{
    struct http *h = r->http;
    struct route route;
    int err = route_of(r, answer->a, &route);

    h->is &= (uint16_t)~(RETRY | ON_RESPONSE | REUSED);
    h->is |= TUNNEL;
    if (LC_GET(r->fd[1]) >= 0)
        lc_http_keep(p, r);
    lc_buffer_free(p, &h->out);
    if (err == 0 && (h->is & STREAMED))
        err = -ESPIPE;
    if (err == 0)
        err = lc_buffer_add(p, &h->out, answer->append, answer->a->append);
    if (err < 0) {
        lc_http_fail(p, r, LC_HTTP_NO_CONNECT, -err);
        return;
    }
    h->status = status_of(answer);
    h->route = route;
    lc_http_connect(p, r);
}

/* From here on it is a relay like any other: what was read of the client goes first. */
void lc_http_tunnel(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    struct buffer *in = h->in;
    uint32_t at = in == NULL ? 0 : in->at;
    int err = 0;

    if (in != NULL && h->head.state == LC_HEAD_WHOLE
        && (h->down == DOWN_HEAD || h->down == DOWN_ASKED || (h->head.flags & LC_HEAD_CONNECT)))
        at += h->head.size + h->taken;
    if (in != NULL && at < in->size)
        err = lc_deliver(p, r, 0, in->bytes + at, in->size - at);
    lc_http_log_later(p, r);
    r->idle = (uint32_t)h->service->tunnel_time;
    lc_buffer_free(p, &h->in);
    lc_buffer_free(p, &h->out);
    lc_buffer_free(p, &h->part);
    pthread_mutex_lock(&p->lock);
    r->http = NULL;
    pthread_mutex_unlock(&p->lock);
    free(h);
    r->limit[0] = r->limit[1] = UINT64_MAX;
    r->last = p->now;
    r->side[1] |= WRITABLE;
    LC_ADD(p->relayed, 1);
    if (lc_timer_set(p, r, p->now + r->idle) < 0)
        lc_relay_end(p, r, LC_END_ERROR, ENOMEM, 0);
    else if (err != 0)
        lc_relay_broke(p, r, 1, err);
    else
        lc_ready(p, r);
}

void lc_http_tunnel_on(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    int err = h->out == NULL || h->out->size == 0 ? 0
        : lc_deliver(p, r, 1, h->out->bytes, h->out->size);

    if (err != 0)
        lc_http_broke(p, r, 1, 0, err);
    else
        lc_http_tunnel(p, r);
}

/* -- responses ------------------------------------------------------------------------------- */

static void pass_response(struct lc_plane *p, struct relay *r, const struct answer *answer)
{
    struct http *h = r->http;
    struct buffer *part = h->part;
    const struct service *s = h->service;
    struct lc_edit edit = edit_of(answer);
    struct buffer *lines = NULL;

    /* The service's own lines are appended, too. */
    if (lc_buffer_add(p, &lines, s->append, s->append_size) < 0
        || lc_buffer_add(p, &lines, edit.append, edit.append_size) < 0) {
        lc_relay_end(p, r, LC_END_ERROR, ENOMEM, 0);
    } else {
        edit.append = lines->bytes;
        edit.append_size = lines->size;
        h->part = NULL;
        h->down = DOWN_HEAD;
        r->last = p->now;
        lc_http_reply(p, r, part->bytes, part->size, &edit);
        lc_buffer_free(p, &part);
        if (r->http != NULL)
            lc_ready(p, r);
    }
    lc_buffer_free(p, &lines);
}

static void replace_response(struct lc_plane *p, struct relay *r, const struct answer *answer)
{
    struct http *h = r->http;
    int lost = h->up != UP_DONE;

    lc_http_drop(p, r);
    lc_buffer_free(p, &h->part);
    h->question = LC_HTTP_REQUEST;
    respond(p, r, answer);
    if (lost && r->http != NULL)
        h->up = UP_LOST, h->is &= (uint16_t)~CLIENT_KEEPS;
}

/* -------------------------------------------------------------------------------------------- */

static void carry_out(struct lc_plane *p, struct relay *r, const struct answer *answer)
{
    struct http *h = r->http;
    int about_response = h->question == LC_HTTP_RESPONSE;

    switch (answer->a->action) {
    case LC_HTTP_FORWARD:
        if (about_response)
            pass_response(p, r, answer);
        else
            forward(p, r, answer);
        break;
    case LC_HTTP_RESPOND:
        if (about_response)
            replace_response(p, r, answer);
        else
            respond(p, r, answer);
        break;
    case LC_HTTP_TUNNEL:
        tunnel(p, r, answer);
        break;
    default:
        LC_ADD(p->denied, 1);
        lc_relay_end(p, r, LC_END_KILLED, 0, 0);
    }
}

/* Frees `answers`. */
void lc_http_answers(struct lc_plane *p, uint8_t *answers, size_t size)
{
    size_t at = 0;

    while (size - at >= sizeof(struct lc_http_answer)) {
        const struct lc_http_answer *a = (const void *)(answers + at);
        struct answer answer = {.a = a, .start = answers + at + sizeof *a};
        struct relay *r = lc_by_id(p, a->id);
        uint8_t fetched = TOLD_FETCHED;

        answer.drop = answer.start + a->start;
        answer.append = answer.drop + a->drop;
        if (r != NULL && r->state == RELAYING && r->http != NULL
            && atomic_compare_exchange_strong(&r->http->told, &fetched, TOLD_NOT))
            carry_out(p, r, &answer);
        at += a->size;
    }
    free(answers);
}
