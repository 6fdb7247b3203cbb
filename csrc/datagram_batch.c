/* Many datagrams in one call: recvmmsg(2) and sendmmsg(2), which Linux, FreeBSD, NetBSD and OpenBSD
 * have; elsewhere a loop.
 *
 * The memory of a datagram is the largest there can be, so that none is ever cut; pages that no
 * datagram has reached cost nothing. Its stride is no power of two: the first bytes of all would
 * share a few lines of the cache. */
#include "datagram.h"

#include <stdlib.h>

#if defined(__linux__) || defined(__FreeBSD__) || defined(__NetBSD__) || defined(__OpenBSD__)
#define HAS_MMSG 1
#else
struct mmsghdr {
    struct msghdr msg_hdr;
    unsigned msg_len;
};
#endif

struct lc_batch {
    int used;
    struct mmsghdr message[LC_BATCH];
    struct iovec iov[LC_BATCH];
    struct sockaddr_storage name[LC_BATCH];
    union lc_control control[LC_BATCH];
    struct lc_datagram datagram[LC_BATCH];
    uint8_t bytes[];
};

static void prepare(struct lc_batch *b, int i)
{
    struct msghdr *msg = &b->message[i].msg_hdr;

    b->iov[i].iov_base = b->bytes + (size_t)i * LC_STRIDE;
    b->iov[i].iov_len = LC_DATAGRAM;
    msg->msg_name = &b->name[i];
    msg->msg_namelen = sizeof b->name[i];
    msg->msg_iov = &b->iov[i];
    msg->msg_iovlen = 1;
    msg->msg_control = &b->control[i];
    msg->msg_controllen = sizeof b->control[i];
    msg->msg_flags = 0;
}

struct lc_batch *lc_batch_new(void)
{
    struct lc_batch *b = calloc(1, sizeof *b + (size_t)LC_BATCH * LC_STRIDE);
    int i;

    if (b != NULL)
        for (i = 0; i < LC_BATCH; i++)
            prepare(b, i);
    return b;
}

void lc_batch_free(struct lc_batch *b)
{
    free(b);
}

struct lc_datagram *lc_batch_datagrams(struct lc_batch *b)
{
    return b->datagram;
}

uint8_t *lc_batch_bytes(struct lc_batch *b)
{
    return b->bytes;
}

/* What was not used is as it was prepared. */
void lc_batch_clear(struct lc_batch *b)
{
    while (b->used > 0)
        prepare(b, --b->used);
}

static int receive(int fd, struct mmsghdr *message, int max)
{
    int n;

#ifdef HAS_MMSG
    do
        n = (int)recvmmsg(fd, message, (unsigned)max, MSG_DONTWAIT, NULL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
#else
    for (n = 0; n < max; n++) {
        ssize_t size = recvmsg(fd, &message[n].msg_hdr, MSG_DONTWAIT);
        if (size < 0)
            return n > 0 ? n : -errno;
        message[n].msg_len = (unsigned)size;
    }
    return n;
#endif
}

/* One system call, as far as there is one: how many were sent, or -errno of the first. */
static int transmit(int fd, struct mmsghdr *message, int n)
{
    int sent;

#ifdef HAS_MMSG
    do
        sent = (int)sendmmsg(fd, message, (unsigned)n, MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
#else
    for (sent = 0; sent < n; sent++)
        if (sendmsg(fd, &message[sent].msg_hdr, MSG_DONTWAIT) < 0)
            return sent > 0 ? sent : -errno;
    return sent;
#endif
}

int lc_batch_recv(struct lc_batch *b, int fd, int max)
{
    int first = b->used, n, i;

    n = receive(fd, &b->message[first], max < LC_BATCH - first ? max : LC_BATCH - first);
    for (i = first; i < first + n; i++) {
        struct msghdr *msg = &b->message[i].msg_hdr;
        struct lc_datagram *d = &b->datagram[i];

        d->fd = fd;
        d->size = (int)b->message[i].msg_len;
        (void)lc_from_sockaddr(&b->name[i], msg->msg_namelen, &d->peer);
        lc_get_original(msg, &d->original);
        if (d->original.port == 0)
            lc_complete_original(fd, &d->original);
    }
    b->used += n > 0 ? n : 0;
    return n;
}

/* Each gets its share, so that a busy one leaves the others theirs. */
int lc_recv_many(struct lc_batch *b, const int *fds, int n, int max)
{
    int i, share, got;

    lc_batch_clear(b);
    if (max > LC_BATCH)
        max = LC_BATCH;
    for (i = 0; i < n && b->used < max; i++) {
        share = (max - b->used) / (n - i);
        got = lc_batch_recv(b, fds[i], share > 0 ? share : 1);
        if (got >= 0 || got == -EAGAIN)
            continue;
        b->datagram[b->used].fd = fds[i];
        b->datagram[b->used++].size = got;
    }
    return b->used;
}

/* FACT: a connected socket answers the next call with what an ICMP message said of an earlier
 * datagram (udp(7)); this one has not been sent then. */
static int said_of_another(int err)
{
    return err == -ECONNREFUSED || err == -EHOSTUNREACH || err == -ENETUNREACH || err == -EHOSTDOWN;
}

int lc_batch_forward(struct lc_batch *b, int first, int n, int fd, uint64_t *bytes)
{
    int i, end = first + n, count = 0, again = 1;

    for (i = first; i < end; i++) {
        struct msghdr *msg = &b->message[i].msg_hdr;

        b->iov[i].iov_len = (size_t)b->datagram[i].size;
        msg->msg_name = NULL;
        msg->msg_namelen = 0;
        msg->msg_control = NULL;
        msg->msg_controllen = 0;
        msg->msg_flags = 0;
    }
    *bytes = 0;
    while (first < end) {
        int sent = transmit(fd, &b->message[first], end - first);

        if (sent == -EAGAIN || sent == -ENOBUFS)
            break;
        if (sent < 0 && again && said_of_another(sent)) {
            again = 0;
            continue;
        }
        again = 1;
        if (sent <= 0) {        /* too long for the path, or forbidden: the next may not be */
            first++;
            continue;
        }
        for (count += sent; sent > 0; sent--)
            *bytes += (uint64_t)b->datagram[first++].size;
    }
    return count;
}

int lc_send_many(struct lc_parcel *parcels, int n)
{
    struct mmsghdr message[LC_BATCH];
    struct iovec iov[LC_BATCH];
    int i, end, begin = 0, count = 0;

    while (begin < n) {
        int fd = parcels[begin].fd, sent = 0, again = 1, from = begin;

        memset(message, 0, sizeof message);
        for (end = begin; end < n && end - begin < LC_BATCH && parcels[end].fd == fd; end++) {
            i = end - begin;
            iov[i].iov_base = (void *)(uintptr_t)parcels[end].bytes;    /* not written to */
            iov[i].iov_len = (size_t)parcels[end].size;
            message[i].msg_hdr.msg_iov = &iov[i];
            message[i].msg_hdr.msg_iovlen = 1;
        }
        while (begin < end) {
            sent = transmit(fd, &message[begin - from], end - begin);
            if (sent < 0 && again && said_of_another(sent)) {
                again = 0;
                continue;
            }
            again = 1;
            if (sent <= 0)
                parcels[begin++].sent = sent;
            for (count += sent > 0 ? sent : 0; sent > 0; sent--, begin++)
                parcels[begin].sent = parcels[begin].size;
        }
    }
    return count;
}
