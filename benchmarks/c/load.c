/* The two ends of every benchmark: an origin, and clients that count and time.
 *
 *     load origin PORT
 *     load bulk  HOST PORT streams bytes       each stream asks for `bytes` and throws them away
 *     load short HOST PORT parallel count      100 B up, 1 KB down, the origin closes
 *     load ping  HOST PORT parallel msec       64 B there and back, as often as goes; latencies
 *     load idle  HOST PORT count               one ping each, then silence until standard input ends
 *
 * The first byte that a client sends says what it wants: B (and 8 bytes of length), S, or P.
 * Clients print one line of JSON. One thread, epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { UP = 100, DOWN = 1024, PING = 64, EVENTS = 512, CHUNK = 1 << 18 };

static char zeros[CHUNK];
static int ep;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

struct conn {
    int fd;
    char mode;
    int got;            /* of the request or message under way */
    int index;
    int64_t left;       /* bytes to send (origin) or to get (client) */
    int64_t sent_at;
    char head[16];
};

static void watch(struct conn *c, int op, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = c};

    if (epoll_ctl(ep, op, c->fd, &e) < 0)
        die("epoll_ctl");
}

/* -- origin ---------------------------------------------------------------------------------- */

static void end(struct conn *c)
{
    close(c->fd);
    free(c);
}

/* 1: all sent and closed. */
static int push(struct conn *c)
{
    while (c->left > 0) {
        ssize_t n = send(c->fd, zeros, c->left < CHUNK ? (size_t)c->left : CHUNK, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) {
                watch(c, EPOLL_CTL_MOD, EPOLLOUT);
                return 0;
            }
            break;
        }
        c->left -= n;
    }
    end(c);
    return 1;
}

static void serve(struct conn *c, uint32_t events)
{
    char buffer[4096];
    ssize_t n;

    if (events & EPOLLOUT && c->left > 0) {
        push(c);
        return;
    }
    n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            end(c);
        return;
    }
    if (c->mode == 0)
        c->mode = buffer[0];
    if (c->mode == 'P') {
        c->got += (int)n;
        while (c->got >= PING) {
            if (send(c->fd, zeros, PING, MSG_NOSIGNAL) != PING)
                break;
            c->got -= PING;
        }
        return;
    }
    if (c->mode == 'B') {
        memcpy(c->head + c->got, buffer, c->got + n > 9 ? (size_t)(9 - c->got) : (size_t)n);
        c->got += (int)n;
        if (c->got >= 9) {
            memcpy(&c->left, c->head + 1, 8);
            push(c);
        }
        return;
    }
    c->got += (int)n;
    if (c->got >= UP) {
        c->left = DOWN;
        push(c);
    }
}

static void origin(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event e = {.events = EPOLLIN}, ready[EVENTS];
    int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1, i, n;

    setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(l, (struct sockaddr *)&a, sizeof a) < 0 || listen(l, 65535) < 0)
        die("listen");
    if (epoll_ctl(ep, EPOLL_CTL_ADD, l, &e) < 0)
        die("epoll_ctl");
    for (;;) {
        n = epoll_wait(ep, ready, EVENTS, -1);
        for (i = 0; i < n; i++) {
            int fd;

            if (ready[i].data.ptr != NULL) {
                serve(ready[i].data.ptr, ready[i].events);
                continue;
            }
            while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                struct conn *c = calloc(1, sizeof *c);

                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                c->fd = fd;
                watch(c, EPOLL_CTL_ADD, EPOLLIN);
            }
        }
    }
}

/* -- clients --------------------------------------------------------------------------------- */

static struct sockaddr_in there;
static uint64_t done, failed, bytes;

