/* The inside of HTTP sessions: docs/internals/plane.md.
 *
 * A session is a relay whose `http` is set: a client and, from time to time, an upstream. Its two
 * directions take turns at one exchange: the request's head is judged, Python is asked, the head
 * goes out anew, its body follows; the response comes back the same way. Then the next one.
 *
 * Who touches what: as in plane.h. While a session is ASKED its bytes in `in` (LC_RESPONSE: `part`)
 * are not touched, so that any thread can read them under the lock.
 */
#ifndef LC_PLANE_HTTP_H
#define LC_PLANE_HTTP_H

#include "plane.h"

enum {
    LC_SERVICES = 64,
    LC_ROOM = 16 * 1024 - 64,       /* bytes of a buffer that is kept for the next */
    LC_SPARES = 256,                /* buffers kept */
    LC_HEAD_MOST = 256 * 1024,      /* what limits may allow a head */
    LC_TOGETHER = 8192,             /* a body's first bytes travel with its head up to here */
    LC_BUCKETS = 1024,              /* of the pool */
    LC_HTTP_LIKE = 1024,            /* bytes that a verdict may depend on: more are like nothing */
    LC_ALIKE = 8192,                /* of these that have a number */
    LC_INTERIM = 200,               /* responses 1xx to one request */
    LC_LINGER = 30000,              /* milliseconds a client may take to read its last response */
    LC_LINGER_QUIET = 3000          /* and without sending anything more */
};

/* The request's direction. */
enum {
    UP_HEAD,            /* between requests, or a head that is not whole */
    UP_ASKED,
    UP_CONNECTING,
    UP_BODY,
    UP_DONE,            /* all of it was delivered */
    UP_LOST,            /* the upstream takes no more of it; its response may be there already */
    UP_LINGER           /* the last response went out: what still comes is thrown away */
};

/* The response's. */
enum { DOWN_NONE, DOWN_HEAD, DOWN_ASKED, DOWN_BODY, DOWN_DONE };

/* Where a question is. */
enum { TOLD_NOT, TOLD_LISTED, TOLD_WAITING, TOLD_FETCHED, TOLD_TAKEN };

enum {
    FIRST = 1,          /* of this connection */
    REUSED = 2,         /* the upstream has served before */
    RETRY = 4,          /* the request may be sent again: it has no body, and is idempotent */
    SPOILED = 8,        /* the upstream is not to be used again */
    CLIENT_KEEPS = 16,
    BEGUN = 32,         /* a byte of the response has come */
    ON_RESPONSE = 64,
    KEEP_UPGRADE = 128,
    TUNNEL = 256,
    STREAMED = 512,     /* body bytes are gone that nobody can send again */
    OWN = 1024,         /* the response is Python's */
    CONTINUED = 2048    /* 100 (Continue) has come */
};

struct buffer {
    struct buffer *next;            /* spare */
    uint32_t at, size, room;
    uint8_t bytes[];
};

/* Whose connection an upstream is: compared as bytes. */
struct route {
    struct lc_addr to, source;      /* family 0: the machine's */
    uint32_t mark;
    uint8_t has_mark, spoofs, unused[2];
};

struct service {
    struct lc_limits limits;
    uint64_t body;
    uint64_t head_time, idle_time, body_time, connect_time, response_time, tunnel_time, pool_idle;
                                    /* milliseconds */
    uint64_t shortest;              /* of the times that a request enters without a new deadline */
    uint32_t pool_size;
    int spoofer;
    int exchanges;                  /* each is told of */
    uint16_t number;
    uint16_t fields;
    const char *field;              /* names, each behind its size */
    const uint8_t *append;          /* to response heads */
    size_t append_size;
};

struct http {
    struct service *service;
    struct http *next;              /* in the line of questions */
    uint64_t id;                    /* of the session; 0: it ended while in that line */
    struct buffer *in;              /* the client's: a head, body bytes already sent, what follows */
    struct buffer *out;             /* a request head, until it cannot have to be sent again */
    struct buffer *part;            /* a response head that is not whole, or that was asked about */
    struct lc_head head, reply;     /* the request's, the response's */
    struct lc_chunks chunks[2];
    struct route route;             /* of the upstream there is, or that is being connected */
    struct lc_addr peer, original;
    uint64_t began;                 /* nanoseconds: the head was whole */
    uint64_t count[2];              /* the session's, when the exchange began */
    uint64_t since;                 /* milliseconds: this phase */
    uint32_t taken;                 /* bytes of the body in `in`, behind the head, that are sent */
    uint32_t mark;
    int32_t err;                    /* of a question about a failure */
    int16_t engine;
    uint16_t is;                    /* FIRST ... */
    uint16_t status;                /* of the response; of a question: what a refusal deserves */
    uint8_t has_mark;
    uint8_t up, down;
    _Atomic uint8_t told;
    uint8_t question;               /* LC_HTTP_REQUEST ... */
    uint8_t failed;                 /* LC_HTTP_CONNECT ... */
    uint8_t body[2];                /* LC_BODY_ of the request, the response */
    uint8_t interim;                /* 1xx that came */
    uint8_t bound;                  /* the upstream is this client's alone: LC_HEAD_BOUND */
};

