/* The framers under a fuzzer: libFuzzer, or mutate.c where there is none. Four bytes say what is done
 * with the rest; run.py writes the corpus of tests/vectors/http so.
 *
 * What must hold: no byte is read or written out of bounds (every buffer is of exactly its size),
 * bytes split anywhere are judged as they are whole, and what is written is judged as what was read.
 */
#include "shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CHUNKED = LC_FRAMERS, WAYS };

#define MUST(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
            abort(); \
        } \
    } while (0)

static const struct lc_limits wide = {16384, 65536, 256}, narrow = {40, 90, 4};

static uint8_t *copy(const uint8_t *bytes, size_t size)
{
    uint8_t *to = calloc(size, 1);

    MUST(to != NULL || size == 0);
    if (size > 0)
        memcpy(to, bytes, size);
    return to;
}

static int judge(int framer, const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                 unsigned about, struct lc_head *h)
{
    uint8_t *exact = copy(bytes, size);
    int state = lc_frame_head(framer, exact, size, limits, about, h);

    MUST(state == h->state);
    free(exact);
    return state;
}

/* Sizes of pieces: short ones, and now and then a long one. */
static size_t piece(unsigned *seed, size_t left)
{
    size_t n;

    *seed = *seed * 1103515245 + 12345;
    n = *seed >> 16 & 7 ? 1 + (*seed >> 20 & 3) : 1 + (*seed >> 20 & 63);
    return n < left ? n : left;
}

static void same(const struct lc_head *a, const struct lc_head *b)
{
    MUST(a->state == b->state);
    MUST(a->why == b->why && a->status == b->status);
    if (a->state != LC_HEAD_WHOLE)
        return;
    MUST(a->body == b->body && a->code == b->code && a->minor == b->minor && a->form == b->form);
    MUST(a->flags == b->flags && a->length == b->length && a->fields == b->fields);
    MUST(a->size == b->size && memcmp(a->start, b->start, sizeof a->start) == 0);
    MUST(memcmp(&a->authority, &b->authority, 2 * sizeof a->host) == 0);
}

static void inside(struct lc_span span, const struct lc_head *h)
{
    MUST(span.at <= h->size && span.size <= h->size - span.at);
}

static void written(int framer, unsigned about, unsigned what, const uint8_t *bytes,
                    const struct lc_head *h)
{
    static const char field[] = "X-Added: here\r\n";
    struct lc_edit edit = {.drop = "x-a,accept", .drop_size = 10, .what = what & 15};
    struct lc_head again = {.state = 0};
    struct lc_span found[2];
    uint8_t *head = copy(bytes, h->size), *out;
    size_t room;
    int n;

    edit.append = (const uint8_t *)field;
    edit.append_size = sizeof field - 1;
    room = lc_edit_room(h, &edit);
    out = malloc(room);
    MUST(out != NULL);
    n = lc_head_edit(head, h, &edit, out, room);
    MUST(n > 0 && (size_t)n <= room);
    MUST(judge(framer, out, (size_t)n, &wide, about, &again) == LC_HEAD_WHOLE);
    MUST(again.size == (uint32_t)n && again.body == h->body && again.code == h->code);
    MUST(again.form == h->form && (h->body != LC_BODY_LENGTH || again.length == h->length));
    MUST(((again.flags ^ h->flags) & (LC_HEAD_IS_HEAD | LC_HEAD_CONNECT)) == 0);
    MUST(lc_head_find(out, &again, "x-added", 7, found, 2) >= 1);
    MUST(lc_head_find(out, &again, "accept", 6, found, 2) == 0);
    MUST(lc_head_find(out, &again, "keep-alive", 10, found, 2) == 0);
    free(out);
    free(head);
}

static void head(int framer, const uint8_t *how, const uint8_t *bytes, size_t size)
{
    const struct lc_limits *limits = how[1] & 1 ? &narrow : &wide;
    unsigned about = how[1] & (LC_HEAD_OLD | LC_HEAD_UPGRADE | LC_HEAD_CONNECT | LC_HEAD_IS_HEAD);
    unsigned seed = how[2];
    struct lc_head whole = {.state = 0}, pieces = {.state = 0};
    size_t at = 0;
    int i;

    judge(framer, bytes, size, limits, about, &whole);
    while (at < size && pieces.state == LC_HEAD_MORE) {
        at += piece(&seed, size - at);
        judge(framer, bytes, at, limits, about, &pieces);
    }
    same(&whole, &pieces);
    if (whole.state != LC_HEAD_WHOLE)
        return;
    MUST(whole.size <= size && whole.size <= limits->head);
    if (framer > LC_FRAMER_HTTP_RESPONSE)
        return;
    for (i = 0; i < 3; i++)
        inside(whole.start[i], &whole);
    inside(whole.authority, &whole);
    inside(whole.host, &whole);
    MUST(whole.fields <= limits->fields);
    written(framer, about, how[3], bytes, &whole);
}

struct output { uint8_t *bytes; size_t size, used; int state, why; };

/* The body in pieces, what is left over given again; cut 0: in one. */
static struct output walk(const struct lc_limits *limits, unsigned cut, const uint8_t *bytes,
                          size_t size)
{
    struct output out = {.bytes = malloc(size + 1)};
    struct lc_chunks c = {.left = 0};
    size_t at = 0, end = 0;

    MUST(out.bytes != NULL);
    while (end < size && out.state == LC_HEAD_MORE) {
        size_t used, kept;
        uint8_t *exact;

        end += cut ? piece(&cut, size - end) : size - end;
        exact = copy(bytes + at, end - at);
        out.state = lc_chunks_walk(&c, limits, exact, end - at, &used, &kept);
        MUST(kept <= used && used <= end - at);
        memcpy(out.bytes + out.size, exact, kept);
        out.size += kept;
        at += used;
        free(exact);
    }
    out.used = at;
    out.why = c.why;
    return out;
}

static void chunks(const uint8_t *how, const uint8_t *bytes, size_t size)
{
    const struct lc_limits *limits = how[1] & 1 ? &narrow : &wide;
    struct output whole = walk(limits, 0, bytes, size), again;
    struct output pieces = walk(limits, 1u + how[2], bytes, size);

    MUST(whole.state == pieces.state && whole.why == pieces.why && whole.size == pieces.size);
    MUST(memcmp(whole.bytes, pieces.bytes, whole.size) == 0);
    if (whole.state == LC_HEAD_WHOLE) {
        MUST(whole.used == pieces.used);
        again = walk(&wide, 1u + how[3], whole.bytes, whole.size);
        MUST(again.state == LC_HEAD_WHOLE && again.size == whole.size);
        MUST(memcmp(again.bytes, whole.bytes, whole.size) == 0);
        free(again.bytes);
    }
    free(whole.bytes);
    free(pieces.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4 || size > 8192)
        return 0;
    if (data[0] % WAYS == CHUNKED)
        chunks(data, data + 4, size - 4);
    else
        head(data[0] % WAYS, data, data + 4, size - 4);
    return 0;
}
