/* The one header that Python sees.
 *
 * Return convention of every function: >= 0, or -errno. Numbers of options are taken from the
 * system's headers in C, never in Python: the same number is another option on another system.
 *
 * csrc/build_shim.py hands cffi the text between the two cdef lines, and every "#define LC_HAS_"
 * and "#define LC_OPT_" as an integer constant.
 */
#ifndef LC_SHIM_H
#define LC_SHIM_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */

/* An address of either family, normalised: a v4-mapped IPv6 address has family 4. */
struct lc_addr {
    uint8_t family;     /* 0 none, 4, 6 */
    uint8_t unused;
    uint16_t port;      /* host order */
    uint32_t flow;      /* host order */
    uint32_t scope;     /* interface index of a link-local address, else 0 */
    uint8_t ip[16];     /* network order; the first 4 bytes for family 4 */
};

/* The flags of comm_open. The first six have the values of Lusca's COMM_ flags. */
enum {
    LC_NONBLOCKING = 1,
    LC_NOCLOEXEC = 2,
    LC_REUSEADDR = 4,
    LC_DOBIND = 8,
    LC_TPROXY_LCL = 16,
    LC_TPROXY_REM = 32,
    LC_INTERCEPT = 64,
    LC_REUSEPORT = 128,
    LC_TRANSPARENT_PORT = 256
};

/* The steps of lc_open, in their order: which one failed decides what mends it. */
enum {
    LC_STEP_SOCKET = 1,
    LC_STEP_TOS,
    LC_STEP_REUSE,
    LC_STEP_V6ONLY,
    LC_STEP_MARK,
    LC_STEP_DEVICE,
    LC_STEP_RIGHT,      /* the option that allows a foreign address: IP_TRANSPARENT, IP_BINDANY */
    LC_STEP_ORIGDST,    /* asking for the original destination of datagrams */
    LC_STEP_BIND,
    LC_STEP_CONNECT     /* lc_open_flow alone */
};

struct lc_open {
    int family;         /* of the socket: 4 or 6 */
    int type;           /* SOCK_STREAM or SOCK_DGRAM */
    int proto;
    unsigned flags;
    int engine;         /* row of the engine table that grants a foreign address; -1: none asked */
    int dualstack;      /* IPv6 socket that takes both families */
    int tos;            /* 0: left as the system has it */
    int has_mark;
    uint32_t mark;
    char device[16];    /* "": none */
    struct lc_addr address; /* family 0: not bound */
};

int lc_open(const struct lc_open *request, int *step);
/* Puts a fresh socket, bound as `request` says, under the descriptor number `fd`; the options that
 * were set on the old one are set on it. */
int lc_reopen(int fd, const struct lc_open *request, int *step);

struct lc_accepted {
    int fd;
    int family;         /* of the socket: AF_INET, AF_INET6, ... as the system numbers it */
    struct lc_addr peer;
    struct lc_addr me;
};

/* One connection, non-blocking, close-on-exec unless `inherit`. -EAGAIN: the queue is empty. */
int lc_accept(int fd, int inherit, struct lc_accepted *out);
/* listen(2), for a socket that was opened as `request` says; NULL: for any other. `defer`: seconds
 * that a connection may wait in the kernel for its first bytes; 0: it does not. */
int lc_listen(int fd, const struct lc_open *request, int backlog, int defer);
/* connect(2); -EINPROGRESS where it goes on in the background. */
int lc_connect(int fd, const struct lc_addr *to);
/* lc_connect from the address that `request`, with which the socket was opened, names.
 * -EADDRNOTAVAIL: its port is taken. */
int lc_connect_as(int fd, const struct lc_open *request, const struct lc_addr *to);
/* SO_ERROR, which reading clears: an errno (positive), 0, or -errno of the question. */
int lc_error(int fd);
/* The end of the stream: shutdown(2) of the sending half. */
int lc_finish(int fd);
/* Bytes that the peer has not acknowledged, the end that was sent counting as one; INT_MAX: nobody can
 * tell. */
