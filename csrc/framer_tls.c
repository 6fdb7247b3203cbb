/* A whole ClientHello, over as many records as it takes (RFC 8446, 5.1; RFC 5246, 6.2.1). */
#include "framer.h"

enum { HANDSHAKE = 22, CLIENT_HELLO = 1, RECORD = 5, LONGEST_RECORD = 1 << 14 };

/* `size` is where the record begins that is looked at, `fields` how many are behind, `step` how
 * many bytes of the message they brought, `marks` the first four of those. */
static int record(struct lc_head *h, const uint8_t *r, size_t size, const struct lc_limits *limits)
{
    static const uint8_t first[] = {HANDSHAKE, 3};
    uint32_t payload, i;

    for (i = 0; i < 3 && i < size; i++)
        if (i < 2 ? r[i] != first[i] : r[i] > 4) {
            lc_head_refuse(h, LC_BAD_RECORD, 0);
            return h->state = h->fields == 0 ? LC_HEAD_OTHER : LC_HEAD_REFUSED;
        }
    if (size < RECORD)
        return LC_HEAD_MORE;
    payload = (uint32_t)(r[3] << 8 | r[4]);
    if (payload == 0 || payload > LONGEST_RECORD || h->size + RECORD + payload > limits->head)
        return lc_head_refuse(h, LC_BAD_RECORD, 0);
    for (i = 0; i < payload && h->step + i < 4 && RECORD + i < size; i++) {
        if (h->step + i == 0 && r[RECORD] != CLIENT_HELLO) {
            lc_head_refuse(h, LC_BAD_RECORD, 0);
            return h->state = LC_HEAD_OTHER;
        }
    }
    if (size < RECORD + payload)
        return LC_HEAD_MORE;
    for (i = 0; i < payload && h->step + i < 4; i++)
        h->marks = h->marks << 8 | r[RECORD + i];
    h->step += payload;
    h->size += RECORD + payload;
    h->fields++;
    return LC_HEAD_WHOLE;
}

int lc_tls_hello(const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                 struct lc_head *h)
{
    for (;;) {
        int got = record(h, bytes + h->size, size - h->size, limits);

        if (got == LC_HEAD_MORE)
            return lc_head_more(h, (uint32_t)size);
        if (got != LC_HEAD_WHOLE)
            return got;
        if (h->step < 4)
            continue;
        h->length = 4 + (h->marks & 0xffffff);
        if (h->length > limits->head)
            return lc_head_refuse(h, LC_BAD_FRAME, 0);
        if (h->step >= h->length)
            return h->state = LC_HEAD_WHOLE;
    }
}
