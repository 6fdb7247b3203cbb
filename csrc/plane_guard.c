/* The loop guard: a connection that goes to a listener of this process, or that this process made
 * itself, is not relayed. One for all planes of a process.
 *
 * An outgoing connection under the machine's own name is known by its two ends. They are kept as
 * one keyed hash of 64 bits in an open table. */
#include "plane.h"

#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct lc_addr *listeners;
static size_t n_listeners;
static uint64_t *trails;        /* 0: empty place */
static size_t n_trails, places; /* a power of two, at least twice n_trails */

/* A child inherits what is whole, and a lock that nobody holds. */
static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
}

static void enter(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&lock);
}

static uint64_t mix(uint64_t h, const void *bytes, size_t size)
{
    const uint8_t *b = bytes;

    while (size-- > 0)
        h = (h ^ *b++) * 1099511628211u;
    return h;
}

static uint64_t hash(const struct lc_addr *a, const struct lc_addr *b)
{
    const struct lc_addr *both[2] = {a, b};
    uint64_t h = (uint64_t)(uintptr_t)&lock * 0x9e3779b97f4a7c15u;
    int i;

    for (i = 0; i < 2; i++) {
        h = mix(h, &both[i]->family, 1);
        h = mix(h, &both[i]->port, 2);
        h = mix(h, both[i]->ip, both[i]->family == 4 ? 4 : 16);
        h ^= h >> 29;
        h *= 0xbf58476d1ce4e5b9u;
    }
    h ^= h >> 32;
    return h == 0 ? 1 : h;
}

static void insert(uint64_t trail)
{
    size_t i = trail & (places - 1);

    while (trails[i] != 0)
        i = (i + 1) & (places - 1);
    trails[i] = trail;
}

static int make_room(void)
{
    uint64_t *old = trails;
    size_t i, before = places;

    if ((n_trails + 1) * 2 <= places)
        return 0;
    trails = calloc(before == 0 ? 64 : before * 2, sizeof *trails);
    if (trails == NULL) {
        trails = old;
        return -ENOMEM;
    }
    places = before == 0 ? 64 : before * 2;
    for (i = 0; i < before; i++)
        if (old[i] != 0)
            insert(old[i]);
    free(old);
    return 0;
}

/* A connection over the loopback is accepted before connect(2) has returned. */
int lc_trail_connect(int fd, const struct lc_open *request, const struct lc_addr *to,
                     uint64_t *trail)
{
    struct lc_addr here;
    int err;

    *trail = 0;
    enter();
    err = request == NULL ? lc_connect(fd, to) : lc_connect_as(fd, request, to);
    if ((err == 0 || err == -EINPROGRESS) && lc_local(fd, &here) == 0 && make_room() == 0) {
        *trail = hash(&here, to);
        insert(*trail);
        n_trails++;
    }
    pthread_mutex_unlock(&lock);
    return err;
}

/* Those behind the place that becomes empty move up: a search ends at an empty place. */
int lc_trail_remove(uint64_t trail)
{
    size_t i, j;

    enter();
    if (n_trails == 0) {
        pthread_mutex_unlock(&lock);
        return -ENOENT;
    }
    i = trail & (places - 1);
    while (trails[i] != trail && trails[i] != 0)
        i = (i + 1) & (places - 1);
    if (trails[i] != 0) {
        n_trails--;
        for (j = (i + 1) & (places - 1); trails[j] != 0; j = (j + 1) & (places - 1)) {
            size_t home = trails[j] & (places - 1);

            if (((j - home) & (places - 1)) >= ((j - i) & (places - 1))) {
                trails[i] = trails[j];
                i = j;
            }
        }
        trails[i] = 0;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

int lc_own_connection(const struct lc_addr *peer, const struct lc_addr *original)
{
    uint64_t trail = hash(peer, original);
    size_t i;
    int found = 0;

    enter();
    if (n_trails > 0)
        for (i = trail & (places - 1); trails[i] != 0 && !found; i = (i + 1) & (places - 1))
            found = trails[i] == trail;
    pthread_mutex_unlock(&lock);
    return found;
}

void lc_guard_listener(int fd, int on)
{
    struct lc_addr at, *more;
    size_t i;

    if (lc_local(fd, &at) < 0)
        return;
    enter();
    if (on) {
        more = realloc(listeners, (n_listeners + 1) * sizeof *more);
        if (more != NULL) {
            listeners = more;
            listeners[n_listeners++] = at;
        }
    } else {
        for (i = 0; i < n_listeners; i++)
            if (lc_same(&listeners[i], &at)) {
                listeners[i] = listeners[--n_listeners];
                break;
            }
    }
    pthread_mutex_unlock(&lock);
}

/* 1: connecting to `to` would reach a listener of a plane of this process. */
int lc_own_listener(const struct lc_addr *to)
{
    size_t i;
    int found = 0;

    enter();
    for (i = 0; i < n_listeners && !found; i++)
        found = listeners[i].port == to->port
            && (lc_is_wildcard(&listeners[i]) || (listeners[i].family == to->family
                && memcmp(listeners[i].ip, to->ip, to->family == 4 ? 4 : 16) == 0));
    pthread_mutex_unlock(&lock);
    return found && lc_own(to) != 0;
}
