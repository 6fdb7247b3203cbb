/* The framers by name, and what they say. */
#include "framer.h"

#define T TOKEN
#define U (TOKEN | TARGET)                          /* ! $ % & ' * + ^ ` | */
#define N (TOKEN | TARGET | NAME)                   /* - . _ ~ */
#define D (TOKEN | TARGET | NAME | DIGIT | HEX)
#define X (TOKEN | TARGET | NAME | HEX | ALPHA)
#define A (TOKEN | TARGET | NAME | ALPHA)
#define V TARGET                                    /* " ( ) , / : ; < = > ? @ [ \ ] { } */
const uint8_t lc_class[256] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, U, V, T, U, U, U, U, V, V, U, U, V, N, N, V,
    D, D, D, D, D, D, D, D, D, D, V, V, V, V, V, V,
    V, X, X, X, X, X, X, A, A, A, A, A, A, A, A, A,
    A, A, A, A, A, A, A, A, A, A, A, V, V, V, U, N,
    U, X, X, X, X, X, X, A, A, A, A, A, A, A, A, A,
    A, A, A, A, A, A, A, A, A, A, A, V, U, V, N, 0
};

static const struct { const char *text; int status; } bad[LC_BADS] = {
    [0] = {"", 0},
    [LC_BAD_START] = {"malformed start line", 400},
    [LC_BAD_METHOD] = {"malformed method", 400},
    [LC_BAD_TARGET] = {"request target that is malformed, or not of this method's form", 400},
    [LC_BAD_VERSION] = {"malformed or missing HTTP version", 400},
    [LC_BAD_VERSION_UNKNOWN] = {"HTTP version other than 1.0 and 1.1", 505},
    [LC_BAD_CODE] = {"malformed status code", 400},
    [LC_BAD_BLANK] = {"too many blank lines before a request", 400},
    [LC_BAD_BYTE] = {"control byte, or a CR or LF that is not CRLF", 400},
    [LC_BAD_FOLD] = {"folded line", 400},
    [LC_BAD_NAME] = {"malformed field name", 400},
    [LC_BAD_SPACE] = {"space before a field's colon", 400},
    [LC_BAD_HOST] = {"malformed Host", 400},
    [LC_BAD_HOSTS] = {"several Host fields", 400},
    [LC_BAD_NO_HOST] = {"HTTP/1.1 without Host", 400},
    [LC_BAD_LENGTH] = {"malformed Content-Length", 400},
    [LC_BAD_LENGTHS] = {"several Content-Lengths", 400},
    [LC_BAD_CODING] = {"malformed Transfer-Encoding, or chunked not its last", 400},
    [LC_BAD_CODINGS] = {"several Transfer-Encoding fields", 400},
    [LC_BAD_CODING_UNKNOWN] = {"transfer coding other than chunked", 501},
    [LC_BAD_CODING_OLD] = {"Transfer-Encoding in HTTP/1.0", 400},
    [LC_BAD_BOTH] = {"Content-Length beside Transfer-Encoding", 400},
    [LC_BAD_CONNECTION] = {"malformed or overlong Connection", 400},
    [LC_BAD_EXPECT] = {"expectation other than one 100-continue", 417},
    [LC_BAD_CONNECT_BODY] = {"CONNECT with a body", 400},
    [LC_BAD_SWITCH] = {"switch of protocols that nobody asked for", 400},
    [LC_BAD_LONG_LINE] = {"line too long", 431},
    [LC_BAD_LONG_HEAD] = {"head too long", 431},
    [LC_BAD_FIELDS] = {"too many fields", 431},
    [LC_BAD_CHUNK_SIZE] = {"malformed chunk size", 400},
    [LC_BAD_CHUNK_LINE] = {"malformed or overlong chunk extension", 400},
    [LC_BAD_CHUNK_END] = {"chunk data that does not end in CRLF", 400},
    [LC_BAD_TRAILER] = {"malformed trailer, or one that may not be a trailer", 400},
    [LC_BAD_RECORD] = {"malformed TLS record", 400},
    [LC_BAD_FRAME] = {"length that is out of bounds", 400},
};

const char *lc_bad_text(int why)
{
    return why > 0 && why < LC_BADS ? bad[why].text : "";
}

int lc_head_more(struct lc_head *h, uint32_t seen)
{
    h->seen = seen;
    return h->state = LC_HEAD_MORE;
}

int lc_head_refuse(struct lc_head *h, int why, int status)
{
    h->why = why;
    h->status = status ? status : bad[why].status;
    return h->state = LC_HEAD_REFUSED;
}

/* Two bytes of length, in network order, and that many bytes. Nothing has a length of 0. */
static int length16(const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                    struct lc_head *h)
{
    uint32_t payload;

    if (size < 2)
        return lc_head_more(h, (uint32_t)size);
    payload = (uint32_t)(bytes[0] << 8 | bytes[1]);
    if (payload == 0 || payload + 2 > limits->head)
        return lc_head_refuse(h, LC_BAD_FRAME, 0);
    h->length = payload;
    if (size < payload + 2)
        return lc_head_more(h, (uint32_t)size);
    h->size = payload + 2;
    h->start[0] = (struct lc_span){2, payload};
    return h->state = LC_HEAD_WHOLE;
}

int lc_frame_head(int framer, const uint8_t *bytes, size_t size, const struct lc_limits *limits,
                  unsigned about, struct lc_head *out)
{
    if (out->state != LC_HEAD_MORE)
        return out->state;
    switch (framer) {
    case LC_FRAMER_HTTP_REQUEST:
    case LC_FRAMER_HTTP_RESPONSE:
        return lc_http_head(framer, bytes, size, limits, about, out);
    case LC_FRAMER_TLS_HELLO:
        return lc_tls_hello(bytes, size, limits, out);
    case LC_FRAMER_LENGTH16:
        return length16(bytes, size, limits, out);
    default:
        return out->state = LC_HEAD_OTHER;
    }
}
