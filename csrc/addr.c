/* Socket addresses in and out of the neutral form. */
#include "engine.h"

static const uint8_t mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

/* A family-4 address for an AF_INET6 socket is written v4-mapped. 0: the socket cannot carry it. */
socklen_t lc_to_sockaddr(const struct lc_addr *addr, int family, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (family == AF_INET && addr->family == 4) {
        struct sockaddr_in *sin = (struct sockaddr_in *)(void *)out;
        sin->sin_family = AF_INET;
        sin->sin_port = htons(addr->port);
        memcpy(&sin->sin_addr, addr->ip, 4);
#if !defined(__linux__)
        sin->sin_len = sizeof *sin;
#endif
        return sizeof *sin;
    }
    if (family == AF_INET6 && (addr->family == 4 || addr->family == 6)) {
        struct sockaddr_in6 *sin6 = (struct sockaddr_in6 *)(void *)out;
        sin6->sin6_family = AF_INET6;
        sin6->sin6_port = htons(addr->port);
        if (addr->family == 4) {
            memcpy(&sin6->sin6_addr, mapped_prefix, 12);
            memcpy((uint8_t *)&sin6->sin6_addr + 12, addr->ip, 4);
        } else {
            memcpy(&sin6->sin6_addr, addr->ip, 16);
            sin6->sin6_flowinfo = htonl(addr->flow);
            sin6->sin6_scope_id = addr->scope;
        }
#if !defined(__linux__)
        sin6->sin6_len = sizeof *sin6;
#endif
        return sizeof *sin6;
    }
    return 0;
}

int lc_from_sockaddr(const struct sockaddr_storage *in, socklen_t len, struct lc_addr *out)
{
    memset(out, 0, sizeof *out);
    if (len >= (socklen_t)sizeof(struct sockaddr_in) && in->ss_family == AF_INET) {
        const struct sockaddr_in *sin = (const struct sockaddr_in *)(const void *)in;
        out->family = 4;
        out->port = ntohs(sin->sin_port);
        memcpy(out->ip, &sin->sin_addr, 4);
        return 0;
    }
    if (len >= (socklen_t)sizeof(struct sockaddr_in6) && in->ss_family == AF_INET6) {
        const struct sockaddr_in6 *sin6 = (const struct sockaddr_in6 *)(const void *)in;
        const uint8_t *ip = (const uint8_t *)&sin6->sin6_addr;
        out->port = ntohs(sin6->sin6_port);
        if (memcmp(ip, mapped_prefix, 12) == 0) {
            out->family = 4;
            memcpy(out->ip, ip + 12, 4);
        } else {
            out->family = 6;
            memcpy(out->ip, ip, 16);
            out->flow = ntohl(sin6->sin6_flowinfo);
            out->scope = sin6->sin6_scope_id;
        }
        return 0;
    }
    return -EAFNOSUPPORT;
}

/* The same host and port. The flow label is no part of an address. */
int lc_same(const struct lc_addr *a, const struct lc_addr *b)
{
    return a->family == b->family && a->port == b->port && a->scope == b->scope
        && memcmp(a->ip, b->ip, a->family == 4 ? 4 : 16) == 0;
}

int lc_is_wildcard(const struct lc_addr *addr)
{
    static const uint8_t zero[16];
    return memcmp(addr->ip, zero, addr->family == 4 ? 4 : 16) == 0;
}

static int name_of(int fd, struct lc_addr *out,
                   int (*ask)(int, struct sockaddr *, socklen_t *))
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;

    if (ask(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    return lc_from_sockaddr(&ss, len, out);
}

int lc_local(int fd, struct lc_addr *out)
{
    return name_of(fd, out, getsockname);
}

int lc_peer(int fd, struct lc_addr *out)
{
    return name_of(fd, out, getpeername);
}
