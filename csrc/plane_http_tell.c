/* Questions and exchanges, on their way to Python. */
#include "plane_http.h"

#include <stdlib.h>

/* -- questions ------------------------------------------------------------------------------- */

static size_t padded(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

/* The bytes that a question shows. */
static const uint8_t *shown(const struct http *h, uint32_t *size)
{
    const struct buffer *b = h->question == LC_HTTP_RESPONSE ? h->part : h->in;
    const struct lc_head *head = h->question == LC_HTTP_RESPONSE ? &h->reply : &h->head;

    *size = 0;
    if (b == NULL)
        return (const uint8_t *)"";
    *size = head->state == LC_HEAD_WHOLE ? head->size : b->size - b->at;
    return b->bytes + b->at;
}

static size_t describe(struct http_plane *hp, const struct http *h, uint8_t *out, size_t room)
{
    const struct lc_head *head = h->question == LC_HTTP_RESPONSE ? &h->reply : &h->head;
    const struct service *s = h->service;
    struct lc_http_event e;
    uint32_t size;
    const uint8_t *bytes = shown(h, &size);
    size_t behind = sizeof e + s->fields * sizeof(struct lc_span);

    if (padded(behind + size) > room)
        return 0;
    memset(&e, 0, sizeof e);
    e.id = h->id;
    e.size = (uint32_t)padded(behind + size);
    e.service = s->number;
    e.state = h->question;
    e.failed = h->failed;
    e.status = h->status;
    e.why = (uint16_t)head->why;
    e.body = (uint8_t)head->body;
    e.err = h->err;
    e.engine = h->engine;
    e.flags = head->flags;
    e.form = (uint8_t)head->form;
    e.length = head->length;
    e.fields = s->fields;
    e.head = size;
    memcpy(e.start, head->start, sizeof e.start);
    e.authority = head->authority;
    e.peer = h->peer;
    e.original = h->original;
    e.like = lc_http_look(hp, h, head, bytes, out + sizeof e);
    memcpy(out, &e, sizeof e);
    memcpy(out + behind, bytes, size);
    return e.size;
}

/* Under the lock. */
int lc_http_waiting(const struct lc_plane *p)
{
    return p->http != NULL && (p->http->told != NULL || p->http->log_size > 0);
}

int64_t lc_http_fetch(struct lc_plane *p, uint8_t *out, size_t room)
{
    struct http_plane *hp;
    struct http *h;
    size_t used = 0, n;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    hp = p->http;
    while (hp != NULL && (h = hp->told) != NULL) {
        if (h->id != 0) {
            if ((n = describe(hp, h, out + used, room - used)) == 0)
                break;
            used += n;
            atomic_store(&h->told, TOLD_FETCHED);
            hp->told = h->next;
        } else {
            hp->told = h->next;
            free(h);
        }
    }
    lc_hush(p);
    pthread_mutex_unlock(&p->lock);
    return (int64_t)used;
}

/* -- exchanges ------------------------------------------------------------------------------- */

static int append(uint8_t **to, size_t *size, size_t *room, const void *bytes, size_t n)
{
    size_t want = *room == 0 ? 4096 : *room;
    uint8_t *more;

    while (want < *size + n)
        want *= 2;
    if (want > *room) {
        if ((more = realloc(*to, want)) == NULL)
            return -ENOMEM;
        *to = more;
        *room = want;
    }
    memcpy(*to + *size, bytes, n);
    *size += n;
    return 0;
}

/* The request's, without the blank lines that came before it. */
static const uint8_t *start_line(const struct http *h)
{
    return h->in->bytes + h->in->at + h->head.start[0].at;
}

/* What is known of an exchange before its end; `start` bytes of its request follow. */
static size_t note(const struct relay *r, struct lc_http_exchange *e)
{
    const struct http *h = r->http;
    size_t start = 0;

    memset(e, 0, sizeof *e);
    if (h->in != NULL && h->head.state == LC_HEAD_WHOLE)
        start = h->head.start[2].at + h->head.start[2].size - h->head.start[0].at;
    e->id = lc_id(r);
    e->start = (uint32_t)start;
    e->size = (uint32_t)padded(sizeof *e + start);
    e->service = h->service->number;
    e->status = h->status;
    e->reused = (h->is & REUSED) != 0;
    e->up = h->count[0];
    e->down = h->count[1];
    e->began = h->began;
    e->peer = h->peer;
    e->original = h->original;
    if (h->up != UP_ASKED && !(h->is & OWN))
        e->upstream = h->route.to;
    return start;
}

static void end_note(const struct lc_plane *p, const struct relay *r, struct lc_http_exchange *e,
                     int end)
{
    e->end = (uint8_t)end;
    e->up = LC_GET(r->count[0]) - e->up;
    e->down = LC_GET(r->count[1]) - e->down;
    e->seconds = (double)(p->now_ns - e->began) / 1e9;
}

/* One that cannot be noted for want of memory is not told of. */
void lc_http_log(struct lc_plane *p, struct relay *r, int end)
{
    static const uint8_t zero[8];
    struct http_plane *hp = p->http;
    struct http *h = r->http;
    struct lc_http_exchange e;
    size_t before = hp->news_size, start;
    int err;

    LC_ADD(p->requests, 1);
    if (!h->service->exchanges)
        return;
    start = note(r, &e);
    end_note(p, r, &e, end);
    err = append(&hp->news, &hp->news_size, &hp->news_room, &e, sizeof e);
    if (err == 0 && start > 0)
        err = append(&hp->news, &hp->news_size, &hp->news_room, start_line(h), start);
    if (err == 0)
        err = append(&hp->news, &hp->news_size, &hp->news_room, zero,
                     e.size - sizeof e - start);
    if (err < 0)
        hp->news_size = before;
}

/* The session becomes a relay, and its exchange ends with that. */
void lc_http_log_later(struct lc_plane *p, struct relay *r)
{
    struct http *h = r->http;
    struct lc_http_exchange e, *kept;
    size_t start;

    LC_ADD(p->requests, 1);
    if (!h->service->exchanges)
        return;
    start = note(r, &e);
    if ((kept = calloc(1, e.size)) == NULL)
        return;
    *kept = e;
    if (start > 0)
        memcpy(kept + 1, start_line(h), start);
    r->tunnel = kept;
}

void lc_http_tunnel_end(struct lc_plane *p, struct relay *r, int end)
{
    struct http_plane *hp = p->http;
    struct lc_http_exchange *kept = r->tunnel;

    r->tunnel = NULL;
    end_note(p, r, kept, end);
    (void)append(&hp->news, &hp->news_size, &hp->news_room, kept, kept->size);
    free(kept);
}

int64_t lc_http_exchanges(struct lc_plane *p, uint8_t *out, size_t room)
{
    struct http_plane *hp;
    struct lc_http_exchange e;
    size_t used = 0;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    hp = p->http;
    while (hp != NULL && used < hp->log_size) {
        memcpy(&e, hp->log + used, sizeof e);
        if (used + e.size > room)
            break;
        used += e.size;
    }
    if (used > 0) {
        memcpy(out, hp->log, used);
        hp->log_size -= used;
        memmove(hp->log, hp->log + used, hp->log_size);
    }
    lc_hush(p);
    pthread_mutex_unlock(&p->lock);
    return (int64_t)used;
}

/* -- the thread's side ----------------------------------------------------------------------- */

int lc_http_news(const struct lc_plane *p)
{
    return p->http != NULL && (p->http->asked != NULL || p->http->news_size > 0);
}

/* Under the lock. */
void lc_http_tell(struct lc_plane *p)
{
    struct http_plane *hp = p->http;
    struct http *h, *next;

    if (hp == NULL)
        return;
    for (h = hp->asked; h != NULL; h = next) {
        next = h->next;
        if (h->id == 0) {
            free(h);
            continue;
        }
        h->next = NULL;
        atomic_store(&h->told, TOLD_WAITING);
        if (hp->told == NULL)
            hp->told = h;
        else
            hp->told_tail->next = h;
        hp->told_tail = h;
    }
    hp->asked = hp->asked_tail = NULL;
    if (hp->news_size > 0
        && append(&hp->log, &hp->log_size, &hp->log_room, hp->news, hp->news_size) == 0)
        hp->news_size = 0;
}

void lc_http_drain(struct lc_plane *p)
{
    uint32_t i, n;

    if (p->http == NULL)
        return;
    lc_pool_clear(p);
    pthread_mutex_lock(&p->lock);
    n = p->slots;
    pthread_mutex_unlock(&p->lock);
    for (i = 0; i < n; i++) {
        struct relay *r = lc_slot(p, i);

        if (r->state == RELAYING && r->http != NULL && r->http->up == UP_HEAD
            && r->http->in == NULL)
            lc_http_close(p, r);
    }
}
