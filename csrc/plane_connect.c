/* Connecting out. Until it is connected the client is not looked at. */
#include "plane.h"

#include <stdlib.h>

static int port_refused(int err, int step)
{
    return step == LC_STEP_BIND && (err == -EADDRINUSE || err == -EACCES);
}

/* What goes in the client's name cannot come back as the machine's own. */
static int go(struct job *job, int fd, uint64_t *trail)
{
    if (job->open.flags & LC_TPROXY_REM)
        return lc_connect_as(fd, &job->open, &job->to);
    return lc_trail_connect(fd, &job->open, &job->to, trail);
}

/* A kept port gives way where it cannot be had: at bind, or because this very connection exists
 * (EADDRNOTAVAIL, after which a socket can't be bound again). */
int lc_connect_go(struct job *job, int *fd, uint64_t *trail)
{
    struct lc_open *open = &job->open;
    int keeps = (open->flags & LC_TRANSPARENT_PORT) && open->address.port != 0;
    int err, step;

    *fd = lc_open(open, &step);
    if (*fd < 0 && keeps && port_refused(*fd, step)) {
        open->address.port = 0;
        *fd = lc_open(open, &step);
        keeps = 0;
    }
    if (*fd < 0)
        return *fd;
    err = go(job, *fd, trail);
    if (err == -EADDRNOTAVAIL && keeps) {
        open->address.port = 0;
        err = lc_reopen(*fd, open, &step);
        if (err >= 0)
            err = go(job, *fd, trail);
    }
    return err;
}

/* Without a client it was only to be connected. */
static void connected(struct lc_plane *p, struct relay *r)
{
    if (LC_GET(r->fd[0]) < 0)
        lc_relay_end(p, r, LC_CONNECTED, 0, 0);
    else
        (void)lc_relay_start(p, r);
}

void lc_connect_start(struct lc_plane *p, struct relay *r)
{
    int fd, err;

    r->state = CONNECTING;
    err = lc_connect_go(r->job, &fd, &r->trail);
    atomic_store_explicit(&r->fd[1], fd < 0 ? -1 : fd, memory_order_relaxed);
    if (err == 0 || err == -EINPROGRESS) {
        int added = lc_poll_add(p, fd, lc_key(r, 1));

        if (added == 0 && err == 0) {
            connected(p, r);
            return;
        }
        if (added == 0 && r->job->timeout != LC_NONE)
            added = lc_timer_set(p, r, p->now + r->job->timeout);
        if (added == 0)
            return;
        err = added;
    }
    lc_relay_end(p, r, LC_END_CONNECT, -err, 2);
}

/* SO_ERROR is 0 before the end too, and an event can be another socket's: only a peer is proof. */
void lc_connect_event(struct lc_plane *p, struct relay *r, unsigned what)
{
    struct lc_addr peer;
    int fd = LC_GET(r->fd[1]), err = lc_error(fd);

    if (err == 0 && (err = -lc_peer(fd, &peer)) == ENOTCONN)
        return;
    if (err != 0) {
        lc_relay_end(p, r, LC_END_CONNECT, err < 0 ? -err : err, 2);
        return;
    }
    lc_timer_clear(p, r);
    r->side[1] |= (uint8_t)what;
    connected(p, r);
}
