/* See scan.h. */
#include "scan.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const Jpeg *jpeg;
    Region region;
    Sink *sink;     /* NULL: nothing is kept */
    Tokens *tokens; /* instead of the sink, where there are any */
    Bits bits;
    int running[MAX_COMPONENTS]; /* DC values */
} Walk;

/* Return the first marker at or behind `p`, over stuffed zeros and fill bytes; NULL: there is none. */
static const uint8_t *find_marker(const uint8_t *p, const uint8_t *end) {
    while (end - p >= 2 && (p = memchr(p, 0xFF, (size_t)(end - p - 1))) != NULL) {
        if (p[1] != 0x00 && p[1] != 0xFF) return p;
        p += p[1] == 0xFF ? 1 : 2;
    }
    return NULL;
}

static int tokens_reserve(Tokens *tokens) {
    if (tokens->room - tokens->count >= BLOCK) return 1;
    const size_t room = tokens->room * 2 + 1024 * BLOCK;
    Token *grown = realloc(tokens->list, room * sizeof *grown);
    if (!grown) return 0;
    tokens->list = grown;
    tokens->room = room;
    return 1;
}

/* A block to the tokens, where there are any, or else to the sink if it is `wanted`. */
static Status read_block(Walk *walk, int component, int x, int y, int wanted) {
    const Component *c = &walk->jpeg->component[component];
    const Huffman *dc = &walk->jpeg->dc[c->dc], *ac = &walk->jpeg->ac[c->ac];
    int *running = &walk->running[component], count = 0;
    Tokens *tokens = walk->tokens;
    Sink *sink = walk->sink;
    if (bits_overrun(&walk->bits)) return CORRUPT;
    if (tokens) {
        if (!tokens_reserve(tokens)) return NO_MEMORY;
        const Status status = block_tokens(&walk->bits, dc, ac, running, tokens->list + tokens->count, &count);
        tokens->count += (size_t)count;
        return status;
    }
    if (!wanted) return block_skip(&walk->bits, dc, ac, running);
    const Status status = block_decode(&walk->bits, dc, ac, running, sink->values, sink->places, &count);
    if (status == OK) sink->take(sink, component, x, y, count);
    return status;
}

static Status read_mcu(Walk *walk, int column, int row, int wanted) {
    for (int i = 0; i < walk->jpeg->components; i++) {
        const Component *c = &walk->jpeg->component[i];
        for (int y = row * c->v; y < (row + 1) * c->v; y++) {
            for (int x = column * c->h; x < (column + 1) * c->h; x++) {
                const Status status = read_block(walk, i, x, y, wanted);
                if (status != OK) return status;
            }
        }
    }
    return OK;
}

/* The MCUs [start, stop), at whose first one the bits stand. */
static Status decode_interval(Walk *walk, int64_t start, int64_t stop) {
    const Region *region = &walk->region;
    const int across = walk->jpeg->mcus_x;
    memset(walk->running, 0, sizeof walk->running);
    int column = (int)(start % across), row = (int)(start / across);
    for (int64_t mcu = start; mcu < stop; mcu++) {
        const int inside = column >= region->left && column < region->right && row >= region->top;
        const Status status = read_mcu(walk, column, row, walk->sink && inside);
        if (status != OK) return status;
        if (++column == across) {
            column = 0;
            row++;
        }
    }
    return OK;
}

/* Return the first MCU at or behind `mcu` that lies in the region, or behind its last one. */
static int64_t next_needed(const Region *region, int64_t mcu, int across) {
    int64_t column = mcu % across, row = mcu / across;
    if (row < region->top) return (int64_t)region->top * across + region->left;
    if (column < region->left) return row * across + region->left;
    return column < region->right ? mcu : (row + 1) * across + region->left;
}

/* Return behind the last MCU in [start, stop) that lies in the region, or `start` if there is none. */
static int64_t behind_needed(const Region *region, int64_t start, int64_t stop, int across) {
    int64_t column = (stop - 1) % across, row = (stop - 1) / across, last = stop - 1;
    if (row >= region->bottom) last = (int64_t)(region->bottom - 1) * across + region->right - 1;
    else if (column >= region->right) last = row * across + region->right - 1;
    else if (column < region->left) last = (row - 1) * across + region->right - 1;
    return last < start ? start : last + 1;
}

size_t scan_scratch_bytes(const Jpeg *jpeg) { return (size_t)(jpeg->end - jpeg->scan) + BITS_MARGIN; }

static Status scan(Walk *walk, uint8_t *scratch) {
    const Jpeg *jpeg = walk->jpeg;
    const Region region = walk->region;
    const int across = jpeg->mcus_x;
    const int64_t total = (int64_t)across * jpeg->mcus_y;
    const int64_t interval = jpeg->restart_interval ? jpeg->restart_interval : total;
    const int64_t last = (int64_t)(region.bottom - 1) * across + region.right;
    const uint8_t *p = jpeg->scan;
    for (int64_t start = 0, index = 0;; start += interval, index++) {
        const int64_t stop = start + interval < total ? start + interval : total;
        if (next_needed(&region, start, across) < stop) {
            const int64_t until = behind_needed(&region, start, stop, across);
            p = bits_start(&walk->bits, scratch, p, jpeg->end);
            const Status status = decode_interval(walk, start, until);
            if (status != OK) return status;
            if (bits_overrun(&walk->bits) || (until == stop && !bits_finished(&walk->bits))) return CORRUPT;
            if (until == last && last < total) return OK;
        }
        if (!p || !(p = find_marker(p, jpeg->end))) return CORRUPT;
        if (stop == total) return p[1] == 0xD9 ? OK : CORRUPT;
        if (p[1] != 0xD0 + (index & 7)) return CORRUPT;
        p += 2;
    }
}

Status scan_region(const Jpeg *jpeg, Region region, Sink *sink, uint8_t *scratch) {
    Walk walk = {.jpeg = jpeg, .region = region, .sink = sink};
    return scan(&walk, scratch);
}

Status scan_tokens(const Jpeg *jpeg, Tokens *tokens, uint8_t *scratch) {
    Walk walk = {.jpeg = jpeg, .region = {0, 0, jpeg->mcus_x, jpeg->mcus_y}, .tokens = tokens};
    return scan(&walk, scratch);
}
