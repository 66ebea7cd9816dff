/* How one answer is found in a stream of bytes, for RESP and for MessagePack-RPC. No I/O. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct answer {
    bool has_id, is_error;
    uint64_t id;
    const char *error; /* not terminated */
    size_t error_size;
};

/* The size of the first whole answer in data; 0 while it is incomplete. Ends the process at anything else. */
typedef size_t parser(const char *data, size_t size, struct answer *answer);

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(2);
}

static void set_error(struct answer *answer, const char *text, size_t size) {
    answer->is_error = true;
    answer->error = text;
    answer->error_size = size;
}

/* ---- RESP: +text  -error  :number  $length text, each line ending with CR LF ---- */

static size_t parse_resp(const char *data, size_t size, struct answer *answer) {
    const char *newline = memchr(data, '\n', size);
    if (!newline) return 0;
    size_t line = (size_t)(newline - data) + 1;

    switch (data[0]) {
    case '+':
    case ':':
        return line;
    case '-':
        set_error(answer, data + 1, line - 1);
        return line;
    case '$': {
        long length = strtol(data + 1, NULL, 10);
        if (length < 0) { /* every key was stored before: this is not what we mean to measure */
            set_error(answer, "no such key", strlen("no such key"));
            return line;
        }
        size_t whole = line + (size_t)length + 2;
        return whole <= size ? whole : 0;
    }
    default:
        die("no RESP answer: it begins with byte 0x%02x", (unsigned char)data[0]);
    }
}

/* ---- MessagePack-RPC: [1, msgid, nil, result] or [1, msgid, error, nil] ---- */

struct item {
    enum { NIL, BOOLEAN, NUMBER, STRING } kind;
    uint64_t number;
    const char *text; /* not terminated */
    size_t text_size;
};

static uint64_t big_endian(const unsigned char *data, size_t width) {
    uint64_t number = 0;
    for (size_t i = 0; i < width; i++) number = number << 8 | data[i];
    return number;
}

static size_t parse_string(const char *data, size_t head, size_t length, size_t size, struct item *item) {
    if (length > size - head) return 0;
    *item = (struct item){.kind = STRING, .text = data + head, .text_size = length};
    return head + length;
}

static size_t parse_item(const char *data, size_t size, struct item *item) {
    const unsigned char *bytes = (const unsigned char *)data;
    if (size == 0) return 0;
    unsigned char type = bytes[0];

    if (type <= 0x7f || type == 0xc0 || type == 0xc2 || type == 0xc3) {
        *item = (struct item){.kind = type <= 0x7f ? NUMBER : type == 0xc0 ? NIL : BOOLEAN, .number = type};
        return 1;
    }
    if (type >= 0xa0 && type <= 0xbf) return parse_string(data, 1, type & 0x1f, size, item);

    bool is_number = type >= 0xcc && type <= 0xcf, is_string = type >= 0xd9 && type <= 0xdb;
    if (!is_number && !is_string) die("a type that get and set do not answer with: 0x%02x", type);
    size_t width = (size_t)1 << (type - (is_number ? 0xcc : 0xd9));
    if (size < 1 + width) return 0;
    uint64_t number = big_endian(bytes + 1, width);
    if (is_string) return parse_string(data, 1 + width, number, size, item);
    *item = (struct item){.kind = NUMBER, .number = number};
    return 1 + width;
}

static size_t parse_msgpack(const char *data, size_t size, struct answer *answer) {
    enum { TYPE, MSGID, ERROR, RESULT, FIELDS };
    struct item fields[FIELDS];
    if (size == 0) return 0;
    if ((unsigned char)data[0] != 0x94) die("no response: it begins with byte 0x%02x", (unsigned char)data[0]);

    size_t used = 1;
    for (int i = 0; i < FIELDS; i++) {
        size_t step = parse_item(data + used, size - used, &fields[i]);
        if (step == 0) return 0;
        used += step;
    }
    if (fields[TYPE].kind != NUMBER || fields[TYPE].number != 1) die("a message that is no response");
    if (fields[MSGID].kind != NUMBER) die("a msgid that is no number");
    answer->has_id = true;
    answer->id = fields[MSGID].number;
    if (fields[ERROR].kind == STRING) set_error(answer, fields[ERROR].text, fields[ERROR].text_size);
    else if (fields[ERROR].kind != NIL) die("an error that is no string");
    return used;
}
