/* See tile.h. The blocks become tokens, the tokens are counted, then written; the result's tokens must be equal. */
#include "tile.h"

#include "optimal.h"
#include "scan.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCK_BYTES = 256, SOS = 0xDA, DHT = 0xC4, DRI = 0xDD }; /* a block's longest code */

typedef struct {
    uint8_t *bytes;
    size_t size, room;
} Writer;

/* Bits of one interval, without the zeros that are stuffed behind 0xFF; the last ones wait in `buffer`. */
typedef struct {
    uint8_t *to;
    uint64_t buffer; /* right-aligned; what lies above its `bits` has been written */
    int bits;
} Stream;

typedef struct {
    int per_mcu;               /* blocks */
    uint8_t component[6];      /* of each block of an MCU */
    int interval, components;
    uint64_t frequencies[2][2][256]; /* [is_dc][table] */
    Code code[2][2];
} Plan;

void tile_free(uint8_t *bytes) { free(bytes); }

static Status read_tokens(Tokens *tokens, const Jpeg *jpeg) {
    uint8_t *scratch = malloc(scan_scratch_bytes(jpeg));
    memset(tokens, 0, sizeof *tokens);
    const Status status = scratch ? scan_tokens(jpeg, tokens, scratch) : NO_MEMORY;
    free(scratch);
    return status;
}

/* ---- tokens to bits, or to frequencies when there is no stream: inlined, each becomes its own loop ---- */

#define INLINE static inline __attribute__((always_inline))

INLINE int magnitude(int value) { return 31 - __builtin_clz(2 * (unsigned)abs(value) + 1); }

/* Eight bytes are stored at every call and only the whole ones kept: no branch that could be guessed wrong. */
INLINE void put(Stream *stream, unsigned bits, int count) { /* 1 to 31 */
    stream->buffer = stream->buffer << count | bits;
    stream->bits += count;
    uint64_t eight = stream->buffer << (64 - stream->bits);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    memcpy(stream->to, &eight, sizeof eight);
    stream->to += stream->bits >> 3;
    stream->bits &= 7;
}

INLINE void emit(Plan *plan, Stream *stream, int is_dc, int table, int symbol, int value) {
    if (!stream) {
        plan->frequencies[is_dc][table][symbol]++;
        return;
    }
    const Code *code = &plan->code[is_dc][table];
    const int size = symbol & 15;
    const unsigned raw = (unsigned)(value < 0 ? value - 1 : value) & ((1u << size) - 1);
    put(stream, (unsigned)code->word[symbol] << size | raw, code->length[symbol] + size);
}

INLINE const Token *emit_block(Plan *plan, Stream *stream, const Token *token, const Token *end, int table, int *running) {
    const int difference = token->value - *running;
    *running = token->value;
    emit(plan, stream, 1, table, magnitude(difference), difference);
    int k = 1;
    for (token++; token < end && !token->is_dc; token++) {
        int run = token->run;
        k += run + 1;
        for (; run > 15; run -= 16) emit(plan, stream, 0, table, 0xF0, 0);
        emit(plan, stream, 0, table, run << 4 | magnitude(token->value), token->value);
    }
    if (k < BLOCK) emit(plan, stream, 0, table, 0, 0);
    return token;
}

INLINE const Token *emit_interval(Plan *plan, Stream *stream, const Token *token, const Token *end) {
    int running[MAX_COMPONENTS] = {0};
    for (int mcu = 0; mcu < plan->interval && token < end; mcu++)
        for (int i = 0; i < plan->per_mcu && token < end; i++)
            token = emit_block(plan, stream, token, end, plan->component[i] > 0, &running[plan->component[i]]);
    return token;
}

static int writer_reserve(Writer *writer, size_t bytes) {
    if (writer->room - writer->size >= bytes) return 1;
    const size_t room = writer->room * 2 + bytes + (1 << 16);
    uint8_t *grown = realloc(writer->bytes, room);
    if (!grown) return 0;
    writer->bytes = grown;
    writer->room = room;
    return 1;
}

static void put_bytes(Writer *writer, const void *bytes, size_t size) {
    memcpy(writer->bytes + writer->size, bytes, size);
    writer->size += size;
}

/* Copy an interval's bytes with a zero behind each 0xFF. */
static int put_stuffed(Writer *writer, const uint8_t *from, const uint8_t *end) {
    if (!writer_reserve(writer, 2 * (size_t)(end - from))) return 0;
    while (from < end) {
        const uint8_t *stop = memchr(from, 0xFF, (size_t)(end - from));
        const uint8_t *next = stop ? stop + 1 : end;
        put_bytes(writer, from, (size_t)(next - from));
        if (stop) writer->bytes[writer->size++] = 0;
        from = next;
    }
    return 1;
}

static void count_all(Plan *plan, const Tokens *tokens) {
    const Token *token = tokens->list, *end = token + tokens->count;
    while (token < end) token = emit_interval(plan, NULL, token, end);
}

static int write_all(Plan *plan, Writer *writer, const Tokens *tokens) {
    const Token *token = tokens->list, *end = token + tokens->count;
    uint8_t *bytes = malloc((size_t)plan->interval * (size_t)plan->per_mcu * MAX_BLOCK_BYTES + sizeof(uint64_t));
    int done = bytes != NULL;
    for (unsigned index = 0; done && token < end; index++) {
        Stream stream = {bytes, 0, 0};
        token = emit_interval(plan, &stream, token, end);
        if (stream.bits) put(&stream, (1u << (8 - stream.bits)) - 1, 8 - stream.bits);
        done = put_stuffed(writer, bytes, stream.to) && writer_reserve(writer, 2);
        if (done && token < end) put_bytes(writer, (const uint8_t[]){0xFF, (uint8_t)(0xD0 + (index & 7))}, 2);
    }
    free(bytes);
    return done;
}

