/* A connection that came by a listener: it goes where the policy says, or where an answer says. */
#include "plane.h"

#include <stdlib.h>

void lc_go_there(struct lc_plane *p, struct relay *r, int action)
{
    const struct lc_listen *how = &p->listener[r->listener].how;
    struct lc_open *open = &r->job->open;

    open->family = r->job->to.family;
    open->type = SOCK_STREAM;
    open->flags = how->flags & ~(unsigned)LC_TRANSPARENT_PORT;
    open->engine = -1;
    open->has_mark = how->has_mark;
    open->mark = how->mark;
    if (action == LC_SPOOF) {
        open->flags = how->flags | LC_TPROXY_REM;
        open->engine = how->spoofer;
        open->address = r->job->peer;
    }
    r->silent = how->report == LC_REPORT_NONE;
    if (action == LC_SPOOF && how->spoofer < 0) {
        r->state = CONNECTING;
        lc_relay_end(p, r, LC_END_CONNECT, ENOTSUP, 2);
        return;
    }
    lc_connect_start(p, r);
}

void lc_ask(struct lc_plane *p, struct relay *r)
{
    r->state = ASKED;
    r->what = LC_ASKED;         /* until it is fetched */
    lc_finished(p, r);
    LC_ADD(p->asked, 1);
}

static void forget(struct lc_plane *p, struct relay *r)
{
    free(r->job);
    r->job = NULL;
    lc_left(p, r);
    pthread_mutex_lock(&p->lock);
    lc_give(p, r);
    pthread_mutex_unlock(&p->lock);
}

void lc_answered(struct lc_plane *p, struct relay *r)
{
    int action = r->job->action;

    if (r->began == 0)
        r->began = p->now_ns;
    if (r->flow != NULL) {
        lc_flow_answered(p, r);
        return;
    }
    if (action == LC_JOIN) {
        free(r->job);
        r->job = NULL;
        r->silent = p->listener[r->listener].how.report == LC_REPORT_NONE;
        (void)lc_relay_start(p, r);
        return;
    }
    if (action == LC_RELAY || action == LC_SPOOF) {
        lc_go_there(p, r, action);
        return;
    }
    if (action == LC_DENY) {
        LC_ADD(p->denied, 1);
        lc_reset_fd(LC_GET(r->fd[0]));
    }
    forget(p, r);
}

/* A question that nobody will answer. One that was fetched is told of again, as killed. */
void lc_asked_end(struct lc_plane *p, struct relay *r)
{
    int fetched, fd = -1;

    pthread_mutex_lock(&p->lock);
    if (r->state != ASKED) {
        pthread_mutex_unlock(&p->lock);
        return;
    }
    fetched = r->what != LC_ASKED;
    fd = LC_GET(r->fd[0]);
    atomic_store_explicit(&r->fd[0], -1, memory_order_relaxed);
    r->state = ENDED;
    r->what = LC_END_KILLED;
    r->began = p->now_ns - r->began;
    free(r->job);
    r->job = NULL;
    pthread_mutex_unlock(&p->lock);
    if (r->flow != NULL)
        lc_flow_end(p, r);
    else
        lc_reset_fd(fd);
    lc_left(p, r);
    LC_ADD(p->finished, 1);
    if (fetched)
        lc_finished(p, r);
}

/* Under the lock: what the question needs to be the relay that the answer makes of it. */
static int fit(struct relay *r, const struct lc_answer *a)
{
    if (a->how == NULL)
        return 0;
    if (lc_say_how(r, a->how) < 0)
        return -ENOMEM;
    r->began = 0;               /* its time is from now on, not from accept(2) */
    if (a->action == LC_JOIN) {
        atomic_store_explicit(&r->fd[1], a->how->upstream, memory_order_relaxed);
        r->trail = a->how->trail;
    }
    return 0;
}

/* The upstream that a question would have got. */
static void refuse(const struct lc_answer *a)
{
    if (a->action != LC_JOIN)
        return;
    if (a->how->trail != 0)
        (void)lc_trail_remove(a->how->trail);
    lc_reset_fd(a->how->upstream);
}

int lc_plane_answer(struct lc_plane *p, const struct lc_answer *answers, int n)
{
    int i, taken = 0, err;

    if (!lc_alive(p))
        return -ESRCH;
    pthread_mutex_lock(&p->lock);
    err = p->closed > 1 ? -ESHUTDOWN : lc_reserve(p, (size_t)n);
    for (i = 0; i < n && err == 0; i++) {
        struct relay *r = lc_by_id(p, answers[i].id);
        struct command c = {.what = DO_ANSWER, .id = answers[i].id};

        if (r == NULL || r->state != ASKED) {
            refuse(&answers[i]);
            continue;
        }
        if (fit(r, &answers[i]) < 0) {
            refuse(&answers[i]);
            c.what = DO_KILL;
        } else {
            r->state = NEW;
            r->job->action = answers[i].action;
            if (answers[i].to.family != 0)
                r->job->to = answers[i].to;
        }
        (void)lc_command(p, &c);
        taken++;
    }
    pthread_mutex_unlock(&p->lock);
    return err < 0 ? err : taken;
}