int lc_unsent(int fd);
/* Resets a connection now, whoever else holds the socket, and has closing do no more. */
int lc_abort(int fd);
int lc_local(int fd, struct lc_addr *out);
/* The address that others see of a socket opened as `request` says: lc_local, unless its engine
 * gives it another. */
int lc_seen(int fd, const struct lc_open *request, struct lc_addr *out);
int lc_peer(int fd, struct lc_addr *out);

/* One datagram, and where it was going; family 0 in `original`: the socket was not opened to be told.
 * -EAGAIN: none waits. */
int lc_recv(int fd, void *buffer, int size, struct lc_addr *peer, struct lc_addr *original);
/* One datagram, from `from`, where that is not NULL and the system can say so. */
int lc_send(int fd, const void *data, int size, const struct lc_addr *to,
            const struct lc_addr *from);

/* A datagram socket opened as `request` says, with its port, and connected to `peer`, which is never
 * found by other senders' datagrams where the system can do that. */
int lc_open_flow(const struct lc_open *request, const struct lc_addr *peer, int *step);
/* Has a datagram socket that exists tell where each was going; and whether one does. */
int lc_tell_original(int fd);
int lc_tells_original(int fd);

/* Datagrams in batches. */
enum { LC_BATCH = 64, LC_STRIDE = 65536 + 192 };

struct lc_datagram {
    int fd;                     /* that received it */
    int size;                   /* -errno of that descriptor: no datagram */
    struct lc_addr peer;
    struct lc_addr original;    /* as lc_recv has it */
};

struct lc_batch;
/* NULL: no memory. */
struct lc_batch *lc_batch_new(void);
void lc_batch_free(struct lc_batch *batch);
/* What the last lc_recv_many brought; the bytes of each begin LC_STRIDE behind those of the last. */
struct lc_datagram *lc_batch_datagrams(struct lc_batch *batch);
uint8_t *lc_batch_bytes(struct lc_batch *batch);
/* What waits on `n` descriptors, `max` datagrams in all and at most LC_BATCH, a share from each: how
 * many there are. */
int lc_recv_many(struct lc_batch *batch, const int *fds, int n, int max);

struct lc_parcel {
    int fd;                     /* a connected socket */
    int size;
    const void *bytes;
    int sent;                   /* answered: bytes, or -errno */
};
/* Sends them all, those in a row for one socket in one call: how many went. */
int lc_send_many(struct lc_parcel *parcels, int n);

/* Options by what they mean. Bytes, seconds; keepalive: a part that is 0 is left as it is. */
int lc_set_tos(int fd, int tos);
int lc_get_tos(int fd);
int lc_set_nodelay(int fd);
int lc_set_keepalive(int fd, int idle, int interval, int count);
int lc_set_buffers(int fd, int bytes);
int lc_set_no_pmtu_discover(int fd);
int lc_set_priority(int fd, int priority);

/* 1: `address` is one of this machine's (of the calling thread's network namespace); 0: it is not. */
int lc_own(const struct lc_addr *address);

/* What an engine can do. */
enum {
    LC_CAN_LOOKUP = 1,  /* tells where a connection was going */
    LC_CAN_LISTEN = 2,  /* binds a listener to what is not this machine's */
    LC_CAN_SPOOF = 4,   /* connects from an address that is not this machine's */
    LC_CAN_TCP = 8,
    LC_CAN_UDP = 16,
    LC_CAN_V4 = 32,
    LC_CAN_V6 = 64,
    LC_NAMED_ONLY = 128 /* never chosen unless the user names it */
};

int lc_engine_count(void);
const char *lc_engine_name(int engine);
unsigned lc_engine_abilities(int engine);
/* 0: works on this machine; else -errno. Opens the devices the engine needs, once. */
int lc_engine_probe(int engine);
/* The same of an engine that the user named: one that is not even probed otherwise (-ECANCELED). */
int lc_engine_open(int engine);
/* Grants a socket that exists the right to foreign local addresses. */
int lc_allow(int fd, int engine);

struct lc_origin {
    int engine;         /* row of the table that answered, or that failed; -1: none */
    int translated;     /* the destination was rewritten (NAT) */
    int transparent;    /* the socket carries IP_TRANSPARENT (or its like) */
    int own;            /* 1: the local address is one of this machine's; 0: not; -1: not asked */
    int nat_errno;      /* what the last NAT engine said, 0 if none was asked */
    struct lc_addr original;
    struct lc_addr local;
    struct lc_addr peer;
};

