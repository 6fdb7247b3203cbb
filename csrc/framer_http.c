/* Heads of HTTP/1: the start line and the order of lines (RFC 9112, 2 to 6). Line by line: each is
 * judged when it is whole, and what decides before that decides at its own byte. */
#include "framer.h"

enum { BLANKS = 4, LONGEST_METHOD = 32 };

static const uint8_t preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* What does not look like HTTP is another protocol, unless its method was HTTP's: some server would
 * take it for a request, so it is not let past the judge. */
static int no_http(struct lc_head *h, int why)
{
    if (h->marks & KNOWN_METHOD)
        return lc_head_refuse(h, why, 0);
    lc_head_refuse(h, why, 0);
    return h->state = LC_HEAD_OTHER;
}

static void know_method(struct lc_head *h, const uint8_t *m, size_t size)
{
    static const struct { const char *name; uint8_t size; unsigned flags; } known[] = {
        {"GET", 3, LC_HEAD_SAFE | LC_HEAD_IDEMPOTENT},
        {"POST", 4, 0},
        {"HEAD", 4, LC_HEAD_IS_HEAD | LC_HEAD_SAFE | LC_HEAD_IDEMPOTENT},
        {"PUT", 3, LC_HEAD_IDEMPOTENT},
        {"DELETE", 6, LC_HEAD_IDEMPOTENT},
        {"OPTIONS", 7, LC_HEAD_SAFE | LC_HEAD_IDEMPOTENT},
        {"CONNECT", 7, LC_HEAD_CONNECT},
        {"PATCH", 5, 0},
        {"TRACE", 5, LC_HEAD_SAFE | LC_HEAD_IDEMPOTENT},
    };
    size_t i;

    for (i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].size == size && lc_same(m, known[i].name, size)) {
            h->marks |= KNOWN_METHOD;
            if (memcmp(m, known[i].name, size) == 0)    /* methods are case-sensitive */
                h->flags |= known[i].flags;
            return;
        }
}

static int judge_target(struct lc_head *h, const uint8_t *bytes)
{
    const uint8_t *p = bytes + h->start[1].at, *end = p + h->start[1].size, *begin = p;

    if (h->flags & LC_HEAD_CONNECT) {
        h->form = LC_TARGET_AUTHORITY;
        h->authority = h->start[1];
        return lc_authority(bytes, h->authority, 1);
    }
    if (*p == '/') {
        h->form = LC_TARGET_ORIGIN;
        return 1;
    }
    if (*p == '*' && end - p == 1) {
        h->form = LC_TARGET_ASTERISK;
        return h->start[0].size == 7 && memcmp(bytes + h->start[0].at, "OPTIONS", 7) == 0;
    }
    while (p < end && (lc_class[*p] & (ALPHA | DIGIT) || *p == '+' || *p == '-' || *p == '.'))
        p++;
    if (p == begin || !(lc_class[*begin] & ALPHA) || end - p < 3 || memcmp(p, "://", 3) != 0)
        return 0;
    h->form = LC_TARGET_ABSOLUTE;
    begin = p += 3;
    while (p < end && *p != '/' && *p != '?')
        p++;
    h->authority = (struct lc_span){(uint32_t)(begin - bytes), (uint32_t)(p - begin)};
    return lc_authority(bytes, h->authority, 0);
}

/* The steps below answer as a head does: MORE; WHOLE: this part is, the next follows; or a verdict. */

static int version(struct lc_head *h, const uint8_t *bytes, uint32_t begin, uint32_t n)
{
    static const char shape[] = "HTTP/0.0";
    uint32_t at;

    for (at = h->seen; at < n && at < begin + 8; at++) {
        char want = shape[at - begin];

        if (want == '0' ? !(lc_class[bytes[at]] & DIGIT) : bytes[at] != want)
            return at < begin + 5 ? no_http(h, LC_BAD_VERSION)
                                  : lc_head_refuse(h, LC_BAD_VERSION, 0);
    }
    if (at < begin + 8)
        return lc_head_more(h, at);
    if (bytes[begin + 5] != '1' || bytes[begin + 7] > '1')
        return lc_head_refuse(h, LC_BAD_VERSION_UNKNOWN, 0);
    h->minor = bytes[begin + 7] - '0';
    if (h->minor == 0)
        h->flags |= LC_HEAD_OLD;
    return LC_HEAD_WHOLE;
}

