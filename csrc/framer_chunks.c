/* A chunked body (RFC 9112, 7.1), judged byte by byte and rewritten in place. */
#include "framer.h"

enum { SIZE, EXTENSION, SIZE_LF, DATA, DATA_CR, DATA_LF, TRAILERS, ENDED };
enum { DIGITS = 16, LONGEST_LINE = 256 };

static int refuse(struct lc_chunks *c, int why)
{
    c->why = (uint8_t)why;
    return LC_HEAD_REFUSED;
}

static int hex(uint8_t c)
{
    return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

/* A digit of the size. Of several leading zeros one is kept: some senders pad. */
static int digit(struct lc_chunks *c, uint8_t byte, uint8_t *out, size_t *kept)
{
    if (++c->line > DIGITS || c->size >> 59)
        return refuse(c, LC_BAD_CHUNK_SIZE);
    if (c->line == 1 || c->size > 0 || byte != '0')
        out[(*kept)++] = byte;
    c->size = c->size << 4 | (uint64_t)hex(byte);
    return LC_HEAD_MORE;
}

/* A byte outside of the data and the trailers. */
static int step(struct lc_chunks *c, uint8_t byte, uint8_t *out, size_t *kept)
{
    switch (c->step) {
    case SIZE:
        if (lc_class[byte] & HEX)
            return digit(c, byte, out, kept);
        if (c->line == 0 || (byte != '\r' && byte != ';'))
            return refuse(c, LC_BAD_CHUNK_SIZE);
        c->step = byte == '\r' ? SIZE_LF : EXTENSION;
        break;
    case EXTENSION:
        if (byte == '\r')
            c->step = SIZE_LF;
        else if (++c->line > LONGEST_LINE || (byte < 0x20 && byte != '\t') || byte == 0x7f)
            return refuse(c, LC_BAD_CHUNK_LINE);
        break;
    case SIZE_LF:
        if (byte != '\n')
            return refuse(c, LC_BAD_CHUNK_LINE);
        c->line = 0;
        c->left = c->size;
        c->size = 0;
        c->step = c->left > 0 ? DATA : TRAILERS;
        break;
    case DATA_CR:
        if (byte != '\r')
            return refuse(c, LC_BAD_CHUNK_END);
        c->step = DATA_LF;
        break;
    default:
        if (byte != '\n')
            return refuse(c, LC_BAD_CHUNK_END);
        c->step = SIZE;
    }
    if (c->step != EXTENSION)
        out[(*kept)++] = byte;
    return LC_HEAD_MORE;
}

/* A whole line of the trailers: it keeps its place or moves down. Of the space behind the colon one
 * is kept, and none is added, for which there is no room. */
static int trailer(struct lc_chunks *c, const struct lc_limits *limits, const uint8_t *line,
                   size_t size, uint8_t *out, size_t *kept)
{
    struct lc_span value = {0, 0};
    uint8_t *to = out + *kept;
    size_t name = 0;
    int why = 0, known;

    if (size > 0) {
        if (++c->fields > limits->fields)
            return refuse(c, LC_BAD_FIELDS);
        why = lc_field_split(line, size, &name, &value);
        known = lc_field_known(line, name);
        if (why == 0 && known != FIELD_ANY && known != FIELD_DATE)
            why = LC_BAD_TRAILER;
        if (why != 0)
            return refuse(c, why);
        memmove(to, line, name + 1);
        to += name + 1;
        if (value.at > name + 1)
            *to++ = ' ';
        memmove(to, line + value.at, value.size);
        to += value.size;
    }
    if (size > 0 && c->bare)
        return LC_HEAD_MORE;
    *to++ = '\r';
    *to++ = '\n';
    *kept = (size_t)(to - out);
    if (size > 0)
        return LC_HEAD_MORE;
    c->step = ENDED;
    return LC_HEAD_WHOLE;
}

/* What begins at `at`, up to the end of its line or of what there is. */
static int trailers(struct lc_chunks *c, const struct lc_limits *limits, uint8_t *bytes,
                    size_t size, size_t *at, size_t *kept)
{
    const uint8_t *line = bytes + *at, *end;
    size_t most = (size_t)limits->line + 2, left = limits->head - c->trailers, n;
    int why = most <= left ? LC_BAD_LONG_LINE : LC_BAD_LONG_HEAD;

    most = most < left ? most : left;
    n = size - *at < most ? size - *at : most;
    end = lc_text_end(line + c->line, line + n);
    c->line = (uint32_t)(end - line);
    if (c->line + 1 < n || (c->line < n && *end != '\r')) {
        if (end[0] != '\r' || end[1] != '\n')
            return refuse(c, LC_BAD_BYTE);
        n = c->line;
        c->line = 0;
        c->trailers += (uint32_t)n + 2;
        *at += n + 2;
        return trailer(c, limits, line, n, bytes, kept);
    }
    return n == most ? refuse(c, why) : LC_HEAD_MORE;
}

int lc_chunks_walk(struct lc_chunks *c, const struct lc_limits *limits, uint8_t *bytes, size_t size,
                   size_t *used, size_t *kept)
{
    int got = c->why ? LC_HEAD_REFUSED : c->step == ENDED ? LC_HEAD_WHOLE : LC_HEAD_MORE;
    size_t at = 0;

    *used = *kept = 0;
    while (got == LC_HEAD_MORE && at < size) {
        if (c->step == DATA && c->left > 0) {
            size_t n = size - at < c->left ? size - at : (size_t)c->left;

            if (*kept != at)
                memmove(bytes + *kept, bytes + at, n);
            *kept += n;
            c->left -= n;
            c->data += n;
            at += n;
        } else if (c->step == TRAILERS) {
            size_t began = at;

            got = trailers(c, limits, bytes, size, &at, kept);
            if (at == began)
                break;
        } else {
            if (c->step == DATA)
                c->step = DATA_CR;
            got = step(c, bytes[at++], bytes, kept);
        }
    }
    *used = at;
    return got;
}
