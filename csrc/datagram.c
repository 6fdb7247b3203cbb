/* One datagram, with the addresses that recvfrom(2) and sendto(2) leave out: where it was going, and
 * from which of this machine's addresses it shall leave. */
#include "datagram.h"

int lc_recv(int fd, void *buffer, int size, struct lc_addr *peer, struct lc_addr *original)
{
    struct sockaddr_storage from;
    union lc_control control;
    struct iovec iov = {.iov_base = buffer, .iov_len = (size_t)size};
    struct msghdr msg;
    ssize_t n;

    memset(&msg, 0, sizeof msg);
    msg.msg_name = &from;
    msg.msg_namelen = sizeof from;
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = &control;
    msg.msg_controllen = sizeof control;
    do
        n = recvmsg(fd, &msg, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    (void)lc_from_sockaddr(&from, msg.msg_namelen, peer);   /* family 0: no internet address */
    lc_get_original(&msg, original);
    lc_complete_original(fd, original);
    return (int)n;
}

int lc_send(int fd, const void *data, int size, const struct lc_addr *to,
            const struct lc_addr *from)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    union lc_control control;
    /* sendmsg(2) does not write to it. */
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = (size_t)size};
    struct msghdr msg;
    ssize_t n;

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
        return -errno;
    memset(&msg, 0, sizeof msg);
    memset(&control, 0, sizeof control);
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    if (from != NULL && from->family != 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control;
        lc_put_source(&msg, ss.ss_family, from);
    }
    msg.msg_namelen = lc_to_sockaddr(to, ss.ss_family, &ss);
    if (msg.msg_namelen == 0)
        return -EAFNOSUPPORT;
    msg.msg_name = &ss;
    do
        n = sendmsg(fd, &msg, 0);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int)n;
}
