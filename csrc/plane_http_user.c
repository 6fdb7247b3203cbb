/* Services, sessions and answers in: what the other threads call. */
#include "plane_http.h"

#include <stdlib.h>

/* -- services -------------------------------------------------------------------------------- */

static struct http_plane *have(struct lc_plane *p)
{
    struct http_plane *hp = p->http;
    int i;

    if (hp != NULL || (hp = calloc(1, sizeof *hp)) == NULL)
        return hp;
    hp->read = malloc(LC_SCRATCH);
    hp->write = malloc(LC_SCRATCH);
    if (hp->read == NULL || hp->write == NULL) {
        free(hp->read);
        free(hp->write);
        free(hp);
        return NULL;
    }
    for (i = 0; i < LC_BUCKETS; i++)
        hp->bucket[i] = LC_NONE;
    hp->oldest = hp->newest = LC_NONE;
    p->http = hp;
    return hp;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static struct service *copy(const struct lc_http_how *how)
{
    struct service *s = malloc(sizeof *s + how->names + how->append_size);
    uint8_t *bytes;

    if (s == NULL)
        return NULL;
    bytes = (uint8_t *)(s + 1);
    memset(s, 0, sizeof *s);
    s->limits = how->limits;
    s->body = how->body;
    s->head_time = how->head_time;
    s->idle_time = how->idle_time;
    s->body_time = how->body_time;
    s->tunnel_time = how->tunnel_time;
    s->connect_time = how->connect_time;
    s->response_time = how->response_time;
    s->pool_idle = how->pool_idle;
    s->shortest = least(s->idle_time, least(s->body_time, s->response_time));
    s->pool_size = how->pool_size;
    s->spoofer = how->spoofer;
    s->exchanges = how->exchanges;
    s->fields = how->fields;
    if (how->names > 0)
        memcpy(bytes, how->field, how->names);
    s->field = (const char *)bytes;
    if (how->append_size > 0)
        memcpy(bytes + how->names, how->append, how->append_size);
    s->append = bytes + how->names;
    s->append_size = how->append_size;
    return s;
}

/* Whether responses can have these lines. */
static int appends(const struct lc_http_how *how)
{
    static const char any[] = "HTTP/1.1 200 OK\r\n\r\n";
    const struct lc_edit edit = {.append = how->append, .append_size = how->append_size};
    const struct lc_limits limits = {64, 64, 1};
    struct lc_head head = {.state = LC_HEAD_MORE};

    (void)lc_frame_head(LC_FRAMER_HTTP_RESPONSE, (const uint8_t *)any, sizeof any - 1, &limits, 0,
                        &head);
    return lc_edit_check(&head, &edit) == 0;
}

int lc_http_service(struct lc_plane *p, const struct lc_http_how *how)
{
    struct http_plane *hp;
    struct service *s;
    int number;

    if (!lc_alive(p))
        return -ESRCH;
    if (how->limits.head > LC_HEAD_MOST || how->append_size > LC_TOGETHER || !appends(how))
        return -EINVAL;
    if ((s = copy(how)) == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&p->lock);
    number = p->closed ? -ESHUTDOWN : (hp = have(p)) == NULL ? -ENOMEM
        : hp->services == LC_SERVICES ? -ENOSPC : hp->services;
    if (number >= 0) {
        s->number = (uint16_t)number;
        p->http->service[number] = s;
        p->http->services++;
    }
    pthread_mutex_unlock(&p->lock);
    if (number < 0)
        free(s);
    return number;
}

void lc_http_free(struct lc_plane *p)
{
    struct http_plane *hp = p->http;
    struct buffer *b;
    struct http *h;
    int i;

    if (hp == NULL)
        return;
    while ((b = hp->spare) != NULL) {
        hp->spare = b->next;
        free(b);
    }
    while ((h = hp->told) != NULL) {
        hp->told = h->next;
        free(h);
    }
    for (i = 0; i < hp->services; i++)
        free(hp->service[i]);
    lc_http_forget(hp);
    free(hp->log);
    free(hp->news);
    free(hp->read);
    free(hp->write);
    free(hp);
    p->http = NULL;
}

/* -- sessions -------------------------------------------------------------------------------- */

/* The listener's or the caller's connection; NULL: no memory. */
struct relay *lc_http_make(struct lc_plane *p, uint32_t service, int fd, const struct lc_addr *peer,
                           const struct lc_addr *original, int engine)
{
    struct http *h = calloc(1, sizeof *h);
    struct relay *r = NULL;

    if (h == NULL)
        return NULL;
    h->service = p->http->service[service];
    h->peer = *peer;
    h->original = *original;
    h->engine = (int16_t)engine;
    if ((r = lc_take(p)) == NULL) {
        free(h);
        return NULL;
    }
    r->http = h;
    atomic_store_explicit(&r->fd[0], fd, memory_order_relaxed);
    return r;
}

int lc_http_serve(struct lc_plane *p, int service, int fd, const struct lc_addr *original,
                  const uint8_t *prefix, size_t size)
{
    struct command c = {.what = DO_SERVE};
    struct lc_addr peer, none = {.family = 0};
    struct relay *r = NULL;
    struct buffer *b = NULL;
    int err;

    if (!lc_alive(p))
        return -ESRCH;
    if (size > LC_HEAD_MOST)
        return -EMSGSIZE;
    if (lc_peer(fd, &peer) < 0)
        peer = none;
    if (size > 0) {
        if ((b = malloc(sizeof *b + LC_ROOM + size)) == NULL)
            return -ENOMEM;
        b->next = NULL;
        b->at = 0;
        b->size = (uint32_t)size;
        b->room = (uint32_t)(LC_ROOM + size);
        memcpy(b->bytes, prefix, size);
    }
    pthread_mutex_lock(&p->lock);
    err = p->closed ? -ESHUTDOWN : p->http == NULL || service < 0 || service >= p->http->services
        ? -EINVAL : lc_reserve(p, 1);
    if (err == 0) {
        r = lc_http_make(p, (uint32_t)service, fd, &peer, original, -1);
        if (r == NULL) {
            err = -ENOMEM;
        } else {
            r->http->in = b;
            c.id = lc_id(r);
            (void)lc_command(p, &c);
        }
    }
    pthread_mutex_unlock(&p->lock);
    if (err < 0)
        free(b);
    return err;
}

int lc_http_answer(struct lc_plane *p, const uint8_t *answers, size_t size)
{
    struct command c = {.what = DO_ANSWERS, .id = size};
    int err;

    if (!lc_alive(p))
        return -ESRCH;
    if ((c.with = malloc(size)) == NULL)
        return -ENOMEM;
    memcpy(c.with, answers, size);
    pthread_mutex_lock(&p->lock);
    err = p->closed > 1 ? -ESHUTDOWN : lc_queue(p, &c);
    pthread_mutex_unlock(&p->lock);
    if (err > 0)
        lc_bell_ring(p->wake);
    if (err < 0)
        free(c.with);
    return err < 0 ? err : 0;
}

/* The client of a question that was fetched becomes the caller's: its descriptor. */
int lc_http_take(struct lc_plane *p, uint64_t id, uint8_t *out, size_t room, size_t *size)
{
    struct command c = {.what = DO_KILL, .id = id};
    struct relay *r;
    struct http *h;
    int fd = -ESRCH;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    r = lc_by_id(p, id);
    h = r == NULL || r->state != RELAYING ? NULL : r->http;
    if (h != NULL && atomic_load(&h->told) == TOLD_FETCHED && h->question != LC_HTTP_RESPONSE) {
        *size = h->in == NULL ? 0 : h->in->size - h->in->at;
        if (*size > room)
            fd = -ENOBUFS;
        else if ((fd = lc_command(p, &c)) == 0) {
            fd = LC_GET(r->fd[0]);
            if (*size > 0)
                memcpy(out, h->in->bytes + h->in->at, *size);
            lc_poll_remove(p, fd);
            atomic_store(&h->told, TOLD_TAKEN);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return fd;
}