static void dial(struct conn *c)
{
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&there, sizeof there) < 0 && errno != EINPROGRESS)
        die("connect");
    c->got = 0;
    c->head[0] = 0;
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void ask(struct conn *c, char mode, int size, int64_t want)
{
    char request[UP] = {0};

    request[0] = mode;
    memcpy(request + 1, &want, 8);
    if (send(c->fd, request, (size_t)size, MSG_NOSIGNAL) != size) {
        fprintf(stderr, "request: %s\n", strerror(errno));
        exit(1);
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

/* Latencies: 64 steps for every power of two of nanoseconds. */
static uint64_t histogram[64 * 64];

static int step_of(int64_t ns)
{
    int power = 63 - __builtin_clzll((uint64_t)ns | 1);

    return power < 6 ? (int)ns : power * 64 + (int)((ns >> (power - 6)) & 63);
}

static double value_of(int step)
{
    int power = step / 64;

    return power < 6 ? step : (double)((64ULL + (unsigned)(step % 64)) << (power - 6));
}

static double percentile(double p)
{
    uint64_t total = 0, seen = 0;
    int i, steps = 64 * 64;

    for (i = 0; i < steps; i++)
        total += histogram[i];
    for (i = 0; i < steps; i++)
        if ((seen += histogram[i]) > (uint64_t)(p * (double)total))
            return value_of(i) / 1000;
    return 0;
}

static void bulk(int streams, int64_t want)
{
    struct epoll_event ready[EVENTS];
    int open = streams, i, n;

    for (i = 0; i < streams; i++) {
        struct conn *c = calloc(1, sizeof *c);
        c->left = want;
        dial(c);
    }
    while (open > 0) {
        n = epoll_wait(ep, ready, EVENTS, -1);
        for (i = 0; i < n; i++) {
            struct conn *c = ready[i].data.ptr;
            ssize_t r;

            if (c->head[0] == 0) {
                c->head[0] = 1;
                ask(c, 'B', 9, want);
                continue;
            }
            r = recv(c->fd, NULL, 1 << 20, MSG_TRUNC);      /* tcp(7): thrown away unseen */
            if (r > 0) {
                bytes += (uint64_t)r;
                c->left -= r;
            } else if (r == 0 || errno != EAGAIN) {
                failed += c->left != 0;
                done += c->left == 0;
                close(c->fd);
                open--;
            }
        }
    }
}

static void brief(int parallel, int64_t count)
{
    struct epoll_event ready[EVENTS];
    struct conn *all = calloc((size_t)parallel, sizeof *all);
    int64_t begun = 0;
    int open = 0, i, n;

    for (; open < parallel && begun < count; open++, begun++)
        dial(&all[open]);
    while (open > 0) {
        n = epoll_wait(ep, ready, EVENTS, -1);
        for (i = 0; i < n; i++) {
            struct conn *c = ready[i].data.ptr;
            char buffer[4096];
            ssize_t r;

            if (c->head[0] == 0) {
                c->head[0] = 1;
                ask(c, 'S', UP, 0);
                continue;
            }
            r = recv(c->fd, buffer, sizeof buffer, 0);
            if (r > 0) {
                c->got += (int)r;
                bytes += (uint64_t)r;
                continue;
            }
            if (r < 0 && errno == EAGAIN)
                continue;
            failed += c->got != DOWN;
            done += c->got == DOWN;
            close(c->fd);
            if (begun < count) {
                begun++;
                dial(c);
            } else {
                open--;
            }
        }
    }
}

static void ping(struct conn *c)
{
    ask(c, 'P', PING, 0);
    c->got = 0;
    c->sent_at = now_ns();
}

/* `msec` < 0: one round trip each, at most `window` connections on their way at a time. */
static void pings(int parallel, int64_t msec, int window)
{
    struct epoll_event ready[EVENTS];
    struct conn *all = calloc((size_t)parallel, sizeof *all);
    int64_t stop = now_ns() + msec * 1000000;
    int open = parallel, begun, i, n;

    for (begun = 0; begun < parallel && begun < window; begun++)
        dial(&all[begun]);
    while (open > 0) {
        n = epoll_wait(ep, ready, EVENTS, -1);
        for (i = 0; i < n; i++) {
            struct conn *c = ready[i].data.ptr;
            char buffer[4096];
            ssize_t r;

            if (c->head[0] == 0) {
                c->head[0] = 1;
                ping(c);
                continue;
            }
            r = recv(c->fd, buffer, sizeof buffer, 0);
            if (r <= 0) {
                if (r < 0 && errno == EAGAIN)
                    continue;
                failed++;
                close(c->fd);
                open--;
                continue;
            }
            c->got += (int)r;
            if (c->got < PING)
                continue;
            done++;
            bytes += PING;
            histogram[step_of(now_ns() - c->sent_at)]++;
            if (msec >= 0 && now_ns() < stop)
                ping(c);
            else {
                open--;
                if (begun < parallel)
                    dial(&all[begun++]);
            }
        }
    }
}

int main(int argc, char **argv)
{
    struct rlimit many = {1 << 17, 1 << 17};
    int64_t began;

    if (setrlimit(RLIMIT_NOFILE, &many) < 0) {
        getrlimit(RLIMIT_NOFILE, &many);
        many.rlim_cur = many.rlim_max;
        setrlimit(RLIMIT_NOFILE, &many);
    }
    ep = epoll_create1(0);
    if (argc == 3 && strcmp(argv[1], "origin") == 0)
        origin(atoi(argv[2]));
    if (argc < 5) {
        fprintf(stderr, "see the top of load.c\n");
        return 2;
    }
    there.sin_family = AF_INET;
    there.sin_port = htons(atoi(argv[3]));
    if (inet_pton(AF_INET, argv[2], &there.sin_addr) != 1)
        die(argv[2]);
    began = now_ns();
    if (strcmp(argv[1], "bulk") == 0)
        bulk(atoi(argv[4]), atoll(argv[5]));
    else if (strcmp(argv[1], "short") == 0)
        brief(atoi(argv[4]), atoll(argv[5]));
    else if (strcmp(argv[1], "ping") == 0)
        pings(atoi(argv[4]), atoll(argv[5]), atoi(argv[4]));
    else if (strcmp(argv[1], "idle") == 0)
        pings(atoi(argv[4]), -1, 32);
    printf("{\"seconds\": %.6f, \"done\": %llu, \"failed\": %llu, \"bytes\": %llu, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           (double)(now_ns() - began) / 1e9, (unsigned long long)done, (unsigned long long)failed,
           (unsigned long long)bytes, percentile(.5), percentile(.99));
    fflush(stdout);
    if (strcmp(argv[1], "idle") == 0)
        while (getchar() != EOF)
            ;
    return failed != 0;
}
