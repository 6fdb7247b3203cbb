/* kqueue(2); bytes by copying. A wake-up is a pipe.
 *
 * EV_CLEAR reports changes, as EPOLLET does; EV_EOF on the read filter is the peer's end, on the
 * write filter a side that takes nothing more. */
#ifndef __linux__
#include "plane.h"

#include <sys/types.h>
#include <sys/event.h>
#include <sys/time.h>
#include <fcntl.h>
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

void lc_bulk_drop(struct hold *h)
{
    (void)h;
}

void lc_bulk_close(struct lc_plane *p)
{
    (void)p;
}
#else
/* Linux: plane_linux.c. */
typedef int lc_plane_bsd_unused;
#endif
