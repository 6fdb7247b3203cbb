/* The two ends of the datagram benchmark: an origin, and clients that count and time.
 *
 *     datagrams origin PORT
 *     datagrams ping HOST PORT clients window msec
 *
 * The origin sends every datagram back. Each client has a connected socket and keeps `window`
 * datagrams of 64 bytes on their way; one that has heard nothing for 200 ms takes what was on its
 * way for lost and begins again. Clients print one line of JSON. One thread, epoll. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, BATCH = 64, EVENTS = 256, PATIENCE = 200000000 };

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

static char bytes[BATCH][2048];
static struct sockaddr_storage names[BATCH];
static struct iovec iov[BATCH];
static struct mmsghdr messages[BATCH];

static void prepare(int named)
{
    int i;

    for (i = 0; i < BATCH; i++) {
        iov[i].iov_base = bytes[i];
        iov[i].iov_len = sizeof bytes[i];
        messages[i].msg_hdr.msg_iov = &iov[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        messages[i].msg_hdr.msg_name = named ? &names[i] : NULL;
        messages[i].msg_hdr.msg_namelen = named ? sizeof names[i] : 0;
    }
}

static void origin(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int s = socket(AF_INET, SOCK_DGRAM, 0), size = 4 << 20, i, n;

    setsockopt(s, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (bind(s, (struct sockaddr *)&a, sizeof a) < 0)
        die("bind");
    for (;;) {
        prepare(1);
        n = recvmmsg(s, messages, BATCH, MSG_WAITFORONE, NULL);
        for (i = 0; i < n; i++)
            iov[i].iov_len = messages[i].msg_len;
        if (n > 0)
            sendmmsg(s, messages, (unsigned)n, 0);
    }
}

/* -- clients --------------------------------------------------------------------------------- */

struct client {
    int fd;
    int out;            /* on their way */
    int64_t heard;
};

static uint64_t done, lost;
static double *latencies;
static uint64_t n_latencies, room;

static void keep(double us)
{
    if (n_latencies == room) {
        room = room == 0 ? 1 << 20 : room * 2;
        latencies = realloc(latencies, room * sizeof *latencies);
        if (latencies == NULL)
            die("realloc");
    }
    latencies[n_latencies++] = us;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double percentile(double p)
{
    return n_latencies == 0 ? 0 : latencies[(uint64_t)(p * (double)(n_latencies - 1))];
}

static void fill(struct client *c, int window)
{
    int n = window - c->out, i;
    int64_t now = now_ns();

    for (i = 0; i < n; i++) {
        memcpy(bytes[i], &now, sizeof now);
        iov[i].iov_len = SIZE;
    }
    n = sendmmsg(c->fd, messages, (unsigned)n, MSG_DONTWAIT);
    c->out += n > 0 ? n : 0;
}

static void hear(struct client *c)
{
    int n, i;
    int64_t now, sent;

    prepare(0);
    n = recvmmsg(c->fd, messages, BATCH, MSG_DONTWAIT, NULL);
    now = now_ns();
    for (i = 0; i < n; i++) {
        memcpy(&sent, bytes[i], sizeof sent);
        keep((double)(now - sent) / 1000);
    }
    if (n <= 0)
        return;
    done += (uint64_t)n;
    c->out -= n < c->out ? n : c->out;
    c->heard = now;
}

static void ping(const struct sockaddr_in *there, int clients, int window, int64_t msec)
{
    struct client *all = calloc((size_t)clients, sizeof *all);
    struct epoll_event ready[EVENTS];
    int64_t stop, looked, now;
    int ep = epoll_create1(0), i, n;

    prepare(0);
    for (i = 0; i < clients; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &all[i]};

        all[i].fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (connect(all[i].fd, (const struct sockaddr *)there, sizeof *there) < 0
            || epoll_ctl(ep, EPOLL_CTL_ADD, all[i].fd, &e) < 0)
            die("client");
        all[i].heard = now_ns();
        fill(&all[i], window);
    }
    looked = now_ns();
    stop = looked + msec * 1000000;
    while ((now = now_ns()) < stop) {
        n = epoll_wait(ep, ready, EVENTS, 50);
        for (i = 0; i < n; i++) {
            hear(ready[i].data.ptr);
            fill(ready[i].data.ptr, window);
        }
        if (now - looked < PATIENCE / 4)
            continue;
        looked = now;
        for (i = 0; i < clients; i++)
            if (now - all[i].heard > PATIENCE) {
                lost += (uint64_t)all[i].out;
                all[i].out = 0;
                all[i].heard = now;
                fill(&all[i], window);
            }
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in there = {.sin_family = AF_INET};
    struct rlimit many;
    int64_t began;

    getrlimit(RLIMIT_NOFILE, &many);
    many.rlim_cur = many.rlim_max;
    setrlimit(RLIMIT_NOFILE, &many);
    if (argc == 3 && strcmp(argv[1], "origin") == 0)
        origin(atoi(argv[2]));
    if (argc != 7 || strcmp(argv[1], "ping") != 0 || atoi(argv[5]) > BATCH) {
        fprintf(stderr, "see the top of datagrams.c\n");
        return 2;
    }
    there.sin_port = htons((uint16_t)atoi(argv[3]));
    if (inet_pton(AF_INET, argv[2], &there.sin_addr) != 1)
        die(argv[2]);
    began = now_ns();
    ping(&there, atoi(argv[4]), atoi(argv[5]), atoll(argv[6]));
    qsort(latencies, n_latencies, sizeof *latencies, compare);
    printf("{\"seconds\": %.6f, \"done\": %llu, \"lost\": %llu, \"p50_us\": %.1f, "
           "\"p99_us\": %.1f}\n", (double)(now_ns() - began) / 1e9, (unsigned long long)done,
           (unsigned long long)lost, percentile(.5), percentile(.99));
    return 0;
}
