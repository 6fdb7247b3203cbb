/* The thread and its turn; commands in, completions out. */
#include "plane.h"

#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static _Atomic unsigned forks;

static void after_fork(void)
{
    atomic_fetch_add(&forks, 1);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

/* In a forked child a plane is memory that nobody serves, and its lock may be taken for ever. */
int lc_alive(const struct lc_plane *p)
{
    return p->forks == atomic_load_explicit(&forks, memory_order_relaxed);
}

static void tell_time(struct lc_plane *p)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    p->now_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    p->now = p->now_ns / 1000000u;
}

enum {
    TURNS = 16,             /* that news is kept back at most */
    FULL = 64               /* that time waits at most, while polls are full */
};

/* -- commands -------------------------------------------------------------------------------- */

int lc_reserve(struct lc_plane *p, size_t n)
{
    size_t room = p->room == 0 ? 64 : p->room;
    struct command *more;

    while (room < p->n_commands + n)
        room *= 2;
    if (room == p->room)
        return 0;
    if ((more = realloc(p->commands, room * sizeof *more)) == NULL)
        return -ENOMEM;
    p->commands = more;
    p->room = room;
    return 0;
}

int lc_queue(struct lc_plane *p, const struct command *c)
{
    int err = lc_reserve(p, 1);

    if (err < 0)
        return err;
    p->commands[p->n_commands++] = *c;
    return p->n_commands == 1;
}

int lc_command(struct lc_plane *p, const struct command *c)
{
    int first = lc_queue(p, c);

    if (first > 0)
        lc_bell_ring(p->wake);
    return first < 0 ? first : 0;
}

static void end_everything(struct lc_plane *p)
{
    uint32_t i, n;

    pthread_mutex_lock(&p->lock);
    n = p->slots;
    pthread_mutex_unlock(&p->lock);
    for (i = 0; i < LC_LISTENERS; i++)
        lc_listener_stop(p, i);
    lc_pool_clear(p);
    for (i = 0; i < n; i++) {
        struct relay *r = lc_slot(p, i);

        lc_asked_end(p, r);
        lc_relay_end(p, r, LC_END_KILLED, 0, 0);
    }
}

static void obey(struct lc_plane *p, const struct command *c)
{
    struct relay *r = c->what == DO_ANSWERS ? NULL : lc_by_id(p, c->id);
    uint32_t i;

    switch (c->what) {
    case DO_START:
        if (r == NULL)
            break;
        LC_ADD(p->live, 1);
        r->began = p->now_ns;
        if (r->framing != NULL)
            lc_framed_start(p, r);
        else if (LC_GET(r->fd[1]) < 0)
            lc_connect_start(p, r);
        else
            lc_relay_start(p, r);
        break;
    case DO_KILL:
        if (r != NULL) {
            lc_asked_end(p, r);
            lc_relay_end(p, r, LC_END_KILLED, 0, 0);
        }
        break;
    case DO_ANSWER:
        if (r != NULL)
            lc_answered(p, r);
        break;
    case DO_SERVE:
        if (r != NULL)
            lc_http_start(p, r);
        break;
    case DO_ANSWERS:
        lc_http_answers(p, c->with, (size_t)c->id);
        break;
    case DO_LISTEN:
        lc_listener_start(p, c->listener, c->with);
        break;
    case DO_POLICY:
        free(p->listener[c->listener].rules);
        p->listener[c->listener].rules = c->with;
        break;
    case DO_UNLISTEN:
        lc_listener_stop(p, c->listener);
        break;
    case DO_DRAIN:
        p->draining = 1;
        for (i = 0; i < LC_LISTENERS; i++)
            lc_listener_stop(p, i);
        lc_http_drain(p);
        break;
    case DO_STOP:
        p->stopping = 1;
        break;
    }
}

