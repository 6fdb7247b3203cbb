/* What the datagram files share. */
#ifndef LC_DATAGRAM_H
#define LC_DATAGRAM_H

#include "engine.h"

/* Room for the control messages of both families. */
union lc_control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(struct sockaddr_in)) + CMSG_SPACE(sizeof(struct sockaddr_in6))];
};

enum { LC_DATAGRAM = 65535 };   /* no datagram is longer */

/* datagram_control.c */
int lc_ask_original(int fd, int family, int dualstack);
/* Where the datagram was going; its port may be 0, where the system tells the address alone. */
void lc_get_original(struct msghdr *msg, struct lc_addr *original);
/* The source that a datagram shall have, as the only control message of `msg`, whose buffer is empty. */
void lc_put_source(struct msghdr *msg, int family, const struct lc_addr *from);
/* The port that no control message told is the listener's. */
void lc_complete_original(int fd, struct lc_addr *original);

/* datagram_batch.c: the thread's half. What is received lies in the batch until lc_batch_clear. */
void lc_batch_clear(struct lc_batch *b);
/* How many came; -EAGAIN, -errno. They stand behind what the batch has already. */
int lc_batch_recv(struct lc_batch *b, int fd, int max);
/* Sends `n` datagrams, from the one at `first` on, through a connected socket: how many went. What
 * would not go is lost, as in any router. */
int lc_batch_forward(struct lc_batch *b, int first, int n, int fd, uint64_t *bytes);

#endif
