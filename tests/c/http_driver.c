/* Drives HTTP sessions of a plane from several threads without Python, for ThreadSanitizer: clients
 * of a listener and handed over, questions fetched by two threads and answered in every way, taken,
 * killed and counted meanwhile, drain and stop. Prints what went wrong; 0: nothing did. */
#include "driver.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { ROUNDS = 150, CLIENTS = 3, ROOM = 1 << 19, ORIGINS = 256 };

static struct lc_plane *plane;
static struct lc_addr origin, front;
static atomic_int going, answered, served;
static _Atomic uint64_t last_id;
static int service;

static const char get[] = "GET / HTTP/1.1\r\nHost: example.org\r\nX-A: 1\r\n\r\n";
static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

static int connected(const struct lc_addr *to)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(lc_connect(fd, to) == 0);
    return fd;
}

/* Answers whatever comes, and closes now and then. */
static void *be_origin(void *listener)
{
    struct pollfd fds[ORIGINS] = {{.fd = *(int *)listener, .events = POLLIN}};
    char bytes[4096];
    int i, n = 1, count = 0;

    while (atomic_load(&going)) {
        if (poll(fds, (nfds_t)n, 10) <= 0)
            continue;
        for (i = n - 1; i > 0; i--) {
            if (fds[i].revents == 0)
                continue;
            if (recv(fds[i].fd, bytes, sizeof bytes, 0) > 0
                && send(fds[i].fd, ok, sizeof ok - 1, MSG_NOSIGNAL) > 0 && ++count % 17 != 0)
                continue;
            close(fds[i].fd);
            fds[i] = fds[--n];
        }
        if (fds[0].revents != 0 && n < ORIGINS) {
            fds[n].fd = accept(fds[0].fd, NULL, NULL);
            fds[n].events = POLLIN;
            fds[n++].revents = 0;
        }
    }
    while (n > 0)
        close(fds[--n].fd);
    return NULL;
}

/* Requests, some of them pipelined; responses until the end, however it comes. */
static void *be_client(void *number)
{
    int i, j, many, fd;
    char bytes[4096];

    for (i = 0; i < ROUNDS; i++) {
        many = 1 + i % 3;
        if ((i + *(int *)number) % 4 == 0) {
            int pair[2];

            CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
            CHECK(fcntl(pair[1], F_SETFL, O_NONBLOCK) == 0);
            CHECK(lc_http_serve(plane, service, pair[1], &origin, (const uint8_t *)get, 5) == 0);
            fd = pair[0];
            CHECK(send(fd, get + 5, sizeof get - 6, MSG_NOSIGNAL) > 0);
        } else {
            fd = connected(&front);
            for (j = 0; j < many; j++)
                (void)!send(fd, get, sizeof get - 1, MSG_NOSIGNAL);
        }
        if (i % 7 != 0) {
            (void)shutdown(fd, SHUT_WR);
            while (recv(fd, bytes, sizeof bytes, 0) > 0)
                ;
        }
        close(fd);
        atomic_fetch_add(&served, 1);
    }
    return NULL;
}

static void answer(uint64_t id, int state)
{
    struct { struct lc_http_answer a; char bytes[sizeof ok + 8]; } out;
    int turn = atomic_fetch_add(&answered, 1);
    uint8_t taken[4096];
    size_t size;

    memset(&out, 0, sizeof out);
    out.a.id = id;
    out.a.to = origin;
    out.a.action = turn % 11 == 0 ? LC_HTTP_DENY : turn % 13 == 0 || state != LC_HTTP_REQUEST
        ? LC_HTTP_RESPOND : turn % 29 == 0 ? LC_HTTP_TUNNEL : LC_HTTP_FORWARD;
    out.a.flags = LC_HTTP_RETRY | (turn % 5 == 0 ? LC_HTTP_ON_RESPONSE : 0);
    out.a.size = sizeof out.a;
    if (state == LC_HTTP_RESPONSE)
        out.a.action = LC_HTTP_FORWARD;
    if (out.a.action == LC_HTTP_RESPOND) {
        out.a.append = sizeof ok - 1;
        memcpy(out.bytes, ok, sizeof ok - 1);
        out.a.size = (uint32_t)((sizeof out.a + sizeof ok - 1 + 7) & ~(size_t)7);
    }
    if (turn % 23 == 0) {
        int fd = lc_http_take(plane, id, taken, sizeof taken, &size);

        if (fd >= 0)
            close(fd);
    }
    CHECK(lc_http_answer(plane, (const uint8_t *)&out, out.a.size) == 0);
}

