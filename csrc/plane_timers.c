/* Deadlines: a binary heap, one place for each relay that has any, so that the thread wakes when
 * the first is due and never else. Activity does not move an entry: when it comes up, the relay
 * says how much later it really is due. */
#include "plane.h"

#include <stdlib.h>

static void put(struct lc_plane *p, uint32_t place, struct deadline d)
{
    p->heap[place - 1] = d;
    lc_slot(p, d.slot)->place = place;
}

static void up(struct lc_plane *p, uint32_t place, struct deadline d)
{
    while (place > 1 && p->heap[place / 2 - 1].due > d.due) {
        put(p, place, p->heap[place / 2 - 1]);
        place /= 2;
    }
    put(p, place, d);
}

static void down(struct lc_plane *p, uint32_t place, struct deadline d)
{
    for (;;) {
        uint32_t child = place * 2;

        if (child > p->n_heap)
            break;
        if (child < p->n_heap && p->heap[child].due < p->heap[child - 1].due)
            child++;
        if (p->heap[child - 1].due >= d.due)
            break;
        put(p, place, p->heap[child - 1]);
        place = child;
    }
    put(p, place, d);
}

void lc_timer_clear(struct lc_plane *p, struct relay *r)
{
    uint32_t place = r->place;
    struct deadline last;

    if (place == 0)
        return;
    r->place = 0;
    last = p->heap[--p->n_heap];
    if (place > p->n_heap)
        return;
    if (place > 1 && p->heap[place / 2 - 1].due > last.due)
        up(p, place, last);
    else
        down(p, place, last);
}

int lc_timer_set(struct lc_plane *p, struct relay *r, uint64_t due)
{
    struct deadline d = {due, r->slot};

    lc_timer_clear(p, r);
    if (p->n_heap == p->heap_room) {
        uint32_t room = p->heap_room == 0 ? 64 : p->heap_room * 2;
        struct deadline *more = realloc(p->heap, room * sizeof *more);

        if (more == NULL)
            return -ENOMEM;
        p->heap = more;
        p->heap_room = room;
    }
    up(p, ++p->n_heap, d);
    return 0;
}

struct relay *lc_timer_due(struct lc_plane *p)
{
    struct relay *r;

    if (p->n_heap == 0 || p->heap[0].due > p->now)
        return NULL;
    r = lc_slot(p, p->heap[0].slot);
    lc_timer_clear(p, r);
    return r;
}
