/* A head written anew, for the next hop, out of what was judged. */
#include "framer.h"

#include <errno.h>

#define PUT(literal) put(out, literal, sizeof literal - 1)

enum {
    /* of this hop, and written as judged or told */
    OURS = MARK(FIELD_CONNECTION) | MARK(FIELD_LENGTH) | MARK(FIELD_CODING) | MARK(FIELD_UPGRADE)
         | MARK(FIELD_KEEP_ALIVE) | MARK(FIELD_PROXY_CONNECTION) | MARK(FIELD_TE)
         | MARK(FIELD_EXPECT)
};

static const struct lc_limits unlimited = {1 << 30, 1 << 30, 1 << 30};

static uint8_t *put(uint8_t *out, const void *bytes, size_t size)
{
    if (size > 0)       /* of nothing there may be no address */
        memcpy(out, bytes, size);
    return out + size;
}

static uint8_t *put_number(uint8_t *out, uint64_t number)
{
    uint8_t digits[20];
    size_t at = sizeof digits;

    do
        digits[--at] = (uint8_t)('0' + number % 10);
    while ((number /= 10) > 0);
    return put(out, digits + at, sizeof digits - at);
}

static uint8_t *put_span(uint8_t *out, const uint8_t *bytes, struct lc_span span)
{
    return put(out, bytes + span.at, span.size);
}

/* A start line alone, judged. */
static int start_line(const struct lc_head *h, const struct lc_edit *edit, struct lc_head *out)
{
    const unsigned same = LC_HEAD_IS_HEAD | LC_HEAD_CONNECT;
    int framer = h->code > 0 ? LC_FRAMER_HTTP_RESPONSE : LC_FRAMER_HTTP_REQUEST;

    memset(out, 0, sizeof *out);
    if (edit->start_size > unlimited.line
        || lc_http_head(framer, edit->start, edit->start_size, &unlimited, 0, out) != LC_HEAD_MORE
        || out->step != IN_FIELDS || out->size != edit->start_size
        || lc_first_field(out) != out->size || out->start[0].at > 0)
        return -EINVAL;
    if (h->code > 0 && (lc_bodiless(h->code) || lc_bodiless(out->code)))
        return out->code == h->code ? 0 : -EINVAL;
    if (h->code > 0)
        return lc_tunnel(h->code, h->flags) == lc_tunnel(out->code, h->flags) ? 0 : -EINVAL;
    return ((out->flags ^ h->flags) & same) == 0 ? 0 : -EINVAL;
}

static int dropped(const struct lc_edit *edit, const uint8_t *name, size_t size)
{
    return edit->drop_size > 0 && lc_list_has(edit->drop, edit->drop_size, name, size);
}

static int host_dropped(const struct lc_edit *edit)
{
    return dropped(edit, (const uint8_t *)"host", 4);
}

/* The marks of what is appended, or -EINVAL. `start`: the start line in the place of h's, or h. */
static int appended(const struct lc_head *h, const struct lc_head *start,
                    const struct lc_edit *edit)
{
    struct lc_head a = {.step = IN_FIELDS, .code = h->code};
    int hosts;

    if (edit->append_size > 0
        && (edit->append_size > unlimited.line
            || lc_http_head(LC_FRAMER_HTTP_REQUEST, edit->append, edit->append_size, &unlimited, 0,
                            &a) != LC_HEAD_MORE
            || a.size != edit->append_size || a.marks & OURS))
        return -EINVAL;
    if (h->code > 0)
        return (int)a.marks;
    hosts = (a.marks & MARK(FIELD_HOST)) != 0;
    if ((h->marks & MARK(FIELD_HOST) || h->authority.size + start->authority.size > 0)
        && !host_dropped(edit))
        hosts++;
    return hosts > 1 || (hosts == 0 && h->minor > 0) ? -EINVAL : (int)a.marks;
}

/* Judges what is added: its marks, or -EINVAL; *start: the start line in the place of h's, if there is
 * one. */