/* The end of a line of text, which is at `at`. */
static int crlf(struct lc_head *h, const uint8_t *bytes, uint32_t at, uint32_t n)
{
    if (at == n)
        return lc_head_more(h, at);
    if (bytes[at] != '\r')
        return lc_head_refuse(h, LC_BAD_BYTE, 0);
    if (at + 1 == n)
        return lc_head_more(h, at);
    return bytes[at + 1] == '\n' ? LC_HEAD_WHOLE : lc_head_refuse(h, LC_BAD_BYTE, 0);
}

/* Clients have sent CRLF behind the body of a POST (RFC 9112, 2.2). */
static int skip_blanks(struct lc_head *h, const uint8_t *bytes, size_t size)
{
    while (h->size < size && bytes[h->size] == '\r') {
        int got = crlf(h, bytes, h->size, size > UINT32_MAX ? UINT32_MAX : (uint32_t)size);

        if (got != LC_HEAD_WHOLE)
            return got;
        if ((h->size += 2) > 2 * BLANKS)
            return lc_head_refuse(h, LC_BAD_BLANK, 0);
    }
    h->seen = h->size;
    return h->size < size ? LC_HEAD_WHOLE : LC_HEAD_MORE;
}

static int method(struct lc_head *h, const uint8_t *bytes, uint32_t n)
{
    uint32_t at = h->seen, begin = h->size;

    if (begin == 0 && memcmp(bytes, preface, n < 24 ? n : 24) == 0)
        return n < 24 ? lc_head_more(h, 0) : (h->state = LC_HEAD_H2);
    while (at < n && at - begin <= LONGEST_METHOD && lc_class[bytes[at]] & TOKEN)
        at++;
    if (at - begin > LONGEST_METHOD)
        return no_http(h, LC_BAD_METHOD);
    if (at == n)
        return lc_head_more(h, at);
    h->start[0] = (struct lc_span){begin, at - begin};
    know_method(h, bytes + begin, at - begin);
    if (at == begin && (bytes[at] == ' ' || bytes[at] == '\t' || bytes[at] == '\n'))
        return lc_head_refuse(h, LC_BAD_START, 0);      /* some servers skip these */
    if (at == begin || bytes[at] != ' ')
        return no_http(h, LC_BAD_METHOD);
    h->seen = at + 1;
    h->step = IN_TARGET;
    return LC_HEAD_WHOLE;
}

static int target(struct lc_head *h, const uint8_t *bytes, uint32_t n)
{
    uint32_t at = h->seen, begin = h->start[0].at + h->start[0].size + 1;

    while (at < n && lc_class[bytes[at]] & TARGET)
        at++;
    if (at == n)
        return lc_head_more(h, at);
    if (at == begin || bytes[at] != ' ')
        return no_http(h, bytes[at] == '\r' || bytes[at] == '\n' ? LC_BAD_VERSION : LC_BAD_TARGET);
    h->start[1] = (struct lc_span){begin, at - begin};
    h->seen = at + 1;
    h->step = IN_VERSION;
    return LC_HEAD_WHOLE;
}

static int request_line(struct lc_head *h, const uint8_t *bytes, uint32_t n)
{
    uint32_t begin;
    int got = LC_HEAD_WHOLE;

    if (h->step == IN_METHOD)
        got = method(h, bytes, n);
    if (got == LC_HEAD_WHOLE && h->step == IN_TARGET)
        got = target(h, bytes, n);
    if (got != LC_HEAD_WHOLE)
        return got;
    begin = h->start[1].at + h->start[1].size + 1;
    got = version(h, bytes, begin, n);
    if (got == LC_HEAD_WHOLE)
        got = crlf(h, bytes, begin + 8, n);
    if (got != LC_HEAD_WHOLE)
        return got;
    h->start[2] = (struct lc_span){begin, 8};
    h->size = h->seen = begin + 10;
    h->step = IN_FIELDS;
    return judge_target(h, bytes) ? LC_HEAD_WHOLE : lc_head_refuse(h, LC_BAD_TARGET, 0);
}