/* ---- the file ---- */

/* Copy the segments from SOI to the scan but the Huffman tables and the restart interval; return the SOS. */
static const uint8_t *copy_segments(Writer *writer, const uint8_t *data) {
    const uint8_t *p = data + 2;
    put_bytes(writer, data, 2);
    for (;;) { /* jpeg_parse has been here: lengths are good */
        while (p[1] == 0xFF) p++;
        const size_t length = 2 + ((size_t)p[2] << 8 | p[3]);
        if (p[1] == SOS) return p;
        if (p[1] != DHT && p[1] != DRI) put_bytes(writer, p, length);
        p += length;
    }
}

static void put_tables(Writer *writer, const Plan *plan) {
    const size_t start = writer->size;
    put_bytes(writer, (const uint8_t[]){0xFF, DHT, 0, 0}, 4);
    for (int table = 0; table < (plan->components > 1 ? 2 : 1); table++) {
        for (int is_dc = 1; is_dc >= 0; is_dc--) {
            const Code *code = &plan->code[is_dc][table];
            writer->bytes[writer->size++] = (uint8_t)((is_dc ? 0 : 0x10) | table);
            put_bytes(writer, code->counts + 1, 16);
            put_bytes(writer, code->symbols, (size_t)code->used);
        }
    }
    const size_t length = writer->size - start - 2;
    writer->bytes[start + 2] = (uint8_t)(length >> 8);
    writer->bytes[start + 3] = (uint8_t)length;
}

static int put_header(Writer *writer, const Plan *plan, const uint8_t *data, const uint8_t *scan) {
    if (!writer_reserve(writer, (size_t)(scan - data) + 4096)) return 0;
    const uint8_t *sos = copy_segments(writer, data);
    put_tables(writer, plan);
    put_bytes(writer, (const uint8_t[]){0xFF, DRI, 0, 4, (uint8_t)(plan->interval >> 8), (uint8_t)plan->interval}, 6);
    uint8_t *copy = writer->bytes + writer->size;
    put_bytes(writer, sos, (size_t)(scan - sos));
    for (int i = 0; i < plan->components; i++) copy[6 + 2 * i] = i ? 0x11 : 0x00; /* the scan's tables */
    return 1;
}

/* A row of MCUs is cut into equal intervals, so that none straddles two rows, but for the rounding. */
static void lay_out_mcu(Plan *plan, const Jpeg *jpeg, int tile_width) {
    const int wanted = (jpeg->width + tile_width / 2) / tile_width, tiles = wanted > 1 ? wanted : 1;
    memset(plan, 0, sizeof *plan);
    plan->interval = (jpeg->mcus_x + tiles - 1) / tiles;
    plan->components = jpeg->components;
    for (int i = 0; i < jpeg->components; i++)
        for (int blocks = jpeg->component[i].h * jpeg->component[i].v; blocks > 0; blocks--)
            plan->component[plan->per_mcu++] = (uint8_t)i;
}

static Status write_file(Writer *writer, Plan *plan, const Tokens *tokens, const uint8_t *data, const uint8_t *scan) {
    count_all(plan, tokens);
    for (int table = 0; table < (plan->components > 1 ? 2 : 1); table++)
        for (int is_dc = 0; is_dc < 2; is_dc++)
            if (!optimal_code(&plan->code[is_dc][table], plan->frequencies[is_dc][table])) return UNSUPPORTED;
    if (!put_header(writer, plan, data, scan) || !write_all(plan, writer, tokens)) return NO_MEMORY;
    if (!writer_reserve(writer, 2)) return NO_MEMORY;
    put_bytes(writer, (const uint8_t[]){0xFF, 0xD9}, 2);
    return OK;
}

static Status verify(Jpeg *jpeg, const Writer *writer, const Tokens *wanted, uint64_t max_pixels) {
    Tokens found;
    Status status = jpeg_parse(jpeg, writer->bytes, writer->size, max_pixels);
    if (status != OK) return status;
    status = read_tokens(&found, jpeg);
    if (status == OK && (found.count != wanted->count ||
                         memcmp(found.list, wanted->list, wanted->count * sizeof *found.list) != 0))
        status = CORRUPT;
    free(found.list);
    return status;
}

Status tile_jpeg(
    const uint8_t *data, size_t size, int tile_width, uint64_t max_pixels, uint8_t **out, size_t *out_size) {
    Tokens tokens = {0};
    Writer writer = {0};
    Jpeg *jpeg = malloc(sizeof *jpeg);
    Plan *plan = malloc(sizeof *plan);
    Status status = jpeg && plan ? jpeg_parse(jpeg, data, size, max_pixels) : NO_MEMORY;
    if (status == OK) status = read_tokens(&tokens, jpeg);
    if (status == OK) {
        lay_out_mcu(plan, jpeg, tile_width);
        status = write_file(&writer, plan, &tokens, data, jpeg->scan);
    }
    if (status == OK) status = verify(jpeg, &writer, &tokens, max_pixels);
    free(tokens.list);
    free(plan);
    free(jpeg);
    if (status != OK) free(writer.bytes);
    *out = status == OK ? writer.bytes : NULL;
    *out_size = writer.size;
    return status;
}
