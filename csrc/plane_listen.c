/* A whole listener: accept, where to, policy, and out again. What the policy leaves is asked. */
#include "plane.h"

#include <stdlib.h>
#include <unistd.h>

enum { ACCEPTS = 64, RETRY = 100 /* ms */ };

/* -- connections ----------------------------------------------------------------------------- */

/* Where the kernel need not be asked anything. A connection that arrives at another port than its
 * transparent listener's was delivered there by TPROXY: REDIRECT and the client itself both name the
 * listener's port. And the engine that trusts getsockname has its answer already. */
static int is_plain(const struct listener *l, const struct lc_accepted *got, struct lc_origin *o)
{
    int tproxy = lc_engine_row(&lc_tproxy4), sockname = lc_engine_row(&lc_sockname);
    int trusted = l->how.engine == sockname;

    if (got->me.family == 0)
        return 0;
    if (!trusted && (!l->transparent || got->me.port == l->at.port
                     || (l->how.engine >= 0 && l->how.engine != tproxy)))
        return 0;
    memset(o, 0, sizeof *o);
    o->engine = trusted ? sockname : tproxy;
    o->transparent = l->transparent;
    o->own = -1;
    o->original = o->local = got->me;
    o->peer = got->peer;
    return 1;
}

/* A proxy's port that clients know: only a connection that this process made is a loop. */
static int came_directly(struct lc_plane *p, const struct lc_accepted *got, struct lc_origin *o)
{
    memset(o, 0, sizeof *o);
    o->engine = -1;
    o->peer = got->peer;
    if (!lc_own_connection(&got->peer, &got->me))
        return 0;
    LC_ADD(p->looped, 1);
    return -ELOOP;
}

/* 0, and where the connection was going; else it must not be relayed. */
static int find_out(struct lc_plane *p, const struct listener *l, const struct lc_accepted *got,
                    struct lc_origin *o)
{
    int engine = l->how.engine, err, sockname;

    if (l->how.direct)
        return came_directly(p, got, o);
    err = is_plain(l, got, o) ? 0 : lc_original(got->fd, engine, o);
    sockname = o->engine == lc_engine_row(&lc_sockname);

    if (err == 0 && engine >= 0 && !o->translated && !sockname
        && engine != lc_engine_row(&lc_tproxy4))
        err = -ENOENT;          /* a NAT engine that speaks of a direct connection */
    if (err < 0) {
        LC_ADD(p->failed, 1);
        return err;
    }
    if ((!sockname && o->own != 0 && lc_own_listener(&o->original))
        || lc_own_connection(&o->peer, &o->original)) {
        LC_ADD(p->looped, 1);
        return -ELOOP;
    }
    return 0;
}

static struct relay *begin(struct lc_plane *p, uint32_t number, int fd, const struct lc_origin *o)
{
    const struct lc_listen *how = &p->listener[number].how;
    struct job *job = calloc(1, sizeof *job);
    struct relay *r = NULL;

    if (job == NULL)
        return NULL;
    pthread_mutex_lock(&p->lock);
    r = lc_take(p);
    pthread_mutex_unlock(&p->lock);
    if (r == NULL) {
        free(job);
        return NULL;
    }
    job->to = o->original;
    job->peer = o->peer;
    job->engine = o->engine;
    job->timeout = how->timeout < 0 ? LC_NONE : (uint32_t)how->timeout;
    r->job = job;
    r->listener = (int32_t)number;
    r->idle = how->idle < 0 ? LC_NONE : (uint32_t)how->idle;
    r->total = how->total < 0 ? LC_NONE : (uint32_t)how->total;
    r->began = p->now_ns;
    atomic_store_explicit(&r->fd[0], fd, memory_order_relaxed);
    LC_ADD(p->live, 1);
    p->listener[number].live++;
    return r;
}

/* Nothing of the plane is left of it; with the last one a closed listener is over. */
void lc_left(struct lc_plane *p, const struct relay *r)
{
    struct listener *l;

    LC_ADD(p->live, -1);
    if (r->listener < 0)
        return;
    l = &p->listener[r->listener];
    if (--l->live == 0 && l->fd < 0)
        p->over |= UINT64_C(1) << r->listener;
}

static void tell_of(struct lc_plane *p, uint32_t number, const struct lc_origin *o, int err)
{
    struct relay *r = begin(p, number, -1, o);

    if (r == NULL)
        return;
    if (err != -ELOOP)
        r->job->to = o->local;
    r->state = ENDED;
    r->what = LC_REFUSED;
    r->err = -err;
    lc_finished(p, r);
    lc_left(p, r);
}

static void meet(struct lc_plane *p, uint32_t number, const struct lc_accepted *got)
{
    struct listener *l = &p->listener[number];
    struct lc_origin o;
    struct relay *r = NULL;
    int action = LC_DENY, err = find_out(p, l, got, &o);

    if (err < 0 && l->how.refusals)
        tell_of(p, number, &o, err);
    if (err == 0) {
        action = lc_judge(l->rules->row, l->rules->n, &o.peer, &o.original,
                          l->rules->marks ? lc_mark_of(got->fd) : 0);
        if (action == LC_DENY)
            LC_ADD(p->denied, 1);
    }
    if (action == LC_ASK && l->how.service > 0) {
        lc_http_accepted(p, number, got, &o);
        return;
    }
    if (action != LC_DENY)
        r = begin(p, number, got->fd, &o);
    if (r == NULL)
        lc_reset_fd(got->fd);
    else if (action == LC_ASK)
        lc_ask(p, r);
    else
        lc_go_there(p, r, action);
}