struct pooled {
    struct route route;
    uint32_t chain;                 /* the next slot of its bucket */
};

struct http_plane {
    /* under the lock */
    struct service *service[LC_SERVICES];
    int services;
    struct http *told, *told_tail;
    uint8_t *log;                   /* exchanges to be fetched */
    size_t log_size, log_room;
    struct alike *alike[LC_ALIKE];

    /* the thread's */
    struct http *asked, *asked_tail;
    uint8_t *news;                  /* exchanges not told of yet */
    size_t news_size, news_room;
    struct buffer *spare;
    uint32_t spares;
    int64_t dated;                  /* seconds since 1970: */
    char date[96];                  /* a field line */
    uint8_t *read, *write;          /* scratch, LC_SCRATCH bytes each */
    uint32_t bucket[LC_BUCKETS];
    uint32_t oldest, newest, pooled;
};

enum { LC_SCRATCH = LC_HEAD_MOST + 2 * LC_COPY };

/* plane_http.c */
void lc_http_aim(struct lc_plane *p, struct relay *r, uint64_t due);
void lc_http_close(struct lc_plane *p, struct relay *r);
void lc_http_cut(struct lc_plane *p, struct relay *r, int what, int err, int side);

/* plane_http_user.c */
struct relay *lc_http_make(struct lc_plane *p, uint32_t service, int fd, const struct lc_addr *peer,
                           const struct lc_addr *original, int engine);    /* under the lock */

/* plane_http_like.c */
uint64_t lc_http_look(struct http_plane *hp, const struct http *h, const struct lc_head *head,
                      const uint8_t *bytes, uint8_t *first);
void lc_http_forget(struct http_plane *hp);

/* plane_http_tell.c */
void lc_http_log(struct lc_plane *p, struct relay *r, int end);
void lc_http_log_later(struct lc_plane *p, struct relay *r);

/* plane_http_up.c */
void lc_http_up(struct lc_plane *p, struct relay *r, size_t *budget);
void lc_http_send(struct lc_plane *p, struct relay *r);
void lc_http_ask(struct lc_plane *p, struct relay *r, int question, int status);
void lc_http_fail(struct lc_plane *p, struct relay *r, int failed, int err);
void lc_http_refuse(struct lc_plane *p, struct relay *r, int status);

/* plane_http_down.c */
void lc_http_down(struct lc_plane *p, struct relay *r, size_t *budget);
void lc_http_reply(struct lc_plane *p, struct relay *r, uint8_t *bytes, size_t size,
                   const struct lc_edit *told);

/* plane_http_answer.c */
void lc_http_tunnel(struct lc_plane *p, struct relay *r);
void lc_http_tunnel_on(struct lc_plane *p, struct relay *r);

/* plane_http_pool.c */
void lc_http_reach(struct lc_plane *p, struct relay *r, const struct route *to);
void lc_http_connect(struct lc_plane *p, struct relay *r);
void lc_http_connected(struct lc_plane *p, struct relay *r);
void lc_http_keep(struct lc_plane *p, struct relay *r);
void lc_http_drop(struct lc_plane *p, struct relay *r);

/* plane_http_bytes.c */
struct buffer *lc_buffer(struct lc_plane *p, size_t room);
void lc_buffer_free(struct lc_plane *p, struct buffer **b);
int lc_buffer_room(struct lc_plane *p, struct buffer **b, size_t size);
int lc_buffer_add(struct lc_plane *p, struct buffer **b, const uint8_t *bytes, size_t size);
int lc_deliver(struct lc_plane *p, struct relay *r, int d, const uint8_t *bytes, size_t size);
ssize_t lc_receive(struct relay *r, int side, uint8_t *bytes, size_t room);
int lc_quiet(struct relay *r, int side);
void lc_http_body(struct lc_plane *p, struct relay *r, int d, size_t *budget);
int lc_http_complete(const struct relay *r, int d);

#endif
