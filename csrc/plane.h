/* The inside of a plane: docs/internals/plane.md. Nothing of Python.
 *
 * Who touches what. Under `lock`: the free list, the slab's growth, commands, the completion list,
 * and a relay from the free list to its command and from its completion to the free list. In
 * between a relay belongs to the thread alone, but for its atomics and the state ASKED, which
 * changes under `lock` only.
 */
#ifndef LC_PLANE_H
#define LC_PLANE_H

#include "engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum {
    LC_CHUNK = 512,             /* relays the slab grows by */
    LC_CHUNKS = 8192,
    LC_COPY = 65160,            /* bytes of a copy: a multiple of the usual MSS */
    LC_BIG = 16384,             /* two reads of this many bytes make a flow a bulk flow */
    LC_BUDGET = 1 << 20,        /* bytes of one relay's turn */
    LC_LOOK = 1000,             /* milliseconds between two looks at what the kernel relays */
    LC_EVENTS = 256,
    LC_LISTENERS = 64
};

#define LC_NONE UINT32_MAX      /* no slot, no time-out */

enum { FREE, NEW, ASKED, CONNECTING, RELAYING, ENDED, POOLED };

/* What is known of a side, and of the direction that reads from it. */
enum {
    READABLE = 1,
    WRITABLE = 2,
    HUNG = 4,           /* RDHUP: the peer's end is in the receive queue, behind the last byte */
    EXACT = 8,          /* a short read does not mean that the queue is empty */
    FINISHED = 16,      /* this direction: its end was passed on, or its limit reached */
    NO_SPLICE = 32,
    BROKEN = 64         /* an error is to be fetched */
};

/* What one direction has read and not written yet: bytes, or a pipe; or its source, while the
 * kernel alone moves its bytes (SO_SPLICE). */
struct hold {
    int pipe[2];        /* -1: bytes */
    size_t size, done;  /* SO_SPLICE: `done` are counted, modulo the size_t */
    uint8_t bytes[];
};

/* What a connect or a question needs, and a relay does not. */
struct job {
    struct lc_open open;
    struct lc_addr to;
    struct lc_addr peer;
    int engine;
    uint32_t timeout;
    int action;
};

struct relay {
    atomic_int fd[2];           /* client, upstream */
    _Atomic uint32_t generation;
    uint32_t slot;
    uint32_t next, prev;        /* in the ready line; `next` also in the other lists */
    uint32_t place;             /* among the deadlines, from 1; 0: none */
    int32_t listener;           /* -1: none */
    int32_t err;
    uint32_t idle, total;       /* milliseconds */
    _Atomic uint8_t state;
    uint8_t ready;              /* in the line */
    uint8_t what;               /* LC_END_... */
    uint8_t blame;              /* lc_done.side */
    uint8_t limited;            /* every limit is reached: what is held goes out, then the end */
    uint8_t silent;             /* nobody wants the completion */
    uint8_t side[2];
    uint8_t big[2];             /* direction: big reads in a row */
    uint64_t began;             /* nanoseconds; once it has ended: how long it took */
    uint64_t last;              /* milliseconds: the last byte */
    _Atomic uint64_t count[2];  /* up, down */
    uint64_t limit[2];
    struct hold *hold[2];
    struct job *job;
    struct http *http;          /* a session: plane_http.h; else NULL */
    union {
        struct pooled *pooled;              /* POOLED */
        struct lc_http_exchange *tunnel;    /* RELAYING: what a session became is told of; or NULL */
    };
    struct framing *framing;    /* a framed read: plane_framed.c */
    struct flow *flow;          /* of datagrams: plane_flows.h; else NULL */
    uint64_t trail;             /* both ends of the upstream, hashed, for the loop guard; 0: none */
};

struct rules {
    int n;
    int marks;                  /* a row asks for one */
    struct lc_rule row[];
};

struct listener {
    int fd;                     /* -1: closed */
    int held;                   /* out of descriptors */
    int transparent;            /* it has IP_TRANSPARENT, and so have the sockets it accepts */
    uint32_t live;              /* connections that came by it and are in the plane */
    struct lc_addr at;
    struct lc_listen how;
    struct rules *rules;
    struct flows *flows;        /* of datagrams; else NULL */
};

struct command {
    enum { DO_START, DO_KILL, DO_ANSWER, DO_LISTEN, DO_POLICY, DO_UNLISTEN, DO_SERVE, DO_ANSWERS,
           DO_DRAIN, DO_STOP } what;
    uint32_t listener;
    uint64_t id;
    void *with;
};

struct deadline {
    uint64_t due;               /* milliseconds */
    uint32_t slot;
};

/* An event of the poller. */
struct event {
    uint64_t key;               /* generation << 32 | slot << 2 | side, or a key below */
    unsigned what;              /* READABLE, WRITABLE, HUNG, EXACT, BROKEN */
};
enum { KEY_LISTENER = 2, KEY_WAKE = 3 };