/* HTTP/1.1 SP 3DIGIT [SP reason]: servers leave the second space out with the reason. */
static int status_line(struct lc_head *h, const uint8_t *bytes, uint32_t n)
{
    uint32_t at;
    int got = version(h, bytes, 0, n);

    if (got != LC_HEAD_WHOLE)
        return got;
    for (at = 8; at < n && at < 12; at++)
        if (at == 8 ? bytes[at] != ' ' : !(lc_class[bytes[at]] & DIGIT) || bytes[9] == '0')
            return lc_head_refuse(h, LC_BAD_CODE, 0);
    if (n < 13)
        return lc_head_more(h, 8);
    if (bytes[12] != ' ' && bytes[12] != '\r')
        return lc_head_refuse(h, LC_BAD_CODE, 0);
    at = h->seen > 12 ? h->seen : 12;
    at = (uint32_t)(lc_text_end(bytes + at, bytes + n) - bytes);
    got = crlf(h, bytes, at, n);
    if (got != LC_HEAD_WHOLE)
        return got;
    h->start[0] = (struct lc_span){0, 8};
    h->start[1] = (struct lc_span){9, 3};
    h->start[2] = at == 12 ? (struct lc_span){12, 0} : (struct lc_span){13, at - 13};
    h->code = (bytes[9] - '0') * 100 + (bytes[10] - '0') * 10 + bytes[11] - '0';
    h->size = h->seen = at + 2;
    h->step = IN_FIELDS;
    return LC_HEAD_WHOLE;
}

static int field_line(struct lc_head *h, const uint8_t *bytes, uint32_t n,
                      const struct lc_limits *limits)
{
    uint32_t begin = h->size, at = (uint32_t)(lc_text_end(bytes + h->seen, bytes + n) - bytes);
    int got = crlf(h, bytes, at, n), why;

    if (got != LC_HEAD_WHOLE)
        return got;
    h->size = h->seen = at + 2;
    if (at == begin) {
        h->step = IN_END;
        return LC_HEAD_WHOLE;
    }
    if (++h->fields > limits->fields)
        return lc_head_refuse(h, LC_BAD_FIELDS, 0);
    why = lc_field_judge(h, bytes, begin, at - begin);
    return why == 0 ? LC_HEAD_WHOLE : lc_head_refuse(h, why, 0);
}

static int keeps(const struct lc_head *h)
{
    return !(h->marks & SAID_CLOSE) && (h->minor > 0 || h->marks & SAID_KEEP);
}

static int switches(const struct lc_head *h)
{
    return (h->marks & (SWITCHES | SWITCHES_NOT | SAID_UPGRADE)) == (SWITCHES | SAID_UPGRADE)
        && h->minor > 0;
}

static int whole_request(struct lc_head *h, unsigned about)
{
    int coding = (h->marks & MARK(FIELD_CODING)) != 0;
    int length = (h->marks & MARK(FIELD_LENGTH)) != 0;

    if (coding && h->minor == 0)
        return LC_BAD_CODING_OLD;
    if (coding && length)
        return LC_BAD_BOTH;
    if (h->minor > 0 && !(h->marks & MARK(FIELD_HOST)) && !(about & LC_HEAD_ANY_HOST))
        return LC_BAD_NO_HOST;
    h->body = coding ? LC_BODY_CHUNKED : length ? LC_BODY_LENGTH : LC_BODY_NONE;
    if (h->flags & LC_HEAD_CONNECT) {
        if (coding || h->length > 0)
            return LC_BAD_CONNECT_BODY;
        h->body = LC_BODY_NONE;
    } else if (switches(h)) {
        h->flags |= LC_HEAD_UPGRADE;
    }
    if (h->marks & MARK(FIELD_EXPECT) && h->minor > 0 && (coding || h->length > 0))
        h->flags |= LC_HEAD_EXPECT;
    if (keeps(h))
        h->flags |= LC_HEAD_KEEP;
    return 0;
}