/* Where the connection on `fd` was going. engine -1: found out from the signs on the socket.
 * -ENOENT: not intercepted. */
int lc_original(int fd, int engine, struct lc_origin *out);
/* The same of one datagram: `local` is the destination that it arrived with. */
int lc_original_of(int fd, int engine, const struct lc_addr *local, const struct lc_addr *peer,
                   struct lc_origin *out);

/* Linux capabilities: NULL past the last one, and everywhere else. */
const char *lc_capability_name(int number);
/* Of the calling thread: the permitted and the effective set become `bits` (1 << number), the
 * inheritable and the ambient set empty. */
int lc_capabilities_set(uint64_t bits);
/* Whether the permitted set outlives a change of uid. */
int lc_capabilities_outlive_setuid(int on);
/* Empties the bounding set: what it executes gets none back, not even as uid 0. */
int lc_capabilities_unbound(void);

/* A system as the engines see its devices: the calls answer >= 0 or -errno. */
struct lc_machine {
    const char *system; /* whose layouts the devices speak: "freebsd", "netbsd", "openbsd", ... */
    int (*open)(const char *path, int flags);
    int (*control)(int fd, unsigned long command, void *argument);
    int (*rdomain)(int fd);
};

/* Puts another machine's devices in the place of this one's, for tests; NULL: this one's again.
 * Devices that are open are closed. `other` must outlive its use. */
void lc_machine_is(const struct lc_machine *other);
/* Which system this is, as struct lc_machine names it. */
const char *lc_system(void);

/* -- the data plane: docs/internals/plane.md -------------------------------------------------- */

struct lc_plane;

/* What a completion tells: how a relay ended, or something else. */
enum {
    LC_END_EOF = 1,     /* both sides have ended */
    LC_END_RESET,
    LC_END_IDLE,
    LC_END_TOTAL,
    LC_END_LIMIT,       /* both descriptors are given back */
    LC_END_KILLED,
    LC_END_ERROR,
    LC_END_CONNECT,     /* the upstream was not reached: the client is given back */
    LC_ASKED,           /* a listener's policy left a connection to the user: lc_plane_answer */
    LC_REFUSED,         /* nothing intercepted it, or relaying it would have been a loop: reset */
    LC_FRAMED,          /* a framed read is over: `framed`; its connection is given back */
    LC_CLOSED,          /* a listener, and all connections that came by it have left the plane */
    LC_DRAINED,
    LC_END_EVICTED,     /* a flow that had to go for another one */
    LC_CONNECTED        /* a connect without a client: `upstream` and `trail` are given back */
};

/* The descriptors are non-blocking. */
struct lc_pair {
    int client;         /* -1: it only connects */
    int upstream;       /* -1: connects to `to`, from a socket opened as `open` says */
    int64_t limit_up;   /* bytes; negative: none */
    int64_t limit_down;
    int64_t idle;       /* milliseconds; negative: none */
    int64_t total;
    int64_t timeout;    /* of the connect */
    const uint8_t *prefix;  /* to go upstream before anything else; copied */
    size_t prefix_size;
    const uint8_t *prefix_down; /* the same to the client */
    size_t prefix_down_size;
    const struct lc_open *open;
    const struct lc_addr *to;
    uint64_t trail;     /* of lc_trail_connect, removed at the end; 0: none */
    uint64_t id;        /* answered */
};

struct lc_done {
    uint64_t id;
    int what;
    int err;            /* errno, 0 */
    int side;           /* where the reset or the error came from: 1 client, 2 upstream, 0 neither */
    int client;         /* given back (LC_ASKED: to look at), else -1 */
    int upstream;
    int listener;       /* that brought the connection, or that has closed; else -1 */
    int engine;         /* that told the original destination, else -1 */
    uint64_t up;
    uint64_t down;
    double seconds;
    struct lc_addr peer;        /* LC_ASKED, LC_REFUSED */
    struct lc_addr original;    /* LC_REFUSED: where it arrived, or where it would go round */
    struct lc_framed *framed;   /* LC_FRAMED: the caller's, for lc_framed_free; else NULL */
    uint64_t trail;             /* LC_CONNECTED: of lc_trail_connect; else 0 */
};

