/* A main for fuzz targets where libFuzzer is not: the corpus, then seeded mutations of it.
 *
 *     PROGRAM [-runs=N] [-seed=N] [-max_total_time=SECONDS] DIRECTORY
 *
 * The options are libFuzzer's. What is being run is in ./crash-input when a run aborts. */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST = 4096, INPUTS = 4096 };

static struct input { uint8_t *bytes; size_t size; } corpus[INPUTS];
static size_t inputs;
static uint64_t state;
static const uint8_t *now;
static size_t now_size;

static const char *const words[] = {
    "\r\n", "\n", "\r", "\r\n\r\n", "\r\n ", ":", ": ", " :", ",", ", ", ";", "0\r\n\r\n", "\t", "\0",
    "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Host: a\r\n", "Connection: ",
    "Connection: close\r\n", "Upgrade: websocket\r\n", "Expect: 100-continue\r\n", "chunked",
    "HTTP/1.1", "HTTP/1.0", "GET ", "HEAD ", "CONNECT ", "http://", "[::1]", "ffffffffffffffff",
    "9223372036854775807", "TE: trailers\r\n", "Keep-Alive: x\r\n", "X-A: y\r\n", "Accept: z\r\n",
};

static uint32_t random32(void)      /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 0x2545f4914f6cdd1dULL) >> 32);
}

static size_t below(size_t n)
{
    return n > 0 ? random32() % n : 0;
}

static size_t insert(uint8_t *to, size_t size, const void *bytes, size_t n)
{
    size_t at = below(size + 1);

    if (size + n > MOST)
        return size;
    memmove(to + at + n, to + at, size - at);
    memcpy(to + at, bytes, n);
    return size + n;
}

static size_t change(uint8_t *to, size_t size)
{
    const struct input *other = &corpus[below(inputs)];
    const char *word = words[below(sizeof words / sizeof *words)];
    uint8_t byte = (uint8_t)random32(), part[256];
    size_t at, n;

    switch (random32() % 6) {
    case 0:
        return insert(to, size, &byte, 1);
    case 1:
        return insert(to, size, word, *word ? strlen(word) : 1);
    case 2:
        at = below(other->size);
        n = below(other->size - at < sizeof part ? other->size - at : sizeof part);
        memcpy(part, other->bytes + at, n);
        return insert(to, size, part, n);
    case 3:
        at = below(size);
        n = below(size - at < 16 ? size - at + 1 : 16);
        memmove(to + at, to + at + n, size - at - n);
        return size - n;
    case 4:
        if (size > 0)
            to[below(size)] = byte;
        return size;
    default:
        if (size > 0)
            to[below(size)] ^= (uint8_t)(1 << below(8));
        return size;
    }
}

static void run(const uint8_t *bytes, size_t size)
{
    uint8_t *exact = malloc(size);

    if (size > 0)
        memcpy(exact, bytes, size);
    now = exact;
    now_size = size;
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

static void leave(int signal)
{
    FILE *file = fopen("crash-input", "wb");

    if (file != NULL) {
        fwrite(now, 1, now_size, file);
        fclose(file);
    }
    _exit(128 + signal);
}

static void load(const char *directory)
{
    DIR *all = opendir(directory);
    struct dirent *entry;

    if (all == NULL || chdir(directory) < 0) {
        perror(directory);
        exit(2);
    }
    while ((entry = readdir(all)) != NULL && inputs < INPUTS) {
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(entry->d_name, "rb");

        if (file == NULL)
            continue;
        corpus[inputs].bytes = malloc(MOST);
        corpus[inputs].size = fread(corpus[inputs].bytes, 1, MOST, file);
        fclose(file);
        inputs++;
    }
    closedir(all);
}

int main(int n, char **arguments)
{
    unsigned long long runs = 0, most = ~0ULL, seed = 1, seconds = 0;
    time_t began = time(NULL);
    size_t i;

    for (; n > 1; n--) {
        const char *argument = *++arguments;

        if (sscanf(argument, "-runs=%llu", &most) != 1 && sscanf(argument, "-seed=%llu", &seed) != 1
            && sscanf(argument, "-max_total_time=%llu", &seconds) != 1 && argument[0] != '-')
            load(argument);
    }
    signal(SIGABRT, leave);
    state = seed * 2654435761u + 1;
    for (i = 0; i < inputs; i++, runs++)
        run(corpus[i].bytes, corpus[i].size);
    while (inputs > 0 && runs < most
           && (seconds == 0 || runs % 1024 != 0 || time(NULL) - began < (time_t)seconds)) {
        const struct input *from = &corpus[below(inputs)];
        static uint8_t bytes[MOST];
        size_t size = from->size, changes = 1 + below(6);

        memcpy(bytes, from->bytes, size);
        while (changes-- > 0)
            size = change(bytes, size);
        run(bytes, size);
        runs++;
    }
    printf("%llu runs\n", runs);
    return inputs > 0 ? 0 : 2;
}
