/* epoll(7) and splice(2).
 *
 * FACT: splice's EAGAIN does not say whether the source is empty or the pipe full, so only an empty
 * pipe is spliced into, and a pipe holds what one flow has read and not written, never more.
 *
 * SAFETY: a pipe whose second splice failed still holds a user's bytes. It is closed.
 *
 * FACT: beyond fs.pipe-user-pages-soft a process without CAP_SYS_RESOURCE gets EPERM for a larger
 * pipe, and new pipes of two pages, of one page: F_GETPIPE_SZ tells. Such a pipe is slower than
 * copying.
 */
#ifdef __linux__
#include "plane.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <unistd.h>

enum { PIPE_SIZE = 1 << 20, PIPE_LEAST = 1 << 16, NO_PIPE_FOR = 100 /* ms */ };

int lc_unsent(int fd)
{
    int bytes;

    return ioctl(fd, SIOCOUTQ, &bytes) < 0 ? INT_MAX : bytes;
}

/* -- epoll ----------------------------------------------------------------------------------- */

int lc_poll_open(struct lc_plane *p)
{
    p->poll = epoll_create1(EPOLL_CLOEXEC);
    return p->poll < 0 ? -errno : 0;
}

void lc_poll_close(struct lc_plane *p)
{
    if (p->poll >= 0)
        close(p->poll);
}

enum { EDGES = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | (int)EPOLLET };

static int control(struct lc_plane *p, int op, int fd, uint64_t key, uint32_t events)
{
    struct epoll_event e;

    memset(&e, 0, sizeof e);
    e.events = events;
    e.data.u64 = key;
    return epoll_ctl(p->poll, op, fd, &e) < 0 ? -errno : 0;
}

int lc_poll_add(struct lc_plane *p, int fd, uint64_t key)
{
    return control(p, EPOLL_CTL_ADD, fd, key, (uint32_t)EDGES);
}

int lc_poll_add_listener(struct lc_plane *p, int fd, uint64_t key)
{
    return control(p, EPOLL_CTL_ADD, fd, key, EPOLLIN);
}

/* What is ready now is told again. */
int lc_poll_move(struct lc_plane *p, int fd, uint64_t key)
{
    return control(p, EPOLL_CTL_MOD, fd, key, (uint32_t)EDGES);
}

/* To hear that there is room again, with every datagram that has left, would double the events. */
int lc_poll_add_reader(struct lc_plane *p, int fd, uint64_t key)
{
    return control(p, EPOLL_CTL_ADD, fd, key, EPOLLIN | (uint32_t)EPOLLET);
}

void lc_poll_remove(struct lc_plane *p, int fd)
{
    (void)epoll_ctl(p->poll, EPOLL_CTL_DEL, fd, NULL);
}

int lc_poll_wait(struct lc_plane *p, int64_t ms)
{
    struct epoll_event events[LC_EVENTS];
    int i, n = epoll_wait(p->poll, events, LC_EVENTS, ms > INT32_MAX ? INT32_MAX : (int)ms);

    /* FACT: a process that was stopped comes back with EINTR, blocked signals or not (signal(7)). By
     * then the time may be up, and what is there has to be known before that. */
    if (n < 0 && errno == EINTR)
        n = epoll_wait(p->poll, events, LC_EVENTS, 0);
    for (i = 0; i < n; i++) {
        uint32_t e = events[i].events;
        unsigned what = 0;

        if (e & EPOLLIN)
            what |= READABLE;
        if (e & EPOLLOUT)
            what |= WRITABLE;
        if (e & EPOLLRDHUP)
            what |= HUNG | READABLE;
        if (e & EPOLLPRI)
            what |= EXACT;
        if (e & EPOLLHUP)
            what |= READABLE | WRITABLE;
        if (e & EPOLLERR)
            what |= READABLE | WRITABLE | BROKEN;
        p->event[i].key = events[i].data.u64;
        p->event[i].what = what;
    }
    return n < 0 ? 0 : n;
}