struct lc_totals {
    uint64_t accepted, relayed, asked, denied, looped, failed, ended, up, down;
    uint64_t live;
    uint64_t requests;  /* of HTTP: exchanges that have ended */
    uint64_t datagrams, dropped;    /* relayed; not */
    uint64_t evicted;               /* flows that had to go for others */
};

enum { LC_REPORT_NONE, LC_REPORT_ALL, LC_REPORT_FAILED /* connects */ };

/* What is done with a connection. */
enum { LC_RELAY = 1, LC_SPOOF, LC_DENY, LC_ASK, LC_HAND_OVER, LC_JOIN };

/* A row of a policy: the first that matches counts. */
struct lc_rule {
    uint8_t action;
    uint8_t family;         /* of the original destination; 0: both */
    uint8_t bits;           /* of `ip` that must be the same */
    uint8_t source_family;  /* of the client; 0: both */
    uint8_t source_bits;
    uint8_t unused;
    uint16_t low, high;     /* ports of the original destination */
    uint8_t ip[16];
    uint8_t source[16];
    uint32_t mark, mask;    /* of the packet that began it; mask 0: any */
};

/* The action of the first row that matches, LC_DENY if none does. `mark`: 0 where none is known. */
int lc_judge(const struct lc_rule *rules, int n, const struct lc_addr *client,
             const struct lc_addr *original, uint32_t mark);

struct lc_listen {
    int engine;         /* that tells original destinations; -1: found out */
    int spoofer;        /* that grants the client's address; -1: none, LC_SPOOF fails */
    unsigned flags;     /* of the outgoing sockets: LC_REUSEADDR, LC_TRANSPARENT_PORT */
    int has_mark;
    uint32_t mark;
    int service;        /* of HTTP, from 1: LC_ASK begins a session of it; 0: none */
    int direct;         /* not intercepted: there is no original destination */
    int report;         /* which ends are told by a completion: an LC_REPORT_ of these */
    int refusals;       /* they are told of: LC_REFUSED */
    uint32_t flows;     /* of a listener for datagrams: how many there may be; else 0 */
    int64_t idle, total, timeout;
};

struct lc_answer {
    uint64_t id;
    int action;         /* LC_HAND_OVER: `client` of the completion is the caller's from now on;
                         * LC_JOIN: relays to how->upstream, connected, the plane's from now on */
    struct lc_addr to;  /* family 0: the original destination */
    const struct lc_pair *how;  /* its limits, prefixes and time-outs; NULL: as the listener has them */
};

int lc_plane_open(struct lc_plane **out);
/* Ends the thread and every relay; what was to be given back and was not fetched is closed. */
void lc_plane_free(struct lc_plane *plane);
/* Readable while there are completions. */
int lc_plane_fd(struct lc_plane *plane);
/* Hands `n` pairs over, all or none, and tells their ids. */
int lc_plane_submit(struct lc_plane *plane, struct lc_pair *pairs, int n);
int lc_plane_reap(struct lc_plane *plane, struct lc_done *out, int max);
int lc_plane_kill(struct lc_plane *plane, uint64_t id);
/* Bytes up and down so far. -ESRCH: ended, and fetched. */
int lc_plane_counts(struct lc_plane *plane, uint64_t id, uint64_t *up, uint64_t *down);
int lc_plane_totals(struct lc_plane *plane, struct lc_totals *out);
/* 1: the plane owns `fd`; its relay's id. */
int lc_plane_find(struct lc_plane *plane, int fd, uint64_t *id);
int lc_plane_drain(struct lc_plane *plane);
int lc_plane_stop(struct lc_plane *plane);
/* Takes connections from `fd`, which becomes the plane's. Answers the listener's number. */
int lc_plane_listen(struct lc_plane *plane, int fd, const struct lc_listen *how,
                    const struct lc_rule *rules, int n);