static int check(const struct lc_head *h, const struct lc_edit *edit, struct lc_head *start)
{
    if (h->state != LC_HEAD_WHOLE || (edit->start != NULL && start_line(h, edit, start) < 0))
        return -EINVAL;
    return appended(h, edit->start != NULL ? start : h, edit);
}

int lc_edit_check(const struct lc_head *h, const struct lc_edit *edit)
{
    struct lc_head start;

    return check(h, edit, &start) < 0 ? -EINVAL : 0;
}

size_t lc_edit_room(const struct lc_head *h, const struct lc_edit *edit)
{
    return (size_t)h->size + h->authority.size + h->fields + edit->start_size + edit->append_size
        + (edit->date != NULL ? strlen(edit->date) : 0) + 192;
}

/* What Connection named. */
struct options {
    int n;
    struct lc_span span[OPTIONS];
};

static void collect(const uint8_t *head, const struct lc_head *h, struct options *named)
{
    struct lc_span field[OPTIONS], member;
    int n = lc_head_find(head, h, "connection", 10, field, OPTIONS), i;

    for (i = 0; i < n && i < OPTIONS; i++) {
        size_t at = field[i].at, end = at + field[i].size;

        while (named->n < OPTIONS && lc_list_next(head, &at, end, &member))
            if (member.size > 0)
                named->span[named->n++] = member;
    }
}

static int is_named(const uint8_t *head, const struct options *named, const uint8_t *name,
                    size_t size)
{
    int i;

    for (i = 0; i < named->n; i++)
        if (named->span[i].size == size
            && lc_same(name, (const char *)head + named->span[i].at, size))
            return 1;
    return 0;
}

static int upgrades(const struct lc_head *h, const struct lc_edit *edit)
{
    return h->flags & LC_HEAD_UPGRADE && (edit->what & LC_EDIT_UPGRADE || h->code == 101);
}

/* Whether a field goes on to the next hop. */
static int goes_on(const struct lc_head *h, const struct lc_edit *edit, int known, int has_host)
{
    switch (known) {
    case FIELD_UPGRADE:
        return upgrades(h, edit);
    case FIELD_EXPECT:
        return (h->flags & LC_HEAD_EXPECT) != 0;
    case FIELD_AUTHENTICATE:
    case FIELD_AUTHORIZATION:
        return (edit->what & LC_EDIT_PROXY) != 0;
    case FIELD_HOST:
        return !has_host;
    default:
        return !(OURS & MARK(known));
    }
}

/* Written as we write it: one space behind the colon, none at the end. */
static int is_plain(const uint8_t *line, size_t name, size_t size)
{
    return size > name + 1 && line[name + 1] == ' '
        && (size == name + 2 || (line[name + 2] != ' ' && line[name + 2] != '\t'
                                 && line[size - 1] != ' ' && line[size - 1] != '\t'));
}

/* Lines that go on as they came go together: `run` is where they begin. */
static uint8_t *put_fields(uint8_t *out, const uint8_t *head, const struct lc_head *h,
                           const struct lc_edit *edit, int has_host)
{
    struct options named;
    uint32_t at = lc_first_field(h), run = at;

    named.n = 0;
    if (h->marks & SAID_MORE)
        collect(head, h, &named);
    while (at + 2 < h->size) {
        const uint8_t *name = head + at;
        size_t line = lc_line(head, h, at);
        size_t size = (size_t)((const uint8_t *)memchr(name, ':', line) - name);
        uint32_t next = at + (uint32_t)line + 2;
        int known = lc_field_known(name, size);
        int goes = goes_on(h, edit, known, has_host) && !dropped(edit, name, size)
            && (!lc_for_all(known) || !is_named(head, &named, name, size));

        if (!goes || !is_plain(name, size, line)) {
            out = put(out, head + run, at - run);
            run = next;
        }
        if (goes && run == next) {
            out = put(out, name, size);
            out = PUT(": ");
            out = put_span(out, head, lc_value(head, at, size, line));
            out = PUT("\r\n");
        }
        at = next;
    }
    return put(out, head + run, at - run);
}

