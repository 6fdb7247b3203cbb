/* Which requests are alike in all that a verdict may depend on. */
#include "plane_http.h"

#include <stdlib.h>

/* That is, as exact bytes: first this, then the method, the target up to the first byte of its path,
 * and every value of the fields that the service named, each behind its size: no two requests are
 * alike by chance. */
struct like {
    struct lc_addr peer, original;  /* the peer's port is 0 */
    uint32_t flags;                 /* LC_HEAD_... */
    int32_t engine;
    uint32_t method, target;        /* bytes */
    uint16_t service;
    uint8_t form, body, minor, unused[3];
};

struct value {
    uint32_t field, size;
};

/* Bytes that have a number. */
struct alike {
    uint64_t number, hash;
    size_t size;
    uint8_t bytes[];
};

/* The next one. Of the whole process: what Python keeps by them may outlive a plane. */
static _Atomic uint64_t numbers = 1;

/* Writes up to LC_HTTP_LIKE bytes; `size` counts on. */
static void put(uint8_t *like, size_t *size, const void *bytes, size_t n)
{
    if (n <= LC_HTTP_LIKE && *size + n <= LC_HTTP_LIKE)
        memcpy(like + *size, bytes, n);
    *size += n;
}

static size_t begin(const struct http *h, const uint8_t *bytes, uint8_t *out)
{
    const struct lc_head *head = &h->head;
    struct like like = {
        .peer = h->peer,
        .original = h->original,
        .flags = head->flags,
        .engine = h->engine,
        .method = head->start[0].size,
        .target = head->start[1].size,
        .service = h->service->number,
        .form = (uint8_t)head->form,
        .body = (uint8_t)head->body,
        .minor = (uint8_t)head->minor,
    };
    uint32_t path = head->authority.at + head->authority.size - head->start[1].at;
    size_t size = 0;

    like.peer.port = 0;
    if (head->form == LC_TARGET_ORIGIN)
        path = 0;
    if (head->form != LC_TARGET_ASTERISK && path < like.target)
        like.target = path + 1;
    put(out, &size, &like, sizeof like);
    put(out, &size, bytes + head->start[0].at, like.method);
    put(out, &size, bytes + head->start[1].at, like.target);
    return size;
}

/* Who makes them meet makes verdicts be asked for again, no more. */
static uint64_t hash_of(const uint8_t *bytes, size_t size)
{
    uint64_t hash = size, word;
    size_t n;

    for (; size > 0; bytes += n, size -= n) {
        n = size < sizeof word ? size : sizeof word;
        word = 0;
        memcpy(&word, bytes, n);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash;
}

/* Of the two in its place the older goes, and its bytes get another number when they come again. */
static uint64_t number_of(struct http_plane *hp, const uint8_t *bytes, size_t size)
{
    uint64_t hash = hash_of(bytes, size);
    struct alike **place = &hp->alike[hash % LC_ALIKE & ~(uint64_t)1], *a;
    int i;

    for (i = 0; i < 2; i++) {
        a = place[i];
        if (a != NULL && a->hash == hash && a->size == size && memcmp(a->bytes, bytes, size) == 0)
            return a->number;
    }
    if ((a = malloc(sizeof *a + size)) == NULL)
        return 0;
    a->number = atomic_fetch_add(&numbers, 1);
    a->hash = hash;
    a->size = size;
    memcpy(a->bytes, bytes, size);
    if (place[0] != NULL && (place[1] == NULL || place[1]->number < place[0]->number))
        place++;
    free(*place);
    *place = a;
    return a->number;
}

/* The first value of each field that the service named; and of a request the number of those that
 * are like it, or 0. Under the lock. */
uint64_t lc_http_look(struct http_plane *hp, const struct http *h, const struct lc_head *head,
                      const uint8_t *bytes, uint8_t *first)
{
    const struct service *s = h->service;
    uint8_t like[LC_HTTP_LIKE];
    struct lc_span known, found;
    size_t size = 0;
    uint32_t at = 0;
    int i;

    memset(first, 0xff, s->fields * sizeof known);  /* none: at UINT32_MAX */
    if (head->state != LC_HEAD_WHOLE)
        return 0;
    if (h->question == LC_HTTP_REQUEST)
        size = begin(h, bytes, like);
    while ((i = lc_head_next(bytes, head, s->field, s->fields, &at, &found)) >= 0) {
        struct value value = {(uint32_t)i, found.size};

        memcpy(&known, first + (size_t)i * sizeof known, sizeof known);
        if (known.at == UINT32_MAX)
            memcpy(first + (size_t)i * sizeof known, &found, sizeof found);
        if (size > 0) {
            put(like, &size, &value, sizeof value);
            put(like, &size, bytes + found.at, found.size);
        }
    }
    return size > 0 && size <= LC_HTTP_LIKE ? number_of(hp, like, size) : 0;
}

void lc_http_forget(struct http_plane *hp)
{
    int i;

    for (i = 0; i < LC_ALIKE; i++)
        free(hp->alike[i]);
}