/* The queue is taken whole, so that nobody waits for the lock while commands are carried out. */
static void obey_all(struct lc_plane *p)
{
    struct command *commands;
    size_t i, n;

    pthread_mutex_lock(&p->lock);
    lc_bell_quiet(p->wake);
    commands = p->commands;
    n = p->n_commands;
    p->commands = NULL;
    p->n_commands = p->room = 0;
    pthread_mutex_unlock(&p->lock);
    for (i = 0; i < n; i++)
        obey(p, &commands[i]);
    free(commands);
}

/* -- completions ----------------------------------------------------------------------------- */

static int has_drained(const struct lc_plane *p)
{
    return p->draining && LC_GET(p->live) == 0;
}

static int has_news(const struct lc_plane *p)
{
    return p->ended != LC_NONE || p->over != 0 || has_drained(p) || lc_http_news(p);
}

/* The user is woken once for all there is. */
static void tell(struct lc_plane *p)
{
    uint32_t slot = p->ended, tail;
    int quiet, drained = has_drained(p);

    if (!has_news(p))
        return;
    p->ended = LC_NONE;
    pthread_mutex_lock(&p->lock);
    tail = p->done_tail;
    quiet = p->done == LC_NONE && p->tell_over == 0 && !p->tell_drained && !lc_http_waiting(p);
    lc_http_tell(p);
    while (slot != LC_NONE) {
        struct relay *r = lc_slot(p, slot);
        uint32_t next = r->next;

        if (r->silent) {
            lc_give(p, r);
        } else {
            r->next = LC_NONE;
            if (p->done == LC_NONE)
                p->done = slot;
            else
                lc_slot(p, tail)->next = slot;
            tail = slot;
        }
        slot = next;
    }
    p->done_tail = tail;
    p->tell_over |= p->over;
    p->over = 0;
    if (drained) {
        p->draining = 0;
        p->tell_drained = 1;
    }
    quiet = quiet && (p->done != LC_NONE || p->tell_over != 0 || p->tell_drained
                      || lc_http_waiting(p));
    pthread_mutex_unlock(&p->lock);
    if (quiet)                  /* who is woken on this core would wait for the lock */
        lc_bell_ring(p->notify);
}

/* -- the turn -------------------------------------------------------------------------------- */

static int64_t patience(const struct lc_plane *p)
{
    uint64_t due = UINT64_MAX;

    if (p->ready != LC_NONE)
        return 0;
    if (p->n_heap > 0)
        due = p->heap[0].due;
    if (p->resume != 0 && p->resume < due)
        due = p->resume;
    if (due == UINT64_MAX)
        return -1;
    return due <= p->now ? 0 : (int64_t)(due - p->now);
}

static void meet_events(struct lc_plane *p, int n)
{
    int i;

    /* Commands first: a connection that comes after a new policy was set is judged by it. */
    for (i = 0; i < n; i++)
        if ((p->event[i].key & 3) == KEY_WAKE)
            obey_all(p);
    for (i = 0; i < n; i++) {
        const struct event *e = &p->event[i];
        unsigned tag = e->key & 3;
        struct relay *r;

        if (tag == KEY_WAKE)
            continue;
        if (tag == KEY_LISTENER) {
            lc_listener_event(p, (uint32_t)e->key >> 2);
            continue;
        }
        /* The slot may have been given to another connection since the poll. */
        r = lc_slot(p, (uint32_t)e->key >> 2);
        if ((uintptr_t)lc_key(r, (int)tag) != (uintptr_t)e->key)
            continue;
        if (r->state == CONNECTING) {
            lc_connect_event(p, r, e->what);
        } else if (r->state == POOLED) {
            r->side[1] |= (uint8_t)e->what;
            if (e->what & (READABLE | BROKEN | HUNG))
                lc_pool_end(p, r);
        } else if (r->state == RELAYING) {
            r->side[tag] |= (uint8_t)e->what;
            lc_ready(p, r);
        }
    }
}

