/* What every engine file sees: the shape of a row, and the helpers they share.
 *
 * One file per kernel mechanism. Every file compiles on every system; where the system has no such
 * mechanism its functions answer -ENOTSUP through the same row.
 */
#ifndef LC_ENGINE_H
#define LC_ENGINE_H

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1
#endif
#if defined(__APPLE__) && !defined(__APPLE_USE_RFC_3542)
#define __APPLE_USE_RFC_3542 1  /* IPV6_PKTINFO */
#endif

#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "shim.h"

#ifndef SOCK_NONBLOCK
#define LC_NO_SOCK_FLAGS 1  /* macOS: fcntl after the fact */
#endif

/* Not everywhere is it visible under strict flags. */
#ifndef ENOTSUP
#define ENOTSUP EOPNOTSUPP
#endif

/* One accepted connection, as the lookups need it. */
struct lc_conn {
    int fd;
    int type;               /* SOCK_STREAM or SOCK_DGRAM */
    struct lc_addr local;
    struct lc_addr peer;
};

struct lc_engine {
    const char *name;
    unsigned can;
    /* 0, or -errno. Asked once; opens devices. Needs no privilege the mechanism itself does not. */
    int (*probe)(void);
    /* Grants `fd` (of AF_INET or AF_INET6) the right to a foreign local address, before bind. */
    int (*allow)(int fd, int family);
    /* Where the connection was going; -ENOENT: this engine has no entry for it. */
    int (*lookup)(const struct lc_conn *conn, struct lc_addr *original);

    /* For an engine to which a right before bind(2) is not enough; NULL in the rows of the others,
     * which leave them out. `wanted` is the address asked for, port 0: any. */

    /* Instead of bind(2); 1: the address is not foreign, bind(2) will do. */
    int (*bind)(int fd, const struct lc_open *request, const struct lc_addr *wanted);
    /* After listen(2). */
    int (*listening)(int fd);
    /* Before connect(2). */
    int (*connecting)(int fd, const struct lc_open *request, const struct lc_addr *wanted,
                      const struct lc_addr *to);
    /* The address that others see, where getsockname(2) tells another one; -ENOENT: it does not. */
    int (*seen)(int fd, struct lc_addr *out);
};

/* A row ends where its engine has no more to say. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#endif

extern const struct lc_engine lc_tproxy4, lc_tproxy2, lc_bindany, lc_netfilter, lc_pf, lc_ipfilter,
    lc_sockname, lc_null;

/* Rows that code outside the table refers to. */
int lc_engine_row(const struct lc_engine *engine);
int lc_engine_allow(int engine, int fd, int family);
/* NULL for -1. */
const struct lc_engine *lc_engine_at(int row);

/* addr.c */
socklen_t lc_to_sockaddr(const struct lc_addr *addr, int family, struct sockaddr_storage *out);
int lc_from_sockaddr(const struct sockaddr_storage *in, socklen_t len, struct lc_addr *out);
int lc_same(const struct lc_addr *a, const struct lc_addr *b);
int lc_is_wildcard(const struct lc_addr *addr);

/* sock.c: the local address from which a socket opened like this would send to `to`. */
int lc_source(const struct lc_open *request, const struct lc_addr *to, struct lc_addr *out);

/* options.c: 0 where there is none. */
uint32_t lc_mark_of(int fd);

/* engine_ipfilter.c: what its row's probe does not do, see there. */
int lc_ipfilter_open(void);

/* engine_tproxy4.c: 1 the socket carries IP_TRANSPARENT, 0 it does not or the system has none. */
int lc_is_transparent(int fd);

#endif
