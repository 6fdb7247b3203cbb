/* A framed read: what comes on one connection is read until a framer has its verdict. */
#include "plane_http.h"

#include <stdlib.h>

struct framing {
    struct lc_framing how;
    size_t room;
    struct lc_framed *read;
};

void lc_framed_free(struct lc_framed *framed)
{
    free(framed);
}

struct lc_framed *lc_framed_leave(struct relay *r)
{
    struct lc_framed *read = r->framing != NULL ? r->framing->read : NULL;

    free(r->framing);
    r->framing = NULL;
    return read;
}

static int add(struct framing *f, const uint8_t *bytes, size_t size)
{
    size_t room = f->room == 0 ? 2048 : f->room, filled = f->read != NULL ? f->read->size : 0;
    struct lc_framed *more;

    while (room < filled + size)
        room *= 2;
    if (room != f->room) {
        if ((more = realloc(f->read, sizeof *more + room)) == NULL)
            return -ENOMEM;
        if (f->read == NULL)
            memset(more, 0, sizeof *more);
        f->read = more;
        f->room = room;
    }
    if (size > 0)
        memcpy(f->read->bytes + filled, bytes, size);
    f->read->size = filled + size;
    return 0;
}

static void judge(struct lc_plane *p, struct relay *r)
{
    const struct framing *f = r->framing;

    if (lc_frame_head(f->how.framer, f->read->bytes, f->read->size, &f->how.limits, f->how.about,
                      &f->read->head) != LC_HEAD_MORE)
        lc_framed_over(p, r, LC_FRAMED);
}

/* The connection is given back, with what was read of it. */
void lc_framed_over(struct lc_plane *p, struct relay *r, int end)
{
    r->framing->read->end = end;
    atomic_store_explicit(&r->count[0], r->framing->read->size, memory_order_relaxed);
    lc_relay_end(p, r, LC_FRAMED, 0, 0);
}

void lc_framed_run(struct lc_plane *p, struct relay *r)
{
    while (r->state == RELAYING && r->side[0] & READABLE) {
        ssize_t n = lc_receive(r, 0, p->buffer, LC_COPY);

        if (n == -EAGAIN)
            break;
        if (n == 0) {
            lc_framed_over(p, r, LC_END_EOF);
        } else if (n < 0 || (n > 0 && add(r->framing, p->buffer, (size_t)n) < 0)) {
            lc_relay_broke(p, r, 0, n < 0 ? (int)-n : ENOMEM);
        } else {
            judge(p, r);
        }
    }
}

void lc_framed_start(struct lc_plane *p, struct relay *r)
{
    int64_t timeout = r->framing->how.timeout;
    int err;

    r->state = RELAYING;
    r->side[0] = EXACT;         /* whatever it is: one more recv, and no question */
    err = lc_poll_add(p, LC_GET(r->fd[0]), lc_key(r, 0));
    if (err == 0 && timeout >= 0)
        err = lc_timer_set(p, r, p->now + (uint64_t)timeout);
    if (err < 0)
        lc_relay_end(p, r, LC_END_ERROR, -err, 1);
    else if (r->framing->read->size > 0)
        judge(p, r);
}

static int fill(struct relay *r, int fd, const struct lc_framing *how)
{
    if ((r->framing = calloc(1, sizeof *r->framing)) == NULL)
        return -ENOMEM;
    r->framing->how = *how;
    atomic_store_explicit(&r->fd[0], fd, memory_order_relaxed);
    return add(r->framing, how->prefix, how->prefix_size);
}

int lc_plane_framed(struct lc_plane *p, int fd, const struct lc_framing *how, uint64_t *id)
{
    struct relay *r = NULL;
    int err;

    if (!lc_alive(p))
        return -ESRCH;
    if (how->framer < 0 || how->framer >= LC_FRAMERS)
        return -EINVAL;
    pthread_mutex_lock(&p->lock);
    err = p->closed ? -ESHUTDOWN : lc_reserve(p, 1);
    if (err == 0 && (r = lc_take(p)) == NULL)
        err = -ENOMEM;
    if (err == 0 && (err = fill(r, fd, how)) < 0) {
        free(lc_framed_leave(r));
        lc_give(p, r);
    }
    if (err == 0) {
        struct command start = {.what = DO_START, .id = lc_id(r)};

        *id = start.id;
        err = lc_command(p, &start);
    }
    pthread_mutex_unlock(&p->lock);
    return err;
}
