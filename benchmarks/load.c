/*
 * One load generator for both servers: prebuilt requests over N connections, answers counted.
 *
 *   load resp|msgpack ADDRESS PORT REQUESTS [-c connections] [-p pipeline] [-t seconds | -n count] [-s start]
 *
 * REQUESTS is a file of requests, each behind its length (uint32, little endian). They go out in the
 * order of the file, round and round, whichever connection is free taking the next: what stands far apart
 * in the file reaches the server in that order. -s says where to begin, and `cursor` in the result where
 * the next run should. Request i of a MessagePack-RPC file has the msgid i.
 *
 * A connection sends `pipeline` requests in one write, waits for all their answers, then sends the next.
 * Latency runs from that write to each answer. At the end, which SIGTERM brings early, nothing more is
 * sent; what is under way is awaited and counted. Two lines are printed: `running` once the first requests
 * are sent, and the result as JSON. Exit 1: some answer was an error; 2: no result.
 */
#define _GNU_SOURCE
#include "answers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CONNECTIONS = 1000,        /* the usual limit of file descriptors is 1024 */
    MAX_PIPELINE = 64,             /* the bits of connection.missing */
    BUFFER_BYTES = 64 * 1024,      /* far above one batch of answers */
    LATENCY_BUCKETS = 1000 * 1000, /* one for each microsecond; the last takes all that is slower */
    STALLED_SECONDS = 10,
};

struct connection {
    int fd;
    size_t first;     /* the batch under way: requests first, first + 1, ... */
    uint64_t missing; /* a bit for each of them that has no answer yet */
    uint64_t sent_ns;
    size_t received; /* bytes in buffer */
    char buffer[BUFFER_BYTES];
};

static struct {
    char *bytes;     /* end to end, and behind the last the first batch again: any batch is one piece */
    size_t *offsets; /* where each begins */
    size_t count;
} requests;

static struct {
    parser *parse;
    struct sockaddr_in server;
    size_t connections, pipeline, cursor;
    uint64_t duration_ns, unsent; /* a run ends by time or by number */
} options = {.connections = 50, .pipeline = 1, .duration_ns = UINT64_MAX, .unsent = UINT64_MAX};

static struct {
    int epoll;
    size_t busy; /* connections with a batch under way */
    uint64_t start_ns, end_ns, answers, errors;
    uint32_t latency[LATENCY_BUCKETS];
    uint64_t slowest_us;
    char first_error[200];
} run;

static volatile sig_atomic_t told_to_end;

static void end_early(int signal) { told_to_end = signal; }

static uint64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static size_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* ---- requests ---- */

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) die("%s: %s", path, strerror(errno));
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*size + 1);
    if (!data || fread(data, 1, *size, file) != *size) die("%s: cannot be read", path);
    fclose(file);
    return data;
}

static void put_request(size_t index, const char *bytes, size_t size) {
    memcpy(requests.bytes + requests.offsets[index], bytes, size);
    requests.offsets[index + 1] = requests.offsets[index] + size;
}

static void load_requests(const char *path) {
    size_t size;
    char *file = read_file(path, &size);
    requests.bytes = malloc(2 * size + 1);
    requests.offsets = calloc(size / sizeof(uint32_t) + MAX_PIPELINE + 2, sizeof *requests.offsets);
    if (!requests.bytes || !requests.offsets) die("out of memory");

    uint32_t length;
    for (size_t at = 0; at < size; at += length) {
        if (size - at < sizeof length) die("%s: ends inside a length", path);
        memcpy(&length, file + at, sizeof length);
        at += sizeof length;
        if (length == 0 || length > size - at) die("%s: ends inside a request", path);
        put_request(requests.count++, file + at, length);
    }
    free(file);
    if (requests.count < options.connections * options.pipeline) die("%s: fewer requests than can be under way", path);
    for (size_t i = 0; i < options.pipeline; i++) {
        size_t from = requests.offsets[i];
        put_request(requests.count + i, requests.bytes + from, requests.offsets[i + 1] - from);
    }
}

/* ---- connections ---- */

static void send_batch(struct connection *connection) {
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    size_t size = smaller(options.pipeline, options.unsent);
    if (size == 0 || told_to_end || now - run.start_ns >= options.duration_ns) return;

    connection->first = options.cursor;
    connection->missing = UINT64_MAX >> (64 - size);
    connection->sent_ns = now;
    options.cursor = (options.cursor + size) % requests.count;
    options.unsent -= size;
    run.busy++;
    /* May block, but not for ever: no answer is under way on this connection that we would have to read first. */
    size_t from = requests.offsets[connection->first], to = requests.offsets[connection->first + size];
    if (send(connection->fd, requests.bytes + from, to - from, MSG_NOSIGNAL) != (ssize_t)(to - from))
        die("send: %s", strerror(errno));
}