static void *life(void *plane)
{
    struct lc_plane *p = plane;
    struct relay *r;
    uint32_t left, full = 0;
    int n, kept = 0;

#ifdef __linux__
    (void)pthread_setname_np(pthread_self(), "lusca plane");
#endif
    tell_time(p);
    while (!p->stopping) {
        n = lc_poll_wait(p, has_news(p) ? 0 : patience(p));
        tell_time(p);
        meet_events(p, n);
        /* One turn for each that waits now; who has more to do goes to the end of the line. */
        for (left = p->n_ready; left > 0 && p->ready != LC_NONE; left--)
            lc_relay_run(p, lc_slot(p, p->ready));
        /* Time comes last: what was there in time counts, however late this thread came to it, and
         * what one poll had no room for comes with the next. */
        full = n == LC_EVENTS ? full + 1 : 0;
        if (full % FULL == 0) {
            while ((r = lc_timer_due(p)) != NULL)
                lc_relay_timer(p, r);
            if (p->resume != 0 && p->resume <= p->now)
                lc_listener_resume(p);
        }
        /* News waits until nothing else is ready, but for a few turns at most: to wake the user for
         * each is to switch threads for each, where both share a core. */
        if (n == 0 || ++kept >= TURNS) {
            tell(p);
            kept = 0;
        }
    }
    end_everything(p);
    tell(p);
    return NULL;
}

/* -- birth and death ------------------------------------------------------------------------- */

static int start_thread(struct lc_plane *p)
{
    pthread_attr_t attr;
    sigset_t all, before;
    int err;

    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 512 * 1024);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(&p->thread, &attr, life, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -err;
}

static void release(struct lc_plane *p)
{
    uint32_t i;

    lc_bulk_close(p);
    lc_http_free(p);
    lc_poll_close(p);
    lc_bell_close(p->wake);
    lc_bell_close(p->notify);
    for (i = 0; i < LC_LISTENERS; i++)
        free(p->listener[i].rules);
    for (i = 0; i < LC_LISTENERS; i++)
        free(p->listener[i].flows);
    for (i = 0; i < LC_CHUNKS && p->chunk[i] != NULL; i++)
        free(p->chunk[i]);
    free(p->commands);
    free(p->heap);
    free(p->buffer);
    lc_batch_free(p->batch);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

int lc_plane_open(struct lc_plane **out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct lc_plane *p;
    int i, err;

    pthread_once(&once, watch_forks);
    if ((p = calloc(1, sizeof *p)) == NULL || (p->buffer = malloc(LC_COPY)) == NULL) {
        free(p);
        return -ENOMEM;
    }
    pthread_mutex_init(&p->lock, NULL);
    p->forks = atomic_load(&forks);
    p->free = p->done = p->ready = p->ended = LC_NONE;
    p->poll = p->pipe[0] = p->pipe[1] = -1;
    p->wake[0] = p->wake[1] = p->notify[0] = p->notify[1] = -1;
    for (i = 0; i < LC_LISTENERS; i++)
        p->listener[i].fd = -1;
    if ((err = lc_poll_open(p)) < 0 || (err = lc_bell_open(p->wake)) < 0
        || (err = lc_bell_open(p->notify)) < 0
        || (err = lc_poll_add_listener(p, p->wake[0], KEY_WAKE)) < 0
        || (err = start_thread(p)) < 0) {
        release(p);
        return err;
    }
    *out = p;
    return 0;
}

int lc_plane_stop(struct lc_plane *p)
{
    struct command stop = {.what = DO_STOP};
    int err;

    if (!lc_alive(p))
        return -ESRCH;
    if (p->joined)
        return 0;
    pthread_mutex_lock(&p->lock);
    p->closed = 2;
    err = lc_command(p, &stop);
    pthread_mutex_unlock(&p->lock);
    if (err < 0)
        return err;
    p->joined = 1;
    return -pthread_join(p->thread, NULL);
}

void lc_plane_free(struct lc_plane *p)
{
    struct lc_done done;

    if (!lc_alive(p) || lc_plane_stop(p) < 0)
        return;
    while (lc_plane_reap(p, &done, 1) == 1) {
        if (done.client >= 0)
            close(done.client);
        if (done.upstream >= 0)
            close(done.upstream);
        lc_framed_free(done.framed);
        if (done.trail != 0)
            (void)lc_trail_remove(done.trail);
    }
    release(p);
}
