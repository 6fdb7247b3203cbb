/* Relays by id. A chunk never moves, so what is read of a relay without the lock, its generation,
 * descriptors and counters, is always there to be read; the generation says whose it is. */
#include "plane.h"

#include <stdlib.h>

struct relay *lc_slot(struct lc_plane *p, uint32_t slot)
{
    return &atomic_load_explicit(&p->chunk[slot / LC_CHUNK], memory_order_acquire)[slot % LC_CHUNK];
}

uint64_t lc_id(const struct relay *r)
{
    return (uint64_t)LC_GET(r->generation) << 32 | r->slot;
}

/* An event carries it; where a pointer has 32 bits, kqueue keeps the lower half alone. */
uint64_t lc_key(const struct relay *r, int side)
{
    return (uint64_t)LC_GET(r->generation) << 32 | r->slot << 2 | (unsigned)side;
}

/* Only for ids that this plane has told: their chunk was there before. */
struct relay *lc_by_id(struct lc_plane *p, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    struct relay *r;

    if (slot / LC_CHUNK >= LC_CHUNKS
        || atomic_load_explicit(&p->chunk[slot / LC_CHUNK], memory_order_acquire) == NULL)
        return NULL;
    r = lc_slot(p, slot);
    return atomic_load_explicit(&r->generation, memory_order_acquire) == (uint32_t)(id >> 32)
        ? r : NULL;
}

static int grow(struct lc_plane *p)
{
    uint32_t i, chunk = p->slots / LC_CHUNK;
    struct relay *made;

    if (chunk == LC_CHUNKS || (made = malloc(LC_CHUNK * sizeof *made)) == NULL)
        return -ENOMEM;
    for (i = 0; i < LC_CHUNK; i++) {
        struct relay *r = &made[i];
        memset(r, 0, sizeof *r);
        atomic_init(&r->fd[0], -1);
        atomic_init(&r->fd[1], -1);
        atomic_init(&r->generation, 1);
        r->slot = p->slots + i;
        r->next = i + 1 < LC_CHUNK ? r->slot + 1 : LC_NONE;
    }
    atomic_store_explicit(&p->chunk[chunk], made, memory_order_release);
    p->free = p->slots;
    p->slots += LC_CHUNK;
    return 0;
}

struct relay *lc_take(struct lc_plane *p)
{
    struct relay *r;
    int d;

    if (p->free == LC_NONE && grow(p) < 0)
        return NULL;
    r = lc_slot(p, p->free);
    p->free = r->next;
    r->next = r->prev = LC_NONE;
    r->place = 0;
    r->listener = -1;
    r->err = 0;
    r->idle = r->total = LC_NONE;
    r->state = NEW;
    r->ready = r->what = r->blame = r->limited = r->silent = 0;
    r->job = NULL;
    r->http = NULL;
    r->pooled = NULL;
    r->framing = NULL;
    r->flow = NULL;
    r->trail = 0;
    for (d = 0; d < 2; d++) {
        r->side[d] = 0;
        r->big[d] = 0;
        atomic_store_explicit(&r->count[d], 0, memory_order_relaxed);
        r->limit[d] = UINT64_MAX;
        r->hold[d] = NULL;
    }
    return r;
}

void lc_give(struct lc_plane *p, struct relay *r)
{
    atomic_store_explicit(&r->fd[0], -1, memory_order_relaxed);
    atomic_store_explicit(&r->fd[1], -1, memory_order_relaxed);
    r->state = FREE;
    atomic_fetch_add_explicit(&r->generation, 1, memory_order_release);
    r->next = p->free;
    p->free = r->slot;
}

int lc_plane_counts(struct lc_plane *p, uint64_t id, uint64_t *up, uint64_t *down)
{
    struct relay *r;

    if (!lc_alive(p) || (r = lc_by_id(p, id)) == NULL)
        return -ESRCH;
    *up = LC_GET(r->count[0]);
    *down = LC_GET(r->count[1]);
    atomic_thread_fence(memory_order_acquire);
    return lc_by_id(p, id) == r ? 0 : -ESRCH;
}

int lc_plane_find(struct lc_plane *p, int fd, uint64_t *id)
{
    uint32_t i, n;

    if (!lc_alive(p))
        return 0;
    pthread_mutex_lock(&p->lock);
    n = p->slots;
    pthread_mutex_unlock(&p->lock);
    for (i = 0; i < n; i++) {
        struct relay *r = lc_slot(p, i);
        if (LC_GET(r->fd[0]) == fd || LC_GET(r->fd[1]) == fd) {
            *id = lc_id(r);
            return 1;
        }
    }
    return 0;
}