static struct connection *open_connection(void) {
    struct connection *connection = calloc(1, sizeof *connection);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct timeval patience = {.tv_sec = STALLED_SECONDS};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};

    if (!connection || fd < 0) die("cannot open another connection");
    connection->fd = fd;
    if (connect(fd, (struct sockaddr *)&options.server, sizeof options.server) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0 ||
        epoll_ctl(run.epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        die("connect: %s", strerror(errno));
    return connection;
}

/* ---- answers ---- */

/* Ticks the request off that this answers. Without ids (RESP) that is the oldest. */
static void tick_off(struct connection *connection, const struct answer *answer) {
    size_t place = 0;
    if (answer->has_id) place = (answer->id + requests.count - connection->first) % requests.count;
    else if (connection->missing) place = (size_t)__builtin_ctzll(connection->missing);
    if (place >= MAX_PIPELINE || !(connection->missing >> place & 1)) die("an answer to nothing that was asked");
    connection->missing &= ~((uint64_t)1 << place);
}

static void count_answer(struct connection *connection, const struct answer *answer, uint64_t now) {
    tick_off(connection, answer);
    uint64_t us = (now - connection->sent_ns) / 1000;
    run.answers++;
    run.latency[smaller(us, LATENCY_BUCKETS - 1)]++;
    if (us > run.slowest_us) run.slowest_us = us;
    if (answer->is_error && run.errors++ == 0)
        memcpy(run.first_error, answer->error, smaller(answer->error_size, sizeof run.first_error - 1));
}

static void read_answers(struct connection *connection) {
    ssize_t got = recv(connection->fd, connection->buffer + connection->received,
                       BUFFER_BYTES - connection->received, 0);
    if (got <= 0) die("%s", got < 0 ? strerror(errno) : "the server closed a connection");
    connection->received += (size_t)got;

    uint64_t now = now_ns(CLOCK_MONOTONIC);
    size_t used = 0;
    while (used < connection->received) {
        struct answer answer = {0};
        size_t size = options.parse(connection->buffer + used, connection->received - used, &answer);
        if (size == 0) break;
        count_answer(connection, &answer, now);
        used += size;
    }
    connection->received -= used;
    memmove(connection->buffer, connection->buffer + used, connection->received);
    if (connection->received == BUFFER_BYTES) die("an answer longer than %d bytes", BUFFER_BYTES);
    if (connection->missing == 0) {
        run.busy--;
        send_batch(connection);
    }
}

static void drive(void) {
    struct connection *connections[MAX_CONNECTIONS];
    struct epoll_event events[MAX_CONNECTIONS];

    run.epoll = epoll_create1(0);
    for (size_t i = 0; i < options.connections; i++) connections[i] = open_connection();
    run.start_ns = now_ns(CLOCK_MONOTONIC);
    for (size_t i = 0; i < options.connections; i++) send_batch(connections[i]);
    puts("running");
    fflush(stdout);
    while (run.busy > 0) {
        int ready = epoll_wait(run.epoll, events, MAX_CONNECTIONS, STALLED_SECONDS * 1000);
        if (ready < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
        if (ready == 0) die("no answer for %d seconds", STALLED_SECONDS);
        for (int i = 0; i < ready; i++) read_answers(events[i].data.ptr);
    }
    run.end_ns = now_ns(CLOCK_MONOTONIC);
}

/* ---- the result ---- */

/* Microseconds within which this share of the answers came. */
static size_t percentile(double share) {
    uint64_t seen = 0;
    for (size_t us = 0; us < LATENCY_BUCKETS; us++) {
        seen += run.latency[us];
        if (seen > 0 && (double)seen >= share * (double)run.answers) return us;
    }
    return LATENCY_BUCKETS;
}

static void print_result(void) {
    for (char *c = run.first_error; *c; c++)
        if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\') *c = ' ';
    printf("{\"ops\": %lu, \"seconds\": %.6f, \"errors\": %lu, \"first_error\": \"%s\", ", run.answers,
           (double)(run.end_ns - run.start_ns) / 1e9, run.errors, run.first_error);
    printf("\"p50_us\": %zu, \"p99_us\": %zu, \"p999_us\": %zu, \"max_us\": %lu, ", percentile(0.5),
           percentile(0.99), percentile(0.999), run.slowest_us);
    printf("\"cpu_seconds\": %.6f, \"cursor\": %zu}\n", (double)now_ns(CLOCK_PROCESS_CPUTIME_ID) / 1e9,
           options.cursor);
}

/* ---- the command line ---- */

static void usage(void) {
    die("usage: load resp|msgpack ADDRESS PORT REQUESTS [-c connections] [-p pipeline] [-t seconds | -n count] [-s start]");
}

static void read_flags(int argc, char **argv) {
    for (int flag; (flag = getopt(argc, argv, "c:p:t:n:s:")) != -1;) {
        switch (flag) {
        case 'c': options.connections = strtoul(optarg, NULL, 10); break;
        case 'p': options.pipeline = strtoul(optarg, NULL, 10); break;
        case 't': options.duration_ns = (uint64_t)(strtod(optarg, NULL) * 1e9); break;
        case 'n': options.unsent = strtoull(optarg, NULL, 10); break;
        case 's': options.cursor = strtoul(optarg, NULL, 10); break;
        default: usage();
        }
    }
    if (options.connections < 1 || options.connections > MAX_CONNECTIONS) die("-c: 1 to %d", MAX_CONNECTIONS);
    if (options.pipeline < 1 || options.pipeline > MAX_PIPELINE) die("-p: 1 to %d", MAX_PIPELINE);
    if (options.duration_ns == UINT64_MAX && options.unsent == UINT64_MAX) die("-t or -n: when does it end?");
}

int main(int argc, char **argv) {
    read_flags(argc, argv);
    if (argc - optind != 4) usage();
    char **words = argv + optind;

    if (strcmp(words[0], "resp") == 0) options.parse = parse_resp;
    else if (strcmp(words[0], "msgpack") == 0) options.parse = parse_msgpack;
    else usage();
    options.server.sin_family = AF_INET;
    options.server.sin_port = htons((uint16_t)strtoul(words[2], NULL, 10));
    if (inet_pton(AF_INET, words[1], &options.server.sin_addr) != 1) die("%s: no IPv4 address", words[1]);

    load_requests(words[3]);
    options.cursor %= requests.count;
    signal(SIGTERM, end_early);
    drive();
    print_result();
    return run.errors > 0;
}