static uint8_t *put_framing(uint8_t *out, const struct lc_head *h)
{
    int told = h->marks & MARK(FIELD_LENGTH)
        && (h->code == 304 || (h->flags & LC_HEAD_IS_HEAD && !lc_bodiless(h->code) && h->code > 0));

    if (h->body == LC_BODY_CHUNKED)
        return PUT("Transfer-Encoding: chunked\r\n");
    if (h->body == LC_BODY_LENGTH || told) {
        out = PUT("Content-Length: ");
        out = put_number(out, h->length);
        out = PUT("\r\n");
    }
    return out;
}

static uint8_t *put_connection(uint8_t *out, const struct lc_head *h, const struct lc_edit *edit)
{
    uint8_t *begin = out;

    if (h->flags & LC_HEAD_TRAILERS) {
        out = PUT("TE: trailers\r\n");
        begin = out;
        out = PUT(", TE");
    }
    if (upgrades(h, edit))
        out = PUT(", upgrade");
    if (edit->what & LC_EDIT_CLOSE || h->body == LC_BODY_CLOSE)
        out = PUT(", close");
    else if (edit->what & LC_EDIT_KEEP)
        out = PUT(", keep-alive");
    if (out == begin)
        return out;
    memmove(begin + 12, begin + 2, (size_t)(out - begin) - 2);
    memcpy(begin, "Connection: ", 12);
    out += 10;
    return PUT("\r\n");
}

/* A target's authority is what Host says, whatever it said (RFC 9112, 3.2.2). */
static uint8_t *put_host(uint8_t *out, const uint8_t *bytes, const struct lc_head *h)
{
    out = PUT("Host: ");
    out = put_span(out, bytes, h->authority);
    return PUT("\r\n");
}

static uint8_t *put_target(uint8_t *out, const uint8_t *bytes, const struct lc_head *h,
                           const struct lc_edit *edit)
{
    struct lc_span path = h->start[1];
    uint32_t at = h->authority.at + h->authority.size;

    if (!(edit->what & LC_EDIT_ORIGIN) || h->form != LC_TARGET_ABSOLUTE)
        return put_span(out, bytes, path);
    path.size -= at - path.at;
    path.at = at;
    if (path.size == 0 && h->start[0].size == 7 && memcmp(bytes + h->start[0].at, "OPTIONS", 7) == 0)
        return PUT("*");
    if (path.size == 0 || bytes[at] != '/')
        out = PUT("/");
    return put_span(out, bytes, path);
}

int lc_head_edit(const uint8_t *head, const struct lc_head *h, const struct lc_edit *edit,
                 uint8_t *out, size_t room)
{
    const uint8_t *begin = out, *from = head;
    struct lc_head start;
    const struct lc_head *s = h;
    int has_host, marks = check(h, edit, &start);

    if (marks < 0)
        return -EINVAL;
    if (room < lc_edit_room(h, edit))
        return -ENOBUFS;
    if (edit->start != NULL) {
        s = &start;
        from = edit->start;
    }
    if (h->code > 0) {
        out = PUT("HTTP/1.1 ");
        out = put_span(out, from, s->start[1]);
        out = PUT(" ");
        out = put_span(out, from, s->start[2]);
    } else {
        out = put_span(out, from, s->start[0]);
        out = PUT(" ");
        out = put_target(out, from, s, edit);
        out = h->minor > 0 ? PUT(" HTTP/1.1") : PUT(" HTTP/1.0");
    }
    out = PUT("\r\n");
    has_host = s->authority.size + h->authority.size > 0 && !host_dropped(edit);
    if (has_host)
        out = s->authority.size > 0 ? put_host(out, from, s) : put_host(out, head, h);
    out = put_fields(out, head, h, edit, has_host);
    out = put_framing(out, h);
    out = put(out, edit->append, edit->append_size);
    if (edit->date != NULL && !((h->marks | (uint32_t)marks) & MARK(FIELD_DATE)))
        out = put(out, edit->date, strlen(edit->date));
    out = put_connection(out, h, edit);
    out = PUT("\r\n");
    return (int)(out - begin);
}
