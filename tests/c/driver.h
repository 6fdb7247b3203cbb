/* What the drivers share. */
#ifndef LC_DRIVER_H
#define LC_DRIVER_H

#include "engine.h"

#include <stdatomic.h>
#include <stdio.h>

static atomic_int failed;

#define CHECK(what) do { if (!(what)) { \
    fprintf(stderr, "%s:%d: %s: errno %d\n", __FILE__, __LINE__, #what, errno); \
    atomic_fetch_add(&failed, 1); } } while (0)

static inline int tcp_listener(struct lc_addr *at)
{
    struct lc_open open;
    int step, fd;

    memset(&open, 0, sizeof open);
    open.family = 4;
    open.type = SOCK_STREAM;
    open.engine = -1;
    open.flags = LC_DOBIND;
    open.address.family = 4;
    memcpy(open.address.ip, "\x7f\x00\x00\x01", 4);
    fd = lc_open(&open, &step);
    CHECK(fd >= 0 && listen(fd, 512) == 0 && lc_local(fd, at) == 0);
    return fd;
}

#endif
