/* Drives a plane from several threads without Python, for ThreadSanitizer: relays handed over,
 * watched, killed and fetched at once, connects, a listener whose questions are answered while its
 * policy is changed, drain and stop. Prints what went wrong; 0: nothing did. */
#include "driver.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { ROUNDS = 300, GIVERS = 3, MOST = 4096 };

static struct lc_plane *plane;
static struct lc_addr origin;
static atomic_int given, ended, going;
static _Atomic uint64_t ids[MOST];
static atomic_int n_ids;

static struct lc_pair pair_of(int client, int upstream)
{
    struct lc_pair pair;

    memset(&pair, 0, sizeof pair);
    pair.client = client;
    pair.upstream = upstream;
    pair.limit_up = pair.limit_down = pair.total = pair.timeout = -1;
    pair.idle = 60000;
    return pair;
}

static void unblock(int fd)
{
    CHECK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0);
}

static void exchange(int near, int far)
{
    uint8_t out[3000], in[3000];
    size_t got = 0;
    ssize_t n;

    memset(out, near & 0xff, sizeof out);
    CHECK(send(near, out, sizeof out, MSG_NOSIGNAL) == sizeof out);
    while (got < sizeof in && (n = recv(far, in + got, sizeof in - got, 0)) > 0)
        got += (size_t)n;
    CHECK(got == sizeof in && memcmp(in, out, sizeof in) == 0);
}

static void *give(void *unused)
{
    int i;

    (void)unused;
    for (i = 0; i < ROUNDS; i++) {
        struct lc_pair two[2];
        int a[2][2], b[2][2], j, at;

        for (j = 0; j < 2; j++) {
            CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, a[j]) == 0);
            CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, b[j]) == 0);
            unblock(a[j][1]);
            unblock(b[j][0]);
            two[j] = pair_of(a[j][1], b[j][0]);
        }
        CHECK(lc_plane_submit(plane, two, 2) == 2);
        atomic_fetch_add(&given, 2);
        at = atomic_fetch_add(&n_ids, 1);
        if (at < MOST)
            atomic_store(&ids[at], two[1].id);
        exchange(a[0][0], b[0][1]);
        exchange(b[0][1], a[0][0]);
        if (i % 3 == 0)
            CHECK(lc_plane_kill(plane, two[0].id) == 0);
        for (j = 0; j < 2; j++) {
            close(a[j][0]);
            close(b[j][1]);
        }
    }
    return NULL;
}

static void *watch(void *unused)
{
    struct lc_totals totals;
    uint64_t up, down, id;

    (void)unused;
    while (atomic_load(&going)) {
        int n = atomic_load(&n_ids);
        if (n > 0 && (id = atomic_load(&ids[(n - 1) % MOST])) != 0)
            (void)lc_plane_counts(plane, id, &up, &down);
        (void)lc_plane_find(plane, 7, &id);
        CHECK(lc_plane_totals(plane, &totals) == 0);
        if (n > 0 && n % 7 == 0)
            (void)lc_plane_kill(plane, atomic_load(&ids[(n - 1) % MOST]));
        poll(NULL, 0, 1);
    }
    return NULL;
}

static void *fetch(void *unused)
{
    struct pollfd ready = {.events = POLLIN};
    struct lc_done done[16];
    int i, n;

    (void)unused;
    ready.fd = lc_plane_fd(plane);
    while (atomic_load(&going)) {
        if (poll(&ready, 1, 10) <= 0)
            continue;
        n = lc_plane_reap(plane, done, 16);
        CHECK(n >= 0);
        for (i = 0; i < n; i++) {
            if (done[i].what == LC_ASKED) {
                struct lc_answer answer;

                memset(&answer, 0, sizeof answer);
                answer.id = done[i].id;
                answer.action = 1 + (int)(done[i].id % 5);
                if (answer.action == LC_ASK)
                    answer.action = LC_DENY;
                answer.to = origin;
                if (lc_plane_answer(plane, &answer, 1) == 1 && answer.action == LC_HAND_OVER)
                    close(done[i].client);
                continue;
            }
            if (done[i].client >= 0)
                close(done[i].client);
            if (done[i].upstream >= 0)
                close(done[i].upstream);
            if (done[i].what != LC_DRAINED && done[i].listener < 0)
                atomic_fetch_add(&ended, 1);
        }
    }
    return NULL;
}

/* Clients of a listener in the plane. The engine sockname takes every direct connection for an
 * intercepted one; it is going to the listener itself, so an answer sends it to `origin`. */
static void *knock(void *unused)
{
    struct lc_addr at;
    int lfd = tcp_listener(&at), i, number;
    struct lc_listen how;
    struct lc_rule rules[2];

    (void)unused;
    memset(&how, 0, sizeof how);
    how.engine = -1;
    for (i = 0; i < lc_engine_count(); i++)
        if (strcmp(lc_engine_name(i), "sockname") == 0)
            how.engine = i;
    how.spoofer = -1;
    how.idle = how.total = -1;
    how.timeout = 5000;
    how.report = 0;
    memset(rules, 0, sizeof rules);
    rules[0].action = LC_ASK;
    rules[0].high = 65535;
    rules[1].action = LC_DENY;
    rules[1].high = 65535;
    number = lc_plane_listen(plane, lfd, &how, rules, 2);
    CHECK(number >= 0);
    for (i = 0; i < ROUNDS / 3; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct lc_pair pair;
        struct lc_open open;

        (void)lc_connect(fd, &at);
        CHECK(lc_plane_policy(plane, number, rules + i % 2, 1) == 0);
        close(fd);
        memset(&open, 0, sizeof open);
        open.family = 4;
        open.type = SOCK_STREAM;
        open.engine = -1;
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        unblock(fd);
        pair = pair_of(fd, -1);
        pair.open = &open;
        pair.to = &origin;
        CHECK(lc_plane_submit(plane, &pair, 1) == 1);
        atomic_fetch_add(&given, 1);
    }
    CHECK(lc_plane_unlisten(plane, number) == 0);
    return NULL;
}

int main(void)
{
    pthread_t givers[GIVERS], watcher, fetcher, knocker;
    int i, listener = tcp_listener(&origin);

    CHECK(lc_plane_open(&plane) == 0);
    atomic_store(&going, 1);
    pthread_create(&fetcher, NULL, fetch, NULL);
    pthread_create(&watcher, NULL, watch, NULL);
    pthread_create(&knocker, NULL, knock, NULL);
    for (i = 0; i < GIVERS; i++)
        pthread_create(&givers[i], NULL, give, NULL);
    for (i = 0; i < GIVERS; i++)
        pthread_join(givers[i], NULL);
    pthread_join(knocker, NULL);
    close(listener);
    for (i = 0; i < 1000 && atomic_load(&ended) < atomic_load(&given); i++)
        poll(NULL, 0, 10);
    CHECK(atomic_load(&ended) == atomic_load(&given));
    CHECK(lc_plane_drain(plane) == 0);
    CHECK(lc_plane_stop(plane) == 0);
    atomic_store(&going, 0);
    pthread_join(fetcher, NULL);
    pthread_join(watcher, NULL);
    lc_plane_free(plane);
    fprintf(stderr, "%d relays\n", atomic_load(&given));
    return atomic_load(&failed) != 0;
}