int lc_plane_policy(struct lc_plane *plane, int listener, const struct lc_rule *rules, int n);
int lc_plane_unlisten(struct lc_plane *plane, int listener);
/* The first datagram of a flow that was asked about: how long it is; as much as fits is copied. */
int lc_plane_waiting(struct lc_plane *plane, uint64_t id, void *buffer, int size);
int lc_plane_answer(struct lc_plane *plane, const struct lc_answer *answers, int n);

/* The loop guard. A connection that this process makes under the machine's own name; and whether one
 * that arrives is such a one. lc_connect_as (`request` NULL: lc_connect), and what it began is noted
 * before any thread can ask about it; *trail is 0 where nothing is. */
int lc_trail_connect(int fd, const struct lc_open *request, const struct lc_addr *to,
                     uint64_t *trail);
int lc_trail_remove(uint64_t trail);
int lc_own_connection(const struct lc_addr *peer, const struct lc_addr *original);

/* For tests: the call fails with `err` (LC_FAULT_SIZE: answers it), `times` times after `skip`
 * good ones. */
enum { LC_FAULT_PIPE, LC_FAULT_RESIZE, LC_FAULT_SIZE, LC_FAULT_SPLICE_IN, LC_FAULT_SPLICE_OUT,
       LC_FAULTS };
int lc_plane_fault(int call, int err, int skip, int times);
/* For tests: what control messages say, as lc_recv takes it. 1: they tell an address. */
int lc_read_control(const void *bytes, size_t size, struct lc_addr *original);

/* -- framing: docs/framing.md ----------------------------------------------------------------- */

/* The one judge of where messages end. No call here does I/O, allocates, or keeps anything but what
 * its caller holds. */

struct lc_span { uint32_t at, size; };      /* of the bytes that were given */

enum { LC_FRAMER_HTTP_REQUEST, LC_FRAMER_HTTP_RESPONSE, LC_FRAMER_TLS_HELLO,
       LC_FRAMER_LENGTH16 /* DNS over TCP */, LC_FRAMERS };

enum {
    LC_HEAD_MORE,       /* not whole yet */
    LC_HEAD_WHOLE,
    LC_HEAD_REFUSED,    /* `why`, and the `status` that it deserves */
    LC_HEAD_OTHER,      /* another protocol; behind a message of this one that is a refusal, too */
    LC_HEAD_H2          /* the preface of HTTP/2 with prior knowledge */
};

/* LENGTH of 0 is a body, too: it is said to the next hop. */
enum { LC_BODY_NONE, LC_BODY_LENGTH, LC_BODY_CHUNKED, LC_BODY_CLOSE };

enum { LC_TARGET_ORIGIN = 1, LC_TARGET_ABSOLUTE, LC_TARGET_AUTHORITY /* CONNECT's */,
       LC_TARGET_ASTERISK /* OPTIONS' */ };

enum {
    LC_HEAD_KEEP = 1,           /* its sender keeps the connection, if the body lets it */
    LC_HEAD_OLD = 2,            /* HTTP/1.0 */
    LC_HEAD_EXPECT = 4,         /* 100-continue, with a body, HTTP/1.1 */
    LC_HEAD_UPGRADE = 8,        /* asks for, or (101) is, a switch of protocols; h2c never counts */
    LC_HEAD_CONNECT = 16,
    LC_HEAD_IS_HEAD = 32,
    LC_HEAD_SAFE = 64,          /* GET HEAD OPTIONS TRACE */
    LC_HEAD_IDEMPOTENT = 128,   /* those, PUT, DELETE */
    LC_HEAD_TRAILERS = 256,     /* TE: trailers */
    LC_HEAD_BOUND = 512,        /* NTLM or Negotiate, which tell whose the whole connection is */
    LC_HEAD_ANY_HOST = 1024     /* `about` a request: where it goes is known, it may lack Host */
};