struct lc_plane {
    pthread_mutex_t lock;
    pthread_t thread;
    unsigned forks;             /* of this process at the plane's birth: another number, no plane */
    int joined;
    int poll;
    int wake[2];                /* to the thread; both the same where one descriptor does */
    int notify[2];              /* to the user */

    /* under the lock */
    _Atomic(struct relay *) chunk[LC_CHUNKS];   /* read without the lock */
    uint32_t slots, free;       /* slots made; head of the free list */
    struct command *commands;
    size_t n_commands, room;
    uint32_t done, done_tail;
    int tell_drained;
    uint64_t tell_over, unused; /* listeners, a bit each: to be told of; told of, to be had again */
    int closed;                 /* 1 draining: nothing new; 2 stopped: nothing at all */
    int listeners;

    /* the thread's */
    uint64_t now_ns, now;       /* of the turn; milliseconds */
    uint32_t ready, ready_tail, n_ready;
    uint32_t ended, ended_tail; /* not told yet */
    uint64_t over;              /* listeners, a bit each: not told yet */
    struct deadline *heap;
    uint32_t n_heap, heap_room;
    struct listener listener[LC_LISTENERS];
    uint64_t resume;            /* when held listeners try again; 0: none is held */
    int draining, stopping;
    uint8_t *buffer;
    struct event event[LC_EVENTS];
    int pipe[2];                /* scratch; empty, always */
    uint32_t pipe_size;
    uint64_t no_pipe;           /* until then no pipe is asked for */
    struct lc_batch *batch;     /* with the first listener for datagrams */
    size_t waiting;             /* bytes of datagrams that wait for a decision */
    _Atomic(struct http_plane *) http;  /* with the first service; plane_http.h says whose it is */

    _Atomic uint64_t accepted, relayed, asked, denied, looped, failed, finished, up, down, live,
        requests;
    _Atomic uint64_t datagrams, dropped, evicted;
};

/* Single writer: no read-modify-write needed. */
#define LC_ADD(counter, n) atomic_store_explicit(&(counter), \
    atomic_load_explicit(&(counter), memory_order_relaxed) + (uint64_t)(n), memory_order_relaxed)
#define LC_GET(counter) atomic_load_explicit(&(counter), memory_order_relaxed)

/* plane.c */
int lc_alive(const struct lc_plane *p);
int lc_reserve(struct lc_plane *p, size_t n);                   /* under the lock */
int lc_command(struct lc_plane *p, const struct command *c);    /* under the lock; copied */
int lc_queue(struct lc_plane *p, const struct command *c);      /* the same; 1: wake the thread */

/* plane_user.c */
void lc_hush(struct lc_plane *p);                               /* under the lock */
int lc_say_how(struct relay *r, const struct lc_pair *pair);    /* -ENOMEM; descriptors apart */

/* plane_slab.c */
struct relay *lc_slot(struct lc_plane *p, uint32_t slot);
struct relay *lc_by_id(struct lc_plane *p, uint64_t id);        /* NULL: it has ended */
uint64_t lc_id(const struct relay *r);
uint64_t lc_key(const struct relay *r, int side);               /* of the poller */
struct relay *lc_take(struct lc_plane *p);                      /* under the lock */
void lc_give(struct lc_plane *p, struct relay *r);              /* under the lock */

/* plane_timers.c */
int lc_timer_set(struct lc_plane *p, struct relay *r, uint64_t due);
void lc_timer_clear(struct lc_plane *p, struct relay *r);
struct relay *lc_timer_due(struct lc_plane *p);     /* the first one that is due, off the heap */

/* plane_pump.c */
struct hold *lc_hold_bytes(const uint8_t *bytes, size_t size);
void lc_hold_drop(struct lc_plane *p, struct relay *r, int d);
size_t lc_push(struct lc_plane *p, struct relay *r, int d, const uint8_t *bytes, size_t size,
               int *err);
void lc_pump(struct lc_plane *p, struct relay *r, int d, size_t *budget);

/* plane_relay.c */
int lc_relay_start(struct lc_plane *p, struct relay *r);
void lc_relay_run(struct lc_plane *p, struct relay *r);
void lc_relay_end(struct lc_plane *p, struct relay *r, int what, int err, int side);
void lc_relay_broke(struct lc_plane *p, struct relay *r, int side, int err);
void lc_relay_timer(struct lc_plane *p, struct relay *r);
void lc_ready(struct lc_plane *p, struct relay *r);
void lc_unready(struct lc_plane *p, struct relay *r);
void lc_finished(struct lc_plane *p, struct relay *r);      /* to be told at the turn's end */
void lc_reset_fd(int fd);

/* plane_framed.c, of relays that are framed reads */
void lc_framed_start(struct lc_plane *p, struct relay *r);
void lc_framed_run(struct lc_plane *p, struct relay *r);
void lc_framed_over(struct lc_plane *p, struct relay *r, int end);
struct lc_framed *lc_framed_leave(struct relay *r);     /* what was read: the caller's */