static void *fetch(void *unused)
{
    struct pollfd ready = {.events = POLLIN};
    uint8_t *bytes = malloc(ROOM);
    struct lc_http_event e;
    struct lc_done done[8];
    int64_t n, at;

    (void)unused;
    ready.fd = lc_plane_fd(plane);
    while (atomic_load(&going)) {
        if (poll(&ready, 1, 10) <= 0)
            continue;
        CHECK(lc_plane_reap(plane, done, 8) >= 0);
        n = lc_http_fetch(plane, bytes, ROOM);
        CHECK(n >= 0);
        for (at = 0; at < n; at += e.size) {
            memcpy(&e, bytes + at, sizeof e);
            atomic_store(&last_id, e.id);
            answer(e.id, e.state);
        }
        CHECK(lc_http_exchanges(plane, bytes, ROOM) >= 0);
    }
    free(bytes);
    return NULL;
}

static void *disturb(void *unused)
{
    struct lc_totals totals;
    uint64_t up, down, id;

    (void)unused;
    while (atomic_load(&going)) {
        id = atomic_load(&last_id);
        (void)lc_plane_counts(plane, id, &up, &down);
        (void)lc_plane_find(plane, 9, &up);
        CHECK(lc_plane_totals(plane, &totals) == 0);
        if (id % 3 == 0)
            (void)lc_plane_kill(plane, id);
        poll(NULL, 0, 1);
    }
    return NULL;
}

int main(void)
{
    pthread_t clients[CLIENTS], fetchers[2], disturber, server;
    int numbers[CLIENTS], i, listener = tcp_listener(&origin), fd = tcp_listener(&front);
    struct lc_http_how how;
    struct lc_listen listen_how;
    struct lc_rule rule;
    struct lc_totals totals;

    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    CHECK(lc_plane_open(&plane) == 0);
    memset(&how, 0, sizeof how);
    how.limits.line = 1000;
    how.limits.head = 4000;
    how.limits.fields = 10;
    how.body = 100;
    how.head_time = how.idle_time = how.body_time = how.connect_time = how.response_time = 5000;
    how.tunnel_time = 5000;
    how.pool_idle = 20;
    how.pool_size = 4;
    how.spoofer = -1;
    how.exchanges = 1;
    how.fields = 1;
    how.names = 4;
    how.field = "x-a";
    service = lc_http_service(plane, &how);
    CHECK(service >= 0);
    memset(&listen_how, 0, sizeof listen_how);
    listen_how.engine = listen_how.spoofer = -1;
    listen_how.service = service + 1;
    listen_how.direct = 1;
    memset(&rule, 0, sizeof rule);
    rule.action = LC_ASK;
    rule.high = 65535;
    CHECK(lc_plane_listen(plane, fd, &listen_how, &rule, 1) >= 0);
    atomic_store(&going, 1);
    pthread_create(&server, NULL, be_origin, &listener);
    pthread_create(&disturber, NULL, disturb, NULL);
    for (i = 0; i < 2; i++)
        pthread_create(&fetchers[i], NULL, fetch, NULL);
    for (i = 0; i < CLIENTS; i++) {
        numbers[i] = i;
        pthread_create(&clients[i], NULL, be_client, &numbers[i]);
    }
    for (i = 0; i < CLIENTS; i++)
        pthread_join(clients[i], NULL);
    for (i = 0; i < 1000 && lc_plane_totals(plane, &totals) == 0 && totals.live > 0; i++)
        poll(NULL, 0, 10);
    CHECK(totals.live == 0);
    CHECK(lc_plane_drain(plane) == 0);
    CHECK(lc_plane_stop(plane) == 0);
    atomic_store(&going, 0);
    for (i = 0; i < 2; i++)
        pthread_join(fetchers[i], NULL);
    pthread_join(disturber, NULL);
    pthread_join(server, NULL);
    lc_plane_free(plane);
    fprintf(stderr, "%d clients, %d answers, %d requests\n", atomic_load(&served),
            atomic_load(&answered), (int)totals.requests);
    return atomic_load(&failed) != 0;
}
