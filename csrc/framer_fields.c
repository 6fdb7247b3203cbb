/* Field lines (RFC 9110, 5; RFC 9112, 5), and what those of this hop mean. */
#include "framer.h"

#define IS(literal) (size == sizeof literal - 1 && is(name, literal, sizeof literal - 1))

/* Of tokens: the bit makes letters small, leaves hyphens, and makes neither of anything else. */
static int is(const uint8_t *name, const char *small, size_t size)
{
    size_t i;

    for (i = 0; i < size && (name[i] | 0x20) == small[i]; i++)
        ;
    return i == size;
}

/* Content_Length is a token, and becomes Content-Length wherever names become variables (CGI). */
static int trap(const uint8_t *name, const char *as, size_t size)
{
    for (; size > 0; size--, name++, as++)
        if (lc_lower(*name) != *as && !(*name == '_' && *as == '-'))
            return FIELD_ANY;
    return FIELD_TRAP;
}

int lc_field_known(const uint8_t *name, size_t size)
{
    switch (size) {
    case 2:
        return IS("te") ? FIELD_TE : FIELD_ANY;
    case 4:
        return IS("host") ? FIELD_HOST : IS("date") ? FIELD_DATE : FIELD_ANY;
    case 6:
        return IS("expect") ? FIELD_EXPECT : FIELD_ANY;
    case 7:
        return IS("upgrade") ? FIELD_UPGRADE : FIELD_ANY;
    case 10:
        return IS("connection") ? FIELD_CONNECTION : IS("keep-alive") ? FIELD_KEEP_ALIVE
                                                                      : FIELD_ANY;
    case 13:
        return IS("authorization") ? FIELD_CREDENTIALS : FIELD_ANY;
    case 14:
        return IS("content-length") ? FIELD_LENGTH : trap(name, "content-length", size);
    case 16:
        return IS("proxy-connection") ? FIELD_PROXY_CONNECTION
             : IS("www-authenticate") ? FIELD_CREDENTIALS : FIELD_ANY;
    case 17:
        return IS("transfer-encoding") ? FIELD_CODING : trap(name, "transfer-encoding", size);
    case 18:
        return IS("proxy-authenticate") ? FIELD_AUTHENTICATE : FIELD_ANY;
    case 19:
        return IS("proxy-authorization") ? FIELD_AUTHORIZATION : FIELD_ANY;
    default:
        return FIELD_ANY;
    }
}

int lc_field_split(const uint8_t *line, size_t size, size_t *name, struct lc_span *value)
{
    size_t at = 0, end = size;

    while (at < size && lc_class[line[at]] & TOKEN)
        at++;
    *name = at;
    if (at == 0 && size > 0 && (line[0] == ' ' || line[0] == '\t'))
        return LC_BAD_FOLD;
    if (at < size && (line[at] == ' ' || line[at] == '\t'))
        return LC_BAD_SPACE;
    if (at == 0 || at == size || line[at] != ':')
        return LC_BAD_NAME;
    at++;
    while (at < end && (line[at] == ' ' || line[at] == '\t'))
        at++;
    while (end > at && (line[end - 1] == ' ' || line[end - 1] == '\t'))
        end--;
    *value = (struct lc_span){(uint32_t)at, (uint32_t)(end - at)};
    return 0;
}

int lc_list_next(const uint8_t *bytes, size_t *at, size_t end, struct lc_span *member)
{
    const uint8_t *comma;
    size_t from = *at, to;

    if (from > end)
        return 0;
    comma = memchr(bytes + from, ',', end - from);
    to = comma != NULL ? (size_t)(comma - bytes) : end;
    *at = to + 1;
    while (from < to && (bytes[from] == ' ' || bytes[from] == '\t'))
        from++;
    while (to > from && (bytes[to - 1] == ' ' || bytes[to - 1] == '\t'))
        to--;
    *member = (struct lc_span){(uint32_t)from, (uint32_t)(to - from)};
    return 1;
}

int lc_list_has(const char *list, size_t size, const uint8_t *name, size_t name_size)
{
    const uint8_t *bytes = (const uint8_t *)list;
    struct lc_span member;
    size_t at = 0;

    while (size > 0 && lc_list_next(bytes, &at, size, &member))
        if (member.size == name_size && lc_same(name, list + member.at, name_size))
            return 1;
    return 0;
}

static int is_token(const uint8_t *bytes, size_t size)
{
    size_t i;

    for (i = 0; i < size && lc_class[bytes[i]] & TOKEN; i++)
        ;
    return size > 0 && i == size;
}

/* 1*DIGIT alone: no sign, no list. */
static int judge_length(struct lc_head *h, const uint8_t *value, size_t size)
{
    uint64_t length = 0;
    size_t i;

    if (memchr(value, ',', size) != NULL)
        return LC_BAD_LENGTHS;
    for (i = 0; i < size && lc_class[value[i]] & DIGIT; i++) {
        if (length > (INT64_MAX - 9) / 10)
            return LC_BAD_LENGTH;
        length = length * 10 + (value[i] - '0');
    }
    h->length = length;
    return size == 0 || i < size ? LC_BAD_LENGTH : 0;
}