static int whole_response(struct lc_head *h, unsigned about)
{
    int coding = (h->marks & MARK(FIELD_CODING)) != 0;
    int length = (h->marks & MARK(FIELD_LENGTH)) != 0;
    int tunnel = lc_tunnel(h->code, about);

    if (coding && (h->minor == 0 || about & LC_HEAD_OLD))
        return LC_BAD_CODING_OLD;
    if (coding && length)
        return LC_BAD_BOTH;
    if (h->code == 101) {
        if (!(about & LC_HEAD_UPGRADE) || !switches(h))
            return LC_BAD_SWITCH;
        h->flags |= LC_HEAD_UPGRADE;
    }
    if (tunnel || lc_bodiless(h->code) || about & LC_HEAD_IS_HEAD)
        h->body = LC_BODY_NONE;
    else
        h->body = coding ? LC_BODY_CHUNKED : length ? LC_BODY_LENGTH : LC_BODY_CLOSE;
    if (keeps(h) && !tunnel && h->body != LC_BODY_CLOSE)
        h->flags |= LC_HEAD_KEEP;
    h->flags |= about & (LC_HEAD_IS_HEAD | LC_HEAD_CONNECT);
    return 0;
}

static int judge(int request, const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                 unsigned about, struct lc_head *h)
{
    int got = LC_HEAD_WHOLE, why;

    if (request && h->step == IN_METHOD && h->seen == h->size)
        got = skip_blanks(h, bytes, size);
    while (got == LC_HEAD_WHOLE && h->step != IN_END) {
        uint64_t most = (uint64_t)h->size + limits->line + 2;
        int start = h->step != IN_FIELDS, long_head = most > limits->head;
        uint32_t n;

        if (long_head)
            most = limits->head;
        n = size < most ? (uint32_t)size : (uint32_t)most;
        got = !start ? field_line(h, bytes, n, limits)
            : request ? request_line(h, bytes, n) : status_line(h, bytes, n);
        if (got == LC_HEAD_MORE && n == most)
            return lc_head_refuse(h, long_head ? LC_BAD_LONG_HEAD : LC_BAD_LONG_LINE,
                                  start && !long_head ? 414 : 0);
    }
    if (got != LC_HEAD_WHOLE)
        return got;
    why = request ? whole_request(h, about) : whole_response(h, about);
    return why == 0 ? (h->state = LC_HEAD_WHOLE) : lc_head_refuse(h, why, 0);
}

int lc_http_head(int framer, const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                 unsigned about, struct lc_head *h)
{
    int request = framer == LC_FRAMER_HTTP_REQUEST;

    judge(request, bytes, size, limits, about, h);
    if (h->status > 0 && !request)
        h->status = 502;
    return h->state;
}

int lc_head_find(const uint8_t *head, const struct lc_head *h, const char *name, size_t size,
                 struct lc_span *out, int max)
{
    uint32_t at = lc_first_field(h);
    int n = 0;

    while (at + 2 < h->size) {
        size_t line = lc_line(head, h, at);

        if (line > size && head[at + size] == ':' && lc_same(head + at, name, size)) {
            if (n < max)
                out[n] = lc_value(head, at, size, line);
            n++;
        }
        at += (uint32_t)line + 2;
    }
    return n;
}

int lc_head_names(const struct lc_head *h)
{
    return (h->marks & SAID_MORE) != 0;
}

int lc_head_next(const uint8_t *head, const struct lc_head *h, const char *names, int n,
                 uint32_t *at, struct lc_span *value)
{
    uint32_t next = *at == 0 ? lc_first_field(h) : *at, begin;
    int i;

    while ((begin = next) + 2 < h->size) {
        size_t line = lc_line(head, h, begin), size;
        const char *name = names;

        next += (uint32_t)line + 2;
        for (i = 0; i < n; i++, name += size + 1) {
            size = (uint8_t)*name;
            if (line > size && head[begin + size] == ':' && lc_same(head + begin, name + 1, size)) {
                *value = lc_value(head, begin, size, line);
                *at = next;
                return i;
            }
        }
    }
    return -1;
}