/* What was wrong: lc_bad_text has the words. */
enum {
    LC_BAD_START = 1, LC_BAD_METHOD, LC_BAD_TARGET, LC_BAD_VERSION, LC_BAD_VERSION_UNKNOWN,
    LC_BAD_CODE, LC_BAD_BLANK, LC_BAD_BYTE, LC_BAD_FOLD, LC_BAD_NAME, LC_BAD_SPACE, LC_BAD_HOST,
    LC_BAD_HOSTS, LC_BAD_NO_HOST, LC_BAD_LENGTH, LC_BAD_LENGTHS, LC_BAD_CODING, LC_BAD_CODINGS,
    LC_BAD_CODING_UNKNOWN, LC_BAD_CODING_OLD, LC_BAD_BOTH, LC_BAD_CONNECTION, LC_BAD_EXPECT,
    LC_BAD_CONNECT_BODY, LC_BAD_SWITCH, LC_BAD_LONG_LINE, LC_BAD_LONG_HEAD, LC_BAD_FIELDS,
    LC_BAD_CHUNK_SIZE, LC_BAD_CHUNK_LINE, LC_BAD_CHUNK_END, LC_BAD_TRAILER, LC_BAD_RECORD,
    LC_BAD_FRAME, LC_BADS
};
const char *lc_bad_text(int why);   /* "" beyond the last one */

struct lc_limits {
    uint32_t line;      /* bytes of a line without its end: the start line 414, a field 431 */
    uint32_t head;      /* bytes of the whole, and of all trailers */
    uint32_t fields;
};

/* Zeroed before the first call for a message; the same again while it is MORE. */
struct lc_head {
    int state;
    int why;
    int status;         /* of a refused request 4xx, 5xx; of a refused response 502 */
    int body;
    int code;           /* of a response */
    int minor;          /* HTTP/1.minor */
    int form;           /* of a request's target: LC_TARGET_... */
    uint32_t flags;
    uint64_t length;    /* Content-Length; told by answers to HEAD and by a 304 without a body */
    uint32_t size;      /* WHOLE: bytes of the head, blank line included. What is behind is body */
    uint32_t fields;
    struct lc_span start[3];    /* method target version; version code reason; LENGTH16: its payload */
    struct lc_span authority;   /* within an absolute or authority form */
    struct lc_span host;        /* the value of Host; size 0: none, or an empty one */
    uint32_t seen, step, marks; /* the framer's own */
};

/* Judges the message that begins at `bytes`. Called again with the same bytes and more behind them,
 * it goes on where it was: all calls together look at each byte once or twice. Split anywhere, the
 * verdict is the same, and comes with the first byte that decides it. `about`: of a response, the
 * flags of the request that it answers; of a request LC_HEAD_ANY_HOST or 0. Answers out->state. Spans
 * stay right when bytes move. */
int lc_frame_head(int framer, const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                  unsigned about, struct lc_head *out);
/* The values of the fields called `name`, in any case, without the space around them: how many
 * there are; the first `max` of them in `out`. Of a WHOLE head. */
int lc_head_find(const uint8_t *head, const struct lc_head *h, const char *name, size_t size,
                 struct lc_span *out, int max);
/* The first field behind *at (0: the start line) that has one of `n` names, each behind a byte that is
 * its size: which of them, and its value; -1: there is none. */
int lc_head_next(const uint8_t *head, const struct lc_head *h, const char *names, int n,
                 uint32_t *at, struct lc_span *value);

/* Connection names fields of its own. They may be trailers, too (RFC 9110, 7.6.1). */
int lc_head_names(const struct lc_head *h);

/* A chunked body. Zeroed before its first byte. */
struct lc_chunks {
    uint64_t left;      /* of the chunk's data. Its owner may move up to that many bytes past the
                         * walker, between two calls: it then takes them off here */
    uint64_t size;      /* of the chunk, as far as it has been read */
    uint64_t data;      /* bytes of it that the walker has seen */
    uint32_t line;      /* bytes of the line so far */
    uint32_t trailers;  /* bytes of them */
    uint32_t fields;
    uint16_t step;
    uint16_t why;       /* LC_BAD_... of a refusal */
    uint32_t bare;      /* told: without trailers (which RFC 9112, 7.1.2, allows) */
};

