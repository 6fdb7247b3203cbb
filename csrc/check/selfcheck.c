/* Run on a system, says what the shim has there, and proves the parts that need no rules and no
 * root: 0 if all of it holds.
 *
 *     cc -std=c11 -o selfcheck $(find csrc -name '*.c')
 *
 * It opens /dev/pf, as probing does, and never /dev/ipnat.
 */
#include "../engine.h"

#include <stdio.h>
#include <unistd.h>

static int failures;

static void check(const char *what, int holds)
{
    printf("%-6s %s\n", holds ? "ok" : "FAILED", what);
    failures += !holds;
}

static struct lc_addr address(int family, const uint8_t *ip, uint16_t port)
{
    struct lc_addr out = {.family = (uint8_t)family, .port = port};

    memcpy(out.ip, ip, family == 4 ? 4 : 16);
    return out;
}

static const uint8_t loopback4[] = {127, 0, 0, 1}, foreign4[] = {192, 0, 2, 77};
static const uint8_t loopback6[16] = {[15] = 1};
static const uint8_t foreign6[16] = {0x20, 0x01, 0x0d, 0xb8, [15] = 0x77};

static void engines(void)
{
    static const char *const can[] = {
        "lookup", "listen", "spoof", "tcp", "udp", "ipv4", "ipv6", "named-only",
    };
    int row, bit;

    for (row = 0; row < lc_engine_count(); row++) {
        int err = lc_engine_probe(row);
        printf("engine %-10s %-40s", lc_engine_name(row), err == 0 ? "here" : strerror(-err));
        for (bit = 0; bit < (int)(sizeof can / sizeof can[0]); bit++)
            if (lc_engine_abilities(row) & 1u << bit)
                printf(" %s", can[bit]);
        printf("\n");
    }
}

/* A direct connection over the loopback is accepted, has its addresses, and was not intercepted. */
static void direct(int family, const uint8_t *ip)
{
    struct lc_open request = {
        .family = family, .type = SOCK_STREAM, .engine = -1, .flags = LC_REUSEADDR,
        .address = address(family, ip, 0),
    };
    struct lc_addr at, from;
    struct lc_accepted got = {.fd = -1};
    struct lc_origin origin;
    int step, listener, client, err, tries;

    request.flags |= LC_DOBIND;
    listener = lc_open(&request, &step);
    if (listener == -EAFNOSUPPORT || listener == -EADDRNOTAVAIL) {
        printf("%-6s no IPv%d loopback here\n", "-", family);
        return;
    }
    check("a listener opens", listener >= 0 && listen(listener, 1) == 0);
    check("it has an address", lc_local(listener, &at) == 0 && at.port != 0 && at.family == family);
    request.address.family = 0;
    client = lc_open(&request, &step);
    err = lc_connect(client, &at);
    check("a client connects", client >= 0 && (err == 0 || err == -EINPROGRESS));
    for (tries = 0; (err = lc_accept(listener, 0, &got)) == -EAGAIN && tries < 1000; tries++)
        usleep(1000);
    check("it is accepted", err == 0 && got.fd >= 0);
    check("me is the listener", lc_same(&got.me, &at));
    check("peer is the client", lc_local(client, &from) == 0 && lc_same(&got.peer, &from));
    err = lc_original(got.fd, -1, &origin);
    printf("       a direct connection is answered %s\n", err == 0 ? "!" : strerror(-err));
    check("it was not intercepted", err == -ENOENT || err == -EACCES);
    close(got.fd);
    close(client);
    close(listener);
}

int main(void)
{
    struct lc_addr own4 = address(4, loopback4, 0), other4 = address(4, foreign4, 0);
    struct lc_addr own6 = address(6, loopback6, 0), other6 = address(6, foreign6, 0);

    printf("system %s\n", lc_system());
    engines();
    check("loopback addresses are this machine's", lc_own(&own4) == 1 && lc_own(&own6) == 1);
    check("documentation addresses are not", lc_own(&other4) == 0 && lc_own(&other6) == 0);
    direct(4, loopback4);
    direct(6, loopback6);
    printf("%d failed\n", failures);
    return failures != 0;
}