int lc_bell_open(int bell[2])
{
    bell[0] = bell[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return bell[0] < 0 ? -errno : 0;
}

void lc_bell_ring(const int bell[2])
{
    eventfd_write(bell[1], 1);
}

void lc_bell_quiet(const int bell[2])
{
    eventfd_t n;

    eventfd_read(bell[0], &n);
}

void lc_bell_close(int bell[2])
{
    if (bell[0] >= 0)
        close(bell[0]);
    bell[0] = bell[1] = -1;
}

/* -- faults on demand ------------------------------------------------------------------------ */

static struct {
    atomic_int err, skip, times;
} fault[LC_FAULTS];

int lc_plane_fault(int call, int err, int skip, int times)
{
    if (call < 0 || call >= LC_FAULTS)
        return -EINVAL;
    atomic_store(&fault[call].times, 0);
    atomic_store(&fault[call].err, err);
    atomic_store(&fault[call].skip, skip);
    atomic_store(&fault[call].times, times);
    return 0;
}

static int faulty(int call)
{
    if (LC_GET(fault[call].times) == 0)
        return 0;
    if (atomic_fetch_sub(&fault[call].skip, 1) > 0)
        return 0;
    atomic_fetch_sub(&fault[call].times, 1);
    errno = atomic_load(&fault[call].err);
    return 1;
}

/* -- pipes ----------------------------------------------------------------------------------- */

static void close_pipe(const int pipe[2])
{
    close(pipe[0]);
    close(pipe[1]);
}

/* An empty pipe, or -ENOTSUP while there is none to be had. */
static int have_pipe(struct lc_plane *p)
{
    int size;

    if (p->pipe[0] >= 0)
        return 0;
    if (p->now < p->no_pipe)
        return -ENOTSUP;
    p->no_pipe = p->now + NO_PIPE_FOR;
    if (faulty(LC_FAULT_PIPE) || pipe2(p->pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        return -ENOTSUP;
    if (!faulty(LC_FAULT_RESIZE))
        (void)fcntl(p->pipe[1], F_SETPIPE_SZ, PIPE_SIZE);
    size = faulty(LC_FAULT_SIZE) ? errno : fcntl(p->pipe[1], F_GETPIPE_SZ);
    if (size < PIPE_LEAST) {
        close_pipe(p->pipe);
        p->pipe[0] = p->pipe[1] = -1;
        return -ENOTSUP;
    }
    p->pipe_size = (uint32_t)size;
    p->no_pipe = 0;
    return 0;
}

static ssize_t move(int call, int from, int to, size_t most)
{
    ssize_t n;

    if (faulty(call))
        return -errno;
    do
        n = splice(from, NULL, to, NULL, most, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* From a pipe with `left` bytes to the sink of `d`: what is left after it; *err of the sink. */
static size_t empty(struct lc_plane *p, struct relay *r, int d, int pipe, size_t left, int *err)
{
    *err = 0;
    while (left > 0) {
        ssize_t n = move(LC_FAULT_SPLICE_OUT, pipe, LC_GET(r->fd[!d]), left);

        if (n <= 0) {
            *err = n == 0 ? EPIPE : (int)-n;
            break;
        }
        left -= (size_t)n;
        LC_ADD(r->count[d], n);
        if (d == 0)
            LC_ADD(p->up, n);
        else
            LC_ADD(p->down, n);
    }
    if (*err == EAGAIN) {
        r->side[!d] &= (uint8_t)~WRITABLE;
        *err = 0;
    }
    return left;
}

/* A sink that takes nothing from pipes gets the same bytes by copying. */
static int to_bytes(struct relay *r, int d, int pipe, size_t left)
{
    struct hold *h = lc_hold_bytes(NULL, left);
    size_t got = 0;

    if (h == NULL)
        return ENOMEM;
    while (got < left) {
        ssize_t n = read(pipe, h->bytes + got, left - got);

        if (n <= 0) {
            int err = n < 0 ? errno : EIO;
            free(h);
            return err;
        }
        got += (size_t)n;
    }
    r->hold[d] = h;
    r->side[d] |= NO_SPLICE;
    return 0;
}

ssize_t lc_bulk(struct lc_plane *p, struct relay *r, int d, size_t most, int *sink)
{
    struct hold *h;
    size_t left;
    ssize_t n;

    if (have_pipe(p) < 0)
        return -ENOTSUP;
    n = move(LC_FAULT_SPLICE_IN, LC_GET(r->fd[d]), p->pipe[1],
             most < p->pipe_size ? most : p->pipe_size);
    if (n == -EINVAL) {
        r->side[d] |= NO_SPLICE;
        return -ENOTSUP;
    }
    if (n <= 0)
        return n;
    left = empty(p, r, d, p->pipe[0], (size_t)n, sink);
    if (left == 0)
        return n;
    /* The pipe is not empty: it goes with its flow, or it goes away. */
    if (*sink == EINVAL) {
        *sink = to_bytes(r, d, p->pipe[0], left);
        close_pipe(p->pipe);
    } else if (*sink != 0 || (h = malloc(sizeof *h)) == NULL) {
        if (*sink == 0)
            *sink = ENOMEM;
        close_pipe(p->pipe);
    } else {
        h->pipe[0] = p->pipe[0];
        h->pipe[1] = p->pipe[1];
        h->size = left;
        h->done = 0;
        r->hold[d] = h;
    }
    p->pipe[0] = p->pipe[1] = -1;
    return n;
}

int lc_bulk_drain(struct lc_plane *p, struct relay *r, int d)
{
    struct hold *h = r->hold[d];
    int err;

    h->size = empty(p, r, d, h->pipe[0], h->size, &err);
    if (h->size > 0 && err != EINVAL)
        return err != 0 ? -err : -EAGAIN;
    r->hold[d] = NULL;
    if (h->size > 0) {
        err = to_bytes(r, d, h->pipe[0], h->size);
        close_pipe(h->pipe);
    } else if (p->pipe[0] < 0) {
        /* Empty, so it may serve anybody; its size may be less than that of others. */
        int size = fcntl(h->pipe[1], F_GETPIPE_SZ);

        p->pipe[0] = h->pipe[0];
        p->pipe[1] = h->pipe[1];
        p->pipe_size = size > 0 ? (uint32_t)size : PIPE_LEAST;
    } else {
        close_pipe(h->pipe);
    }
    free(h);
    return -err;
}

int lc_bulk_look(struct lc_plane *p, struct relay *r, int d)
{
    (void)p, (void)r, (void)d;
    return 0;
}

void lc_bulk_drop(struct lc_plane *p, struct relay *r, int d, struct hold *h)
{
    (void)p, (void)r, (void)d;
    close_pipe(h->pipe);
}

void lc_bulk_close(struct lc_plane *p)
{
    if (p->pipe[0] >= 0)
        close_pipe(p->pipe);
}
#else
/* Other systems: plane_bsd.c. */
typedef int lc_plane_linux_unused;
#endif