/* Judges what came and rewrites it in place: size lines without extensions and padding, trailers
 * as name:value. The first *kept bytes are then to be sent on. Of the `size` bytes given
 * *used are done with; the rest (less than a line of the trailers) is given again, with more behind
 * it. WHOLE: the body ended at *used, and its last line is among those kept. */
int lc_chunks_walk(struct lc_chunks *c, const struct lc_limits *limits, uint8_t *bytes, size_t size,
                   size_t *used, size_t *kept);

enum {
    LC_EDIT_CLOSE = 1,          /* Connection: close; a body that ends so has it by itself */
    LC_EDIT_KEEP = 2,           /* Connection: keep-alive, which HTTP/1.0 wants to be told */
    LC_EDIT_UPGRADE = 4,        /* Upgrade is kept, if LC_HEAD_UPGRADE; a 101 has it by itself */
    LC_EDIT_PROXY = 8,          /* Proxy-Authorization, Proxy-Authenticate are kept */
    LC_EDIT_ORIGIN = 16         /* a target with a scheme goes without it (RFC 9112, 3.2.1, 3.2.4) */
};

struct lc_edit {
    const uint8_t *start;       /* a start line, its CRLF included, in the place of the one judged;
                                 * the version is ours all the same. NULL: as it was */
    size_t start_size;
    const char *drop;           /* names of fields, in any case, commas between them */
    size_t drop_size;
    const uint8_t *append;      /* field lines, CRLFs included */
    size_t append_size;
    const char *date;           /* a line for a head without Date, its CRLF included; NULL: none */
    unsigned what;              /* LC_EDIT_... */
};

/* Writes a WHOLE head anew, for the next hop: the start line (requests in the version they came in,
 * responses as HTTP/1.1), every field that is for all hops as "Name: value", the body's framing
 * once, as judged, Connection as told. Connection names away what it likes but Host and the
 * framing; trailers that it may have named go with lc_chunks.bare. A target that has an authority
 * tells Host, too (RFC 9112, 3.2.2).
 * What is added is judged by the same judge: -EINVAL, if it is no start line or field, or would
 * change the framing (HEAD for GET, 204 for 200, a Content-Length). Answers the size, or -ENOBUFS:
 * less room than lc_edit_room says. */
int lc_head_edit(const uint8_t *head, const struct lc_head *h, const struct lc_edit *edit,
                 uint8_t *out, size_t room);
size_t lc_edit_room(const struct lc_head *h, const struct lc_edit *edit);
/* 0: lc_head_edit will write that. -EINVAL. */
int lc_edit_check(const struct lc_head *h, const struct lc_edit *edit);

/* A framed read, a command of the plane: reads from a connection until a framer has a verdict. */
struct lc_framing {
    int framer;
    unsigned about;
    struct lc_limits limits;
    int64_t timeout;        /* milliseconds; negative: none */
    const uint8_t *prefix;  /* read already; copied */
    size_t prefix_size;
};

struct lc_framed {
    struct lc_head head;
    int end;        /* LC_FRAMED: a verdict. LC_END_EOF, LC_END_IDLE (time): none came before that */
    size_t size;    /* bytes read; what is behind the message is among them */
    uint8_t bytes[];
};

/* `fd`, non-blocking, is the plane's until LC_FRAMED. Any other end has closed it. */
int lc_plane_framed(struct lc_plane *plane, int fd, const struct lc_framing *how, uint64_t *id);
void lc_framed_free(struct lc_framed *framed);

/* -- HTTP sessions of the data plane: docs/internals/plane.md --------------------------------- */

/* Times in milliseconds. */
struct lc_http_how {
    struct lc_limits limits;
    uint64_t body;              /* bytes of a request's body at most */
    uint64_t head_time, idle_time, body_time, connect_time, response_time, tunnel_time, pool_idle;
    uint32_t pool_size;
    int spoofer;                /* that grants a client's address; -1: none */
    int exchanges;              /* each is told of: lc_http_exchanges */
    uint16_t fields;            /* names of fields that questions have the values of, */
    uint32_t names;             /* bytes of them, */
    const char *field;          /* each behind a byte that is its size */
    const uint8_t *append;      /* field lines for each response, CRLFs included */
    size_t append_size;
};

