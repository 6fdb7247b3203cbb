/* Drives flows of a plane from several threads without Python, for ThreadSanitizer: questions fetched,
 * their first datagrams read and their answers given while other threads change the policy, count,
 * kill and look at what is waiting; too many flows for their table; drain and stop. A TPROXY rule
 * brings datagrams to port 3130 until standard input ends. Prints what went wrong; 0: nothing did. */
#include "driver.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { PORT = 3130, MOST = 4096, FLOWS = 40 };

static struct lc_plane *plane;
static int number;
static atomic_int going, asked, ended;
static _Atomic uint64_t ids[MOST];

static int udp_listener(void)
{
    struct lc_open open;
    int step, fd;

    memset(&open, 0, sizeof open);
    open.family = 4;
    open.type = SOCK_DGRAM;
    open.engine = lc_engine_row(&lc_tproxy4);
    open.flags = LC_DOBIND | LC_NONBLOCKING | LC_REUSEADDR | LC_TPROXY_LCL;
    open.address.family = 4;
    open.address.port = PORT;
    fd = lc_open(&open, &step);
    CHECK(fd >= 0);
    return fd;
}

static uint64_t some(unsigned *seed)
{
    int n = atomic_load(&asked);

    return n == 0 ? 0 : atomic_load(&ids[(unsigned)rand_r(seed) % (unsigned)(n < MOST ? n : MOST)]);
}

static void reply(uint64_t id, int turn)
{
    struct lc_answer answer;
    char first[64];

    memset(&answer, 0, sizeof answer);
    answer.id = id;
    answer.action = turn % 5 == 0 ? LC_DENY : turn % 2 == 0 ? LC_SPOOF : LC_RELAY;
    CHECK(lc_plane_waiting(plane, id, first, sizeof first) != 0);
    (void)lc_plane_answer(plane, &answer, 1);
}

static void *fetch(void *unused)
{
    struct pollfd ready = {.events = POLLIN};
    struct lc_done done[16];
    int i, n, at;

    (void)unused;
    ready.fd = lc_plane_fd(plane);
    while (atomic_load(&going)) {
        if (poll(&ready, 1, 10) <= 0)
            continue;
        n = lc_plane_reap(plane, done, 16);
        CHECK(n >= 0);
        for (i = 0; i < n; i++) {
            if (done[i].what == LC_ASKED) {
                at = atomic_load(&asked);
                atomic_store(&ids[at % MOST], done[i].id);
                atomic_store(&asked, at + 1);
                if (at % 7 != 0)        /* somebody else answers */
                    reply(done[i].id, at);
            } else if (done[i].what != LC_DRAINED && done[i].what != LC_CLOSED) {
                atomic_fetch_add(&ended, 1);
            }
        }
    }
    return NULL;
}

static void *meddle(void *unused)
{
    struct lc_totals totals;
    struct lc_rule rules[2];
    unsigned seed = 1, turn;
    uint64_t up, down, id;
    char first[64];

    (void)unused;
    memset(rules, 0, sizeof rules);
    rules[0].high = rules[1].high = 65535;
    for (turn = 0; atomic_load(&going); turn++) {
        id = some(&seed);
        (void)lc_plane_waiting(plane, id, first, sizeof first);
        (void)lc_plane_counts(plane, id, &up, &down);
        if (turn % 3 == 0)
            reply(id, (int)turn);
        if (turn % 5 == 0)
            (void)lc_plane_kill(plane, some(&seed));
        CHECK(lc_plane_totals(plane, &totals) == 0);
        rules[0].action = turn % 4 == 0 ? LC_SPOOF : LC_ASK;
        (void)lc_plane_policy(plane, number, rules, 1);
        poll(NULL, 0, 1);
    }
    return NULL;
}

int main(void)
{
    struct lc_listen how;
    struct lc_rule rule;
    struct lc_totals totals;
    pthread_t fetcher, meddlers[2];
    char end;
    int i;

    CHECK(lc_plane_open(&plane) == 0);
    memset(&how, 0, sizeof how);
    how.engine = -1;
    how.spoofer = lc_engine_row(&lc_tproxy4);
    how.report = LC_REPORT_ALL;
    how.flows = FLOWS;
    how.idle = 200;
    how.total = how.timeout = -1;
    memset(&rule, 0, sizeof rule);
    rule.action = LC_ASK;
    rule.high = 65535;
    number = lc_plane_listen(plane, udp_listener(), &how, &rule, 1);
    CHECK(number >= 0);
    atomic_store(&going, 1);
    pthread_create(&fetcher, NULL, fetch, NULL);
    for (i = 0; i < 2; i++)
        pthread_create(&meddlers[i], NULL, meddle, NULL);
    puts("ready");
    fflush(stdout);
    CHECK(read(0, &end, 1) == 0);
    CHECK(lc_plane_unlisten(plane, number) == 0);
    CHECK(lc_plane_drain(plane) == 0);
    for (i = 0; i < 1000; i++) {
        CHECK(lc_plane_totals(plane, &totals) == 0);
        if (totals.live == 0)
            break;
        poll(NULL, 0, 10);
    }
    CHECK(totals.live == 0);
    CHECK(lc_plane_stop(plane) == 0);
    atomic_store(&going, 0);
    pthread_join(fetcher, NULL);
    for (i = 0; i < 2; i++)
        pthread_join(meddlers[i], NULL);
    lc_plane_free(plane);
    printf("%d asked, %d ended, %d evicted\n", atomic_load(&asked), atomic_load(&ended),
           (int)totals.evicted);
    return atomic_load(&failed) != 0;
}