static int judge_coding(const uint8_t *value, size_t size)
{
    struct lc_span member;
    size_t at = 0;
    int members = 0, chunked = 0;

    while (lc_list_next(value, &at, size, &member)) {
        if (chunked || !is_token(value + member.at, member.size))
            return LC_BAD_CODING;
        chunked = member.size == 7 && lc_same(value + member.at, "chunked", 7);
        members++;
    }
    return !chunked ? LC_BAD_CODING : members > 1 ? LC_BAD_CODING_UNKNOWN : 0;
}

/* Host and the framing are written whatever Connection names: servers do name Transfer-Encoding. */
static int judge_connection(struct lc_head *h, const uint8_t *value, size_t size)
{
    struct lc_span member;
    size_t at = 0;

    while (lc_list_next(value, &at, size, &member)) {
        const uint8_t *name = value + member.at;

        if ((h->marks += OPTION) / OPTION > OPTIONS)
            return LC_BAD_CONNECTION;
        if (member.size == 0)
            continue;
        if (!is_token(name, member.size))
            return LC_BAD_CONNECTION;
        if (member.size == 5 && lc_same(name, "close", 5))
            h->marks |= SAID_CLOSE;
        else if (lc_field_known(name, member.size) == FIELD_KEEP_ALIVE)
            h->marks |= SAID_KEEP;
        else if (lc_field_known(name, member.size) == FIELD_UPGRADE)
            h->marks |= SAID_UPGRADE;
        else if (lc_for_all(lc_field_known(name, member.size)))
            h->marks |= SAID_MORE;
    }
    return 0;
}

/* h2c would make a tunnel in which nobody sees requests; RFC 9113 took it back. */
static void judge_upgrade(struct lc_head *h, const uint8_t *value, size_t size)
{
    struct lc_span member;
    size_t at = 0;

    while (lc_list_next(value, &at, size, &member)) {
        if (member.size > 0)
            h->marks |= SWITCHES;
        if (member.size >= 3 && lc_same(value + member.at, "h2c", 3))
            h->marks |= SWITCHES_NOT;
    }
}

/* Schemes that authenticate a connection, not a request (RFC 4559, 6). */
static void judge_credentials(struct lc_head *h, const uint8_t *value, size_t size)
{
    struct lc_span member;
    size_t at = 0;

    while (lc_list_next(value, &at, size, &member))
        if ((member.size >= 4 && lc_same(value + member.at, "ntlm", 4))
            || (member.size >= 9 && lc_same(value + member.at, "negotiate", 9)))
            h->flags |= LC_HEAD_BOUND;
}

int lc_authority(const uint8_t *bytes, struct lc_span where, int wants_port)
{
    const uint8_t *p = bytes + where.at, *end = p + where.size, *name = p;
    uint32_t port = 0;

    if (p < end && *p == '[') {
        for (p++; p < end && (lc_class[*p] & HEX || *p == ':' || *p == '.'); p++)
            ;
        if (p == end || *p != ']' || p - name < 3)
            return 0;
        p++;
    } else {
        while (p < end && lc_class[*p] & NAME)
            p++;
    }
    if (p == name)
        return 0;
    if (p == end)
        return !wants_port;
    if (*p++ != ':')
        return 0;
    if (p == end)
        return !wants_port;
    for (; p < end && lc_class[*p] & DIGIT && port <= 65535; p++)
        port = port * 10 + (uint32_t)(*p - '0');
    return p == end && port <= 65535 && (port > 0 || !wants_port);
}

int lc_field_judge(struct lc_head *h, const uint8_t *bytes, uint32_t at, size_t size)
{
    struct lc_span value;
    size_t name;
    int why = lc_field_split(bytes + at, size, &name, &value), known, twice;
    const uint8_t *v = bytes + at + value.at;

    if (why != 0)
        return why;
    known = lc_field_known(bytes + at, name);
    if (known == FIELD_ANY)
        return 0;
    twice = (h->marks & MARK(known)) != 0;
    h->marks |= MARK(known);
    switch (known) {
    case FIELD_LENGTH:
        return twice ? LC_BAD_LENGTHS : judge_length(h, v, value.size);
    case FIELD_CODING:
        return twice ? LC_BAD_CODINGS : judge_coding(v, value.size);
    case FIELD_CONNECTION:
        return judge_connection(h, v, value.size);
    case FIELD_UPGRADE:
        judge_upgrade(h, v, value.size);
        return 0;
    case FIELD_CREDENTIALS:
        judge_credentials(h, v, value.size);
        return 0;
    case FIELD_TRAP:
        return LC_BAD_NAME;
    default:
        break;
    }
    if (h->code != 0)           /* what follows is of requests */
        return 0;
    switch (known) {
    case FIELD_HOST:
        h->host = (struct lc_span){at + value.at, value.size};
        return twice ? LC_BAD_HOSTS
                     : value.size > 0 && !lc_authority(bytes, h->host, 0) ? LC_BAD_HOST : 0;
    case FIELD_EXPECT:
        return twice || value.size != 12 || !lc_same(v, "100-continue", 12) ? LC_BAD_EXPECT : 0;
    case FIELD_TE:
        if (lc_list_has((const char *)v, value.size, (const uint8_t *)"trailers", 8))
            h->flags |= LC_HEAD_TRAILERS;
        return 0;
    default:
        return 0;
    }
}
