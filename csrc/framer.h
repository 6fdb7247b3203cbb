/* What the framers share. Pure functions: no I/O, no allocation, nothing kept. */
#ifndef LC_FRAMER_H
#define LC_FRAMER_H

#include "shim.h"

#include <string.h>

/* What a byte may be part of. */
enum {
    TOKEN = 1,          /* RFC 9110, 5.6.2 */
    TARGET = 2,         /* visible ASCII but '#', which no request sends */
    NAME = 4,           /* a host's name: letters, digits, - . _ ~ */
    DIGIT = 8,
    HEX = 16,
    ALPHA = 32
};
extern const uint8_t lc_class[256];

/* The fields that concern this hop, or the framing. A head's `marks` are bits 1 << these. */
enum {
    FIELD_ANY, FIELD_HOST, FIELD_CONNECTION, FIELD_LENGTH, FIELD_CODING, FIELD_EXPECT,
    FIELD_UPGRADE, FIELD_KEEP_ALIVE, FIELD_PROXY_CONNECTION, FIELD_TE, FIELD_AUTHENTICATE,
    FIELD_AUTHORIZATION, FIELD_TRAP, FIELD_CREDENTIALS, FIELD_DATE, FIELDS
};
#define MARK(field) (1u << (field))

/* Fields for all hops, which Connection may name away. */
static inline int lc_for_all(int known)
{
    return known == FIELD_ANY || known == FIELD_CREDENTIALS || known == FIELD_DATE;
}

/* Marks beyond the names: what Connection said, and what the method is. */
enum {
    SAID_CLOSE = 1 << 16, SAID_KEEP = 1 << 17, SAID_UPGRADE = 1 << 18, SAID_MORE = 1 << 19,
    SWITCHES = 1 << 20,         /* Upgrade names a protocol */
    SWITCHES_NOT = 1 << 21,     /* and one that nobody is let switch to */
    KNOWN_METHOD = 1 << 22,     /* in any case: whatever follows was meant as HTTP */
    OPTION = 1 << 24            /* the bits from here on count Connection's members, empty ones too */
};

enum { OPTIONS = 32 };          /* that Connection may have */

/* Steps of a head. */
enum { IN_METHOD, IN_TARGET, IN_VERSION, IN_FIELDS, IN_END };

static inline int lc_lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

static inline int lc_same(const uint8_t *a, const char *b, size_t size)
{
    for (; size > 0; size--)
        if (lc_lower(*a++) != lc_lower((uint8_t)*b++))
            return 0;
    return 1;
}

/* The first byte from `p` on that is no text: below 0x20, but for the tab, or 0x7f. */
static inline const uint8_t *lc_text_end(const uint8_t *p, const uint8_t *end)
{
    const uint64_t ones = 0x0101010101010101u, high = ones * 0x80;

    for (;;) {
        uint64_t w, low, del;

        while (end - p >= 8) {
            memcpy(&w, p, 8);
            del = w ^ ones * 0x7f;
            low = (((w - ones * 0x20) & ~w) | ((del - ones) & ~del)) & high;
            if (low != 0) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
                p += __builtin_ctzll(low) / 8;
#endif
                break;
            }
            p += 8;
        }
        while (p < end && ((*p >= 0x20 && *p != 0x7f)))
            p++;
        if (p == end || *p != '\t')
            return p;
        p++;
    }
}

/* framer_fields.c */
int lc_field_known(const uint8_t *name, size_t size);       /* FIELD_... */
/* A line without its end: the name's size, and where its value is. Answers 0 or LC_BAD_... */
int lc_field_split(const uint8_t *line, size_t size, size_t *name, struct lc_span *value);
/* The same line of a head, at `at`: what it means for the head. */
int lc_field_judge(struct lc_head *h, const uint8_t *bytes, uint32_t at, size_t size);
/* The next of a comma list's members in [*at, end): its span; 0: no more. */
int lc_list_next(const uint8_t *bytes, size_t *at, size_t end, struct lc_span *member);
/* host[:port]; with `wants_port` not without one. */
int lc_authority(const uint8_t *bytes, struct lc_span where, int wants_port);
int lc_list_has(const char *list, size_t size, const uint8_t *name, size_t name_size);

/* framer_http.c */
int lc_http_head(int framer, const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                 unsigned about, struct lc_head *h);
int lc_head_more(struct lc_head *h, uint32_t seen);
int lc_head_refuse(struct lc_head *h, int why, int status);

/* framer_tls.c */
int lc_tls_hello(const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                 struct lc_head *h);

/* Of a head that was judged: where its fields begin; the line at `at`, without its end; a value. */
static inline uint32_t lc_first_field(const struct lc_head *h)
{
    return h->start[2].at + h->start[2].size + 2;
}

static inline size_t lc_line(const uint8_t *head, const struct lc_head *h, uint32_t at)
{
    return (size_t)((const uint8_t *)memchr(head + at, '\r', h->size - at) - (head + at));
}

static inline struct lc_span lc_value(const uint8_t *head, uint32_t at, size_t name, size_t line)
{
    uint32_t from = at + (uint32_t)name + 1, to = at + (uint32_t)line;

    while (from < to && (head[from] == ' ' || head[from] == '\t'))
        from++;
    while (to > from && (head[to - 1] == ' ' || head[to - 1] == '\t'))
        to--;
    return (struct lc_span){from, to - from};
}

/* Answers behind which there is no HTTP. `about`: flags of the request. */
static inline int lc_tunnel(int code, unsigned about)
{
    return code == 101 || (about & LC_HEAD_CONNECT && code / 100 == 2);
}

/* Answers without a body, whatever their fields say. */
static inline int lc_bodiless(int code)
{
    return code < 200 || code == 204 || code == 304;
}

#endif
