/* kqueue(2); bytes by copying, and by SO_SPLICE where it is: OpenBSD, FreeBSD since 14.2. A
 * wake-up is a pipe.
 *
 * EV_CLEAR reports changes, as EPOLLET does; EV_EOF on the read filter is the peer's end, on the
 * write filter a side that takes nothing more.
 *
 * FACT: a spliced source wakes no reader and its sink no writer until the splice is dissolved: by
 * its maximum, its source's end, an error, or sp_fd -1 (sosplice(9); FreeBSD's getsockopt(2)).
 * What it moved can be asked for until the socket is spliced again. A read meanwhile would take
 * bytes out of their order.
 *
 * So a splice is a lease: an event of its source, a limit, or LC_LOOK without a byte dissolves it,
 * and copying goes on where it stopped: it finds the end or the error, or two big reads that begin
 * the next splice. sp_idle is not used: FreeBSD counts it from the beginning of the splice.
 */
#ifndef __linux__
#include "plane.h"

#include <sys/types.h>
#include <sys/event.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef __NetBSD__
#define KEY(key) ((intptr_t)(key))      /* udata was an integer before NetBSD 10 */
#include <sys/param.h>
#if __NetBSD_Prereq__(10, 0, 0)
#undef KEY
#endif
#endif
#ifndef KEY
#define KEY(key) ((void *)(uintptr_t)(key))
#endif

int lc_unsent(int fd)
{
    int bytes = INT_MAX;
#if defined(FIONWRITE)
    (void)ioctl(fd, FIONWRITE, &bytes);
#elif defined(SO_NWRITE)
    socklen_t len = sizeof bytes;

    (void)getsockopt(fd, SOL_SOCKET, SO_NWRITE, &bytes, &len);
#else
    (void)fd;
#endif
    return bytes;
}