void lc_listener_event(struct lc_plane *p, uint32_t number)
{
    struct listener *l = &p->listener[number];
    struct lc_accepted got;
    int i, err;

    if (l->flows != NULL) {
        lc_flows_event(p, number);
        return;
    }
    for (i = 0; i < ACCEPTS && l->fd >= 0; i++) {
        err = lc_accept(l->fd, 0, &got);
        if (err == -EAGAIN)
            return;
        if ((err == -EMFILE || err == -ENFILE) && lc_pool_spare(p))
            continue;
        if (err < 0) {
            /* Out of descriptors or memory: the queue waits, and the thread does not spin. */
            lc_poll_remove(p, l->fd);
            l->held = 1;
            p->resume = p->now + RETRY;
            return;
        }
        LC_ADD(p->accepted, 1);
        meet(p, number, &got);
    }
}

void lc_listener_resume(struct lc_plane *p)
{
    uint32_t i;

    p->resume = 0;
    for (i = 0; i < LC_LISTENERS; i++)
        if (p->listener[i].held && p->listener[i].fd >= 0) {
            p->listener[i].held = 0;
            (void)lc_poll_add_listener(p, p->listener[i].fd, i << 2 | KEY_LISTENER);
        }
}

/* -- listeners ------------------------------------------------------------------------------- */

void lc_listener_start(struct lc_plane *p, uint32_t number, struct listener *made)
{
    struct listener *l = &p->listener[number];

    free(l->rules);
    free(l->flows);
    *l = *made;
    free(made);
    l->transparent = lc_local(l->fd, &l->at) == 0 && lc_is_transparent(l->fd);
    if (l->how.flows == 0)      /* a connection reaches no datagram socket */
        lc_guard_listener(l->fd, 1);
    if ((l->how.flows > 0 && lc_flows_start(p, l) < 0)
        || lc_poll_add_listener(p, l->fd, number << 2 | KEY_LISTENER) < 0)
        lc_listener_stop(p, number);
}

void lc_listener_stop(struct lc_plane *p, uint32_t number)
{
    struct listener *l = &p->listener[number];

    if (l->fd < 0)
        return;
    if (l->how.flows == 0)
        lc_guard_listener(l->fd, 0);
    lc_poll_remove(p, l->fd);
    close(l->fd);
    l->fd = -1;
    l->held = 0;
    if (l->flows != NULL)
        lc_flows_stop(p, l);
    if (l->live == 0)
        p->over |= UINT64_C(1) << number;
}

/* Under the lock: a number that no listener has; LC_LISTENERS where there is none. */
static int a_number(struct lc_plane *p)
{
    int i;

    for (i = 0; i < p->listeners; i++)
        if (p->unused >> i & 1)
            break;
    return i;
}

int lc_plane_listen(struct lc_plane *p, int fd, const struct lc_listen *how,
                    const struct lc_rule *rules, int n)
{
    struct listener *made;
    int err = 0, number = -1;

    if (!lc_alive(p))
        return -ESRCH;
    made = calloc(1, sizeof *made);
    if (made == NULL || (made->rules = lc_rules_copy(rules, n)) == NULL) {
        free(made);
        return -ENOMEM;
    }
    made->fd = fd;
    made->how = *how;
    pthread_mutex_lock(&p->lock);
    if (p->closed)
        err = -ESHUTDOWN;
    else if ((number = a_number(p)) == LC_LISTENERS)
        err = -ENOSPC;
    else {
        struct command c = {.what = DO_LISTEN, .listener = (uint32_t)number, .with = made};
        err = lc_command(p, &c);
        if (err == 0 && number == p->listeners)
            p->listeners++;
        if (err == 0)
            p->unused &= ~(UINT64_C(1) << number);
    }
    pthread_mutex_unlock(&p->lock);
    if (err < 0) {
        free(made->rules);
        free(made);
    }
    return err < 0 ? err : number;
}

static int change(struct lc_plane *p, struct command *c)
{
    int err;

    pthread_mutex_lock(&p->lock);
    err = p->closed > 1 ? -ESHUTDOWN : c->listener >= (uint32_t)p->listeners ? -EINVAL
        : lc_command(p, c);
    pthread_mutex_unlock(&p->lock);
    return err;
}

int lc_plane_policy(struct lc_plane *p, int listener, const struct lc_rule *rules, int n)
{
    struct command c = {.what = DO_POLICY, .listener = (uint32_t)listener};
    int err;

    if (!lc_alive(p))
        return -ESRCH;
    if ((c.with = lc_rules_copy(rules, n)) == NULL)
        return -ENOMEM;
    err = change(p, &c);
    if (err < 0)
        free(c.with);
    return err;
}

int lc_plane_unlisten(struct lc_plane *p, int listener)
{
    struct command c = {.what = DO_UNLISTEN, .listener = (uint32_t)listener};

    return lc_alive(p) ? change(p, &c) : -ESRCH;
}