/* plane_connect.c */
int lc_connect_go(struct job *job, int *fd, uint64_t *trail);   /* *fd < 0: there is none */
void lc_connect_start(struct lc_plane *p, struct relay *r);
void lc_connect_event(struct lc_plane *p, struct relay *r, unsigned what);

/* plane_listen.c */
void lc_listener_event(struct lc_plane *p, uint32_t number);
void lc_listener_start(struct lc_plane *p, uint32_t number, struct listener *made);  /* frees it */
void lc_listener_stop(struct lc_plane *p, uint32_t number);
void lc_listener_resume(struct lc_plane *p);
void lc_left(struct lc_plane *p, const struct relay *r);

/* plane_answer.c */
void lc_go_there(struct lc_plane *p, struct relay *r, int action);
void lc_ask(struct lc_plane *p, struct relay *r);
void lc_asked_end(struct lc_plane *p, struct relay *r);
void lc_answered(struct lc_plane *p, struct relay *r);

/* plane_policy.c; lc_judge is in shim.h */
struct rules *lc_rules_copy(const struct lc_rule *rules, int n);   /* NULL: no memory */

/* plane_http*.c, of relays that are sessions */
void lc_http_accepted(struct lc_plane *p, uint32_t number, const struct lc_accepted *got,
                      const struct lc_origin *o);
void lc_http_start(struct lc_plane *p, struct relay *r);
void lc_http_run(struct lc_plane *p, struct relay *r);
void lc_http_broke(struct lc_plane *p, struct relay *r, int d, int side, int err);
void lc_http_ended(struct lc_plane *p, struct relay *r, int d);
void lc_http_end(struct lc_plane *p, struct relay *r, int what);
void lc_http_tunnel_end(struct lc_plane *p, struct relay *r, int what);
void lc_http_timer(struct lc_plane *p, struct relay *r);
void lc_http_answers(struct lc_plane *p, uint8_t *answers, size_t size);    /* frees them */
void lc_http_drain(struct lc_plane *p);
int lc_http_news(const struct lc_plane *p);
void lc_http_tell(struct lc_plane *p);                          /* under the lock */
int lc_http_waiting(const struct lc_plane *p);                  /* under the lock */
void lc_http_free(struct lc_plane *p);
void lc_pool_end(struct lc_plane *p, struct relay *r);
int lc_pool_spare(struct lc_plane *p);      /* 1: an idle upstream was closed: a descriptor is free */
void lc_pool_clear(struct lc_plane *p);

/* plane_flows.c, plane_flow.c: of relays and listeners that have `flow` and `flows` */
int lc_flows_start(struct lc_plane *p, struct listener *l);
void lc_flows_stop(struct lc_plane *p, struct listener *l);
void lc_flows_event(struct lc_plane *p, uint32_t number);
void lc_flow_answered(struct lc_plane *p, struct relay *r);
void lc_flow_run(struct lc_plane *p, struct relay *r);
void lc_flow_end(struct lc_plane *p, struct relay *r);

/* plane_guard.c */
void lc_guard_listener(int fd, int on);
int lc_own_listener(const struct lc_addr *to);

/* plane_linux.c, plane_bsd.c */
int lc_poll_open(struct lc_plane *p);
void lc_poll_close(struct lc_plane *p);
int lc_poll_add(struct lc_plane *p, int fd, uint64_t key);
int lc_poll_add_listener(struct lc_plane *p, int fd, uint64_t key);
int lc_poll_move(struct lc_plane *p, int fd, uint64_t key);     /* another's from now on */
int lc_poll_add_reader(struct lc_plane *p, int fd, uint64_t key);   /* as lc_poll_add, to read */
void lc_poll_remove(struct lc_plane *p, int fd);
int lc_poll_wait(struct lc_plane *p, int64_t ms);   /* events, in p->event */
int lc_bell_open(int bell[2]);
void lc_bell_ring(const int bell[2]);
void lc_bell_quiet(const int bell[2]);
void lc_bell_close(int bell[2]);
/* A bulk move: bytes taken from the source (0: its end), or -errno of the source; -ENOTSUP: copy.
 * What the sink did not take is r->hold[d]; *sink is the sink's errno. */
ssize_t lc_bulk(struct lc_plane *p, struct relay *r, int d, size_t most, int *sink);
/* What a held pipe has left goes to the sink: 0 all, -EAGAIN, -errno. */
int lc_bulk_drain(struct lc_plane *p, struct relay *r, int d);
/* Bytes that moved without the thread are counted: 0: none ever do. */
int lc_bulk_look(struct lc_plane *p, struct relay *r, int d);
/* The hold has left the relay, its memory is the caller's. */
void lc_bulk_drop(struct lc_plane *p, struct relay *r, int d, struct hold *h);
void lc_bulk_close(struct lc_plane *p);

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0          /* macOS: SIGPIPE is blocked in the thread */
#endif

#endif