int lc_poll_open(struct lc_plane *p)
{
    p->poll = kqueue();
    if (p->poll < 0 || fcntl(p->poll, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    return 0;
}

void lc_poll_close(struct lc_plane *p)
{
    if (p->poll >= 0)
        close(p->poll);
}

static int change(struct lc_plane *p, int fd, int filter, int flags, uint64_t key)
{
    struct kevent e;

    EV_SET(&e, (uintptr_t)fd, filter, flags, 0, 0, KEY(key));
    return kevent(p->poll, &e, 1, NULL, 0, NULL) < 0 ? -errno : 0;
}

int lc_poll_add(struct lc_plane *p, int fd, uint64_t key)
{
    int err = change(p, fd, EVFILT_READ, EV_ADD | EV_CLEAR, key);

    return err < 0 ? err : change(p, fd, EVFILT_WRITE, EV_ADD | EV_CLEAR, key);
}

int lc_poll_add_listener(struct lc_plane *p, int fd, uint64_t key)
{
    return change(p, fd, EVFILT_READ, EV_ADD, key);
}

/* EV_ADD of what there is changes its udata (kqueue(2)); what is ready is told again. */
int lc_poll_move(struct lc_plane *p, int fd, uint64_t key)
{
    return lc_poll_add(p, fd, key);
}

int lc_poll_add_reader(struct lc_plane *p, int fd, uint64_t key)
{
    return change(p, fd, EVFILT_READ, EV_ADD | EV_CLEAR, key);
}

void lc_poll_remove(struct lc_plane *p, int fd)
{
    (void)change(p, fd, EVFILT_READ, EV_DELETE, 0);
    (void)change(p, fd, EVFILT_WRITE, EV_DELETE, 0);
}

int lc_poll_wait(struct lc_plane *p, int64_t ms)
{
    struct kevent events[LC_EVENTS];
    struct timespec wait = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    int i, n = kevent(p->poll, NULL, 0, events, LC_EVENTS, ms < 0 ? NULL : &wait);

    if (n < 0 && errno == EINTR) {      /* see plane_linux.c */
        wait.tv_sec = wait.tv_nsec = 0;
        n = kevent(p->poll, NULL, 0, events, LC_EVENTS, &wait);
    }
    for (i = 0; i < n; i++) {
        unsigned what = events[i].filter == EVFILT_READ ? READABLE : WRITABLE;

        if (events[i].flags & EV_EOF)
            what |= (events[i].filter == EVFILT_READ ? HUNG : 0)
                | (events[i].fflags != 0 ? BROKEN | READABLE | WRITABLE : 0);
        p->event[i].key = (uint64_t)(uintptr_t)events[i].udata;
        p->event[i].what = what;
    }
    return n < 0 ? 0 : n;
}

static int prepare(int fd)
{
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0
        || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -errno : 0;
}

int lc_bell_open(int bell[2])
{
    int err;

    if (pipe(bell) < 0)
        return -errno;
    err = prepare(bell[0]);
    return err < 0 ? err : prepare(bell[1]);
}

void lc_bell_ring(const int bell[2])
{
    (void)!write(bell[1], "", 1);
}

void lc_bell_quiet(const int bell[2])
{
    char bytes[64];

    while (read(bell[0], bytes, sizeof bytes) == sizeof bytes)
        ;
}

void lc_bell_close(int bell[2])
{
    int i;

    for (i = 0; i < 2; i++) {
        if (bell[i] >= 0)
            close(bell[i]);
        bell[i] = -1;
    }
}

int lc_plane_fault(int call, int err, int skip, int times)
{
    (void)call, (void)err, (void)skip, (void)times;
    return -ENOTSUP;
}

#ifdef SO_SPLICE

/* The bytes since the last count. */
static size_t count(struct lc_plane *p, struct relay *r, int d, struct hold *h)
{
    off_t moved = 0;
    socklen_t len = sizeof moved;
    size_t n;

    if (getsockopt(h->pipe[0], SOL_SOCKET, SO_SPLICE, &moved, &len) < 0)
        return 0;
    n = (size_t)moved - h->done;
    h->done += n;
    LC_ADD(r->count[d], n);
    if (d == 0)
        LC_ADD(p->up, n);
    else
        LC_ADD(p->down, n);
    return n;
}

/* -EAGAIN: the kernel has the direction. What has come to its end is left to copying. */
ssize_t lc_bulk(struct lc_plane *p, struct relay *r, int d, size_t most, int *sink)
{
    struct splice on = {.sp_fd = LC_GET(r->fd[!d])};
    uint64_t look = p->now + LC_LOOK;
    struct hold *h;

    (void)most, (void)sink;
    if (r->side[d] & HUNG)
        return -ENOTSUP;
    if (r->limit[d] != UINT64_MAX)
        on.sp_max = (off_t)(r->limit[d] - LC_GET(r->count[d]));
    if ((r->place == 0 || p->heap[r->place - 1].due > look) && lc_timer_set(p, r, look) < 0)
        return -ENOTSUP;
    if ((h = lc_hold_bytes(NULL, 0)) == NULL)
        return -ENOTSUP;
    h->pipe[0] = LC_GET(r->fd[d]);
    if (setsockopt(h->pipe[0], SOL_SOCKET, SO_SPLICE, &on, sizeof on) < 0) {
        free(h);
        r->side[d] |= NO_SPLICE;    /* not TCP on both sides, or an older kernel */
        return -ENOTSUP;
    }
    r->hold[d] = h;
    return -EAGAIN;
}

/* FACT: OpenBSD leaves a sink's error on the source as well (sosplice(9)). SAFETY: FreeBSD may have
 * fetched the sink's error and dropped what it could not send. So the sink is asked first, and a
 * write of nothing tells one that takes no more. The source's own error is left to be read, but for
 * the EFBIG of a maximum. */
int lc_bulk_drain(struct lc_plane *p, struct relay *r, int d)
{
    struct hold *h = r->hold[d];
    int from = h->pipe[0], to = LC_GET(r->fd[!d]), err;

    (void)count(p, r, d, h);
    if (!(r->side[d] & READABLE) && !r->limited && LC_GET(r->count[d]) < r->limit[d])
        return -EAGAIN;
    r->hold[d] = NULL;
    lc_bulk_drop(p, r, d, h);
    free(h);
    r->big[d] = 0;
    r->side[d] |= READABLE;     /* its events went to the splice */
    err = lc_error(to);
    if ((err == 0 || err == EFBIG) && send(to, "", 0, MSG_NOSIGNAL) < 0)
        err = errno;
    if (err > 0 && err != EAGAIN && err != EFBIG)
        return -err;
    if (LC_GET(r->count[d]) < r->limit[d])
        return 0;
    err = lc_error(from);
    if (err <= 0 || err == EFBIG)
        return 0;
    lc_relay_broke(p, r, d, err);
    return -EAGAIN;
}

int lc_bulk_look(struct lc_plane *p, struct relay *r, int d)
{
    struct hold *h = r->hold[d];

    if (h == NULL || h->pipe[0] < 0)
        return 0;
    if (count(p, r, d, h) > 0)
        r->last = p->now;
    else
        r->side[d] |= READABLE;
    lc_ready(p, r);
    return 1;
}

/* Once the option has been set nothing moves any more. It fails where the splice is over. */
void lc_bulk_drop(struct lc_plane *p, struct relay *r, int d, struct hold *h)
{
    struct splice off = {.sp_fd = -1};

    (void)setsockopt(h->pipe[0], SOL_SOCKET, SO_SPLICE, &off, sizeof off);
    (void)count(p, r, d, h);
}

#else

ssize_t lc_bulk(struct lc_plane *p, struct relay *r, int d, size_t most, int *sink)
{
    (void)p, (void)r, (void)d, (void)most, (void)sink;
    return -ENOTSUP;
}

int lc_bulk_drain(struct lc_plane *p, struct relay *r, int d)
{
    (void)p, (void)r, (void)d;
    return -ENOTSUP;
}

int lc_bulk_look(struct lc_plane *p, struct relay *r, int d)
{
    (void)p, (void)r, (void)d;
    return 0;
}

void lc_bulk_drop(struct lc_plane *p, struct relay *r, int d, struct hold *h)
{
    (void)p, (void)r, (void)d, (void)h;
}

#endif

void lc_bulk_close(struct lc_plane *p)
{
    (void)p;
}
#else
/* Linux: plane_linux.c. */
typedef int lc_plane_bsd_unused;
#endif
