/* The floor: what relaying costs with nothing around it. One thread, epoll, level-triggered where
 * that saves a call; recv/send until two reads of 16 KB or more, then splice through one scratch
 * pipe of 1 MB. No time-outs, no counters, no limits, no addresses but the one on the command line.
 *
 *     floor PORT HOST ORIGIN_PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { COPY = 65160, LARGE = 16384, PIPE = 1 << 20, BUDGET = 1 << 20, EVENTS = 256 };

struct pair;

/* One socket of a pair, and the direction that it is the source of. */
struct side {
    struct pair *pair;
    struct side *other;
    int fd;
    int readable, writable;     /* as edge-triggered epoll told */
    int eof;                    /* the source has ended, and the other side was told */
    int large;                  /* reads of LARGE or more in a row */
    char *rest;                 /* what the sink would not take */
    size_t from, to;
    int pipe[2];                /* holds what a splice has left behind; -1 */
    size_t piped;
};

struct pair {
    struct side side[2];
    struct pair *next;          /* on the ready list, or dead */
    int queued, dead;
};

static int ep, scratch[2] = {-1, -1};
static struct pair *ready_list, *dead_list;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void make_scratch(void)
{
    if (pipe2(scratch, O_NONBLOCK | O_CLOEXEC) < 0)
        die("pipe2");
    (void)fcntl(scratch[1], F_SETPIPE_SZ, PIPE);
}

static void finish(struct pair *p)
{
    int i;

    if (p->dead)
        return;
    p->dead = 1;
    for (i = 0; i < 2; i++) {
        struct side *s = &p->side[i];
        close(s->fd);
        free(s->rest);
        if (s->pipe[0] >= 0) {
            close(s->pipe[0]);
            close(s->pipe[1]);
        }
    }
    if (!p->queued) {
        p->next = dead_list;
        dead_list = p;
    }
}

/* 1: nothing is left over; 0: the sink is full; -1: broken. */
static int drain(struct side *s)
{
    while (s->from < s->to) {
        ssize_t n = send(s->other->fd, s->rest + s->from, s->to - s->from, MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        s->from += (size_t)n;
    }
    while (s->piped > 0) {
        ssize_t n = splice(s->pipe[0], NULL, s->other->fd, NULL, s->piped,
                           SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n <= 0)
            return n < 0 && errno == EAGAIN ? 0 : -1;
        s->piped -= (size_t)n;
    }
    if (s->pipe[0] >= 0) {
        if (scratch[0] < 0) {
            scratch[0] = s->pipe[0];
            scratch[1] = s->pipe[1];
        } else {
            close(s->pipe[0]);
            close(s->pipe[1]);
        }
        s->pipe[0] = s->pipe[1] = -1;
    }
    return 1;
}

static char buffer[COPY];

/* Moves up to BUDGET bytes. 1: there may be more; 0: wait; -1: broken. */
static int pump(struct side *s)
{
    size_t moved = 0;

    while (s->readable && !s->eof) {
        ssize_t n, m;
        int clear = drain(s);

        if (clear <= 0) {
            s->other->writable = 0;
            return clear;
        }
        if (moved >= BUDGET)
            return 1;
        if (s->large >= 2) {
            if (scratch[0] < 0)
                make_scratch();
            n = splice(s->fd, NULL, scratch[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
            if (n > 0) {
                s->piped = (size_t)n;
                s->pipe[0] = scratch[0];
                s->pipe[1] = scratch[1];
                scratch[0] = scratch[1] = -1;
                s->large = n < LARGE ? 0 : s->large;
            }
        } else {
            n = recv(s->fd, buffer, COPY, 0);
            if (n > 0) {
                s->large = n >= LARGE ? s->large + 1 : 0;
                m = send(s->other->fd, buffer, (size_t)n, MSG_NOSIGNAL);
                if (m < 0 && errno != EAGAIN)
                    return -1;
                if (m < 0)
                    m = 0;
                if (m < n) {
                    if (s->rest == NULL && (s->rest = malloc(COPY)) == NULL)
                        return -1;
                    s->from = 0;
                    s->to = (size_t)(n - m);
                    __builtin_memcpy(s->rest, buffer + m, s->to);
                }
                if (n < COPY && m == n)
                    s->readable = s->readable == 2 ? 2 : 0;     /* 2: the end is in sight */
            }
        }
        if (n > 0) {
            moved += (size_t)n;
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            s->readable = 0;
            return 0;
        }
        if (n < 0)
            return -1;
        s->eof = 1;
        shutdown(s->other->fd, SHUT_WR);
    }
    return s->from < s->to || s->piped > 0 ? (drain(s) < 0 ? -1 : 0) : 0;
}

static void run(struct pair *p)
{
    int more = 0, i;

    for (i = 0; i < 2; i++) {
        int r = pump(&p->side[i]);
        if (r < 0) {
            finish(p);
            return;
        }
        more |= r;
    }
    if (p->side[0].eof && p->side[1].eof) {
        finish(p);
        return;
    }
    if (more && !p->queued) {
        p->queued = 1;
        p->next = ready_list;
        ready_list = p;
    }
}

static void begin(int client, const struct sockaddr_in *origin)
{
    struct pair *p = calloc(1, sizeof *p);
    int one = 1, i, up = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (p == NULL || up < 0)
        die("socket");
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(up, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(up, (const struct sockaddr *)origin, sizeof *origin) < 0 && errno != EINPROGRESS)
        die("connect");
    p->side[0].fd = client;
    p->side[1].fd = up;
    for (i = 0; i < 2; i++) {
        struct side *s = &p->side[i];
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};

        s->pair = p;
        s->other = &p->side[1 - i];
        s->pipe[0] = s->pipe[1] = -1;
        if (epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &e) < 0)
            die("epoll_ctl");
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in here = {.sin_family = AF_INET}, origin = {.sin_family = AF_INET};
    struct epoll_event e = {.events = EPOLLIN}, events[EVENTS];
    struct rlimit many;
    int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1, i, n, fd;

    if (argc != 4)
        return 2;
    getrlimit(RLIMIT_NOFILE, &many);
    many.rlim_cur = many.rlim_max;
    setrlimit(RLIMIT_NOFILE, &many);
    here.sin_port = htons(atoi(argv[1]));
    origin.sin_port = htons(atoi(argv[3]));
    inet_pton(AF_INET, argv[2], &origin.sin_addr);
    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(l, (struct sockaddr *)&here, sizeof here) < 0 || listen(l, 65535) < 0)
        die("listen");
    ep = epoll_create1(0);
    epoll_ctl(ep, EPOLL_CTL_ADD, l, &e);
    for (;;) {
        struct pair *list;

        n = epoll_wait(ep, events, EVENTS, ready_list ? 0 : -1);
        for (i = 0; i < n; i++) {
            struct side *s = events[i].data.ptr;

            if (s == NULL) {
                while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
                    begin(fd, &origin);
                continue;
            }
            if (s->pair->dead)
                continue;
            if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                s->readable = events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) ? 2 : 1;
            if (events[i].events & EPOLLOUT)
                s->writable = 1;
            run(s->pair);
        }
        list = ready_list;
        ready_list = NULL;
        while (list != NULL) {
            struct pair *p = list;

            list = p->next;
            p->queued = 0;
            if (p->dead) {
                p->next = dead_list;
                dead_list = p;
            } else {
                run(p);
            }
        }
        while (dead_list != NULL) {
            struct pair *p = dead_list;

            dead_list = p->next;
            free(p);
        }
    }
}