/* What a question is about. */
enum {
    LC_HTTP_REQUEST = 1,
    LC_HTTP_REFUSED,    /* what came deserves `status`, and nothing more is read */
    LC_HTTP_OTHER,      /* another protocol */
    LC_HTTP_H2,         /* HTTP/2 with prior knowledge */
    LC_HTTP_SILENT,     /* nothing came */
    LC_HTTP_FAILED,     /* the answer to a request was not carried out: `failed`, `err` */
    LC_HTTP_RESPONSE
};
enum { LC_HTTP_NO_CONNECT = 1, LC_HTTP_NO_RESPONSE, LC_HTTP_NO_TIME };

/* Behind it `fields` struct lc_span of the first values, then `head` bytes that all spans refer to. */
struct lc_http_event {
    uint64_t id;
    uint32_t size;              /* of all of it: the next one begins there */
    uint16_t service;
    uint8_t state;              /* LC_HTTP_REQUEST ... */
    uint8_t failed;
    uint16_t status, why;       /* LC_BAD_... */
    uint16_t fields;
    uint8_t body;               /* LC_BODY_... */
    uint8_t form;               /* LC_TARGET_... */
    int32_t err;
    int32_t engine;             /* that told the original destination; -1: none */
    uint32_t flags;             /* LC_HEAD_... */
    uint32_t head;
    uint64_t length;
    struct lc_span start[3];
    struct lc_span authority;
    struct lc_addr peer, original;
    uint64_t like;              /* the same: alike in all that a verdict may depend on; or 0 */
};

enum { LC_HTTP_FORWARD = 1, LC_HTTP_RESPOND, LC_HTTP_TUNNEL, LC_HTTP_DENY };
enum { LC_HTTP_SPOOF = 1, LC_HTTP_MARK = 2, LC_HTTP_RETRY = 4, LC_HTTP_UPGRADE = 8,
       LC_HTTP_ON_RESPONSE = 16, LC_HTTP_CLOSE = 32, LC_HTTP_ORIGIN_FORM = 64 };

/* Behind it as many bytes as `start`, `drop` and `append` say. RESPOND, TUNNEL: what the client gets
 * is `append`. */
struct lc_http_answer {
    uint64_t id;
    uint32_t size;              /* of all of it, a multiple of 8 */
    uint8_t action;
    uint8_t flags;              /* LC_HTTP_SPOOF ...: `source` family 0: the client's address */
    uint16_t unused;
    uint32_t mark;
    uint32_t start, drop, append;
    struct lc_addr to;          /* family 0: the original destination */
    struct lc_addr source;      /* family 0: the machine's */
};

/* An exchange that has ended. Behind it `start` bytes: the request's start line. */
struct lc_http_exchange {
    uint64_t id;
    uint32_t size;
    uint16_t service, status;
    uint8_t end;                /* LC_END_...; EOF: the response was delivered to its end */
    uint8_t reused;
    uint16_t unused;
    uint32_t start;
    uint64_t up, down;          /* bytes delivered, heads included */
    double seconds;
    uint64_t began;             /* nanoseconds of the plane's clock */
    struct lc_addr peer, original, upstream;
};

/* Answers the service's number. */
int lc_http_service(struct lc_plane *plane, const struct lc_http_how *how);
/* A connection of the caller's becomes a session, `prefix` its first bytes. */
int lc_http_serve(struct lc_plane *plane, int service, int fd, const struct lc_addr *original,
                  const uint8_t *prefix, size_t size);
/* Questions, as many as there is room for: bytes of `out`. */
int64_t lc_http_fetch(struct lc_plane *plane, uint8_t *out, size_t room);
int64_t lc_http_exchanges(struct lc_plane *plane, uint8_t *out, size_t room);
/* struct lc_http_answer, one behind the other. What is no longer asked is passed over. */
int lc_http_answer(struct lc_plane *plane, const uint8_t *answers, size_t size);
/* The client of a question is the caller's from now on: its descriptor, and what was read of it.
 * -ESRCH: it is gone. */
int lc_http_take(struct lc_plane *plane, uint64_t id, uint8_t *out, size_t room, size_t *size);

/* cdef end */

#endif
