/* Huffman tables and the decoding of blocks: more than half of a decoder's time. See jpeg.h. */
#include "jpeg.h"

#include <string.h>

static Symbol describe(int length, uint8_t symbol, int is_dc) {
    const int size = is_dc ? symbol : symbol & 15;
    int run = is_dc ? 0 : symbol >> 4;
    if (!is_dc && size == 0 && run != 15) run = END_OF_BLOCK;
    return (Symbol){(uint8_t)(length + size), (uint8_t)length, (uint8_t)size, (uint8_t)run};
}

Status huffman_build(Huffman *table, int is_dc) {
    unsigned code = 0;
    int index = 0;
    memset(table->fast, 0, sizeof table->fast);
    for (int length = 1; length <= 16; length++) {
        table->offset[length] = index - (int)code;
        for (int i = 0; i < table->counts[length]; i++, code++, index++) {
            uint8_t symbol = table->symbols[index];
            if (code >= 1u << length) return CORRUPT;
            if (is_dc && symbol > 11) return UNSUPPORTED;
            if (length > LOOKAHEAD) continue;
            unsigned first = code << (LOOKAHEAD - length);
            const Symbol meaning = describe(length, symbol, is_dc);
            for (unsigned j = 0; j < 1u << (LOOKAHEAD - length); j++) table->fast[first + j] = meaning;
        }
        table->limit[length] = code << (16 - length);
        code <<= 1;
    }
    table->limit[17] = UINT32_MAX;
    return OK;
}

const uint8_t *bits_start(Bits *bits, uint8_t *to, const uint8_t *from, const uint8_t *end) {
    bits->next = to;
    bits->buffer = 0;
    bits->bits = 0;
    const uint8_t *marker = NULL;
    while (end - from >= 2) {
        const uint8_t *stop = memchr(from, 0xFF, (size_t)(end - from - 1));
        if (!stop) break;
        memcpy(to, from, (size_t)(stop - from));
        to += stop - from;
        from = stop;
        if (stop[1] != 0) {
            marker = stop;
            break;
        }
        *to++ = 0xFF;
        from += 2;
    }
    bits->end = to;
    memset(to, 0, BITS_MARGIN);
    return marker;
}

int bits_overrun(const Bits *bits) { return (bits->next - bits->end) * 8 > bits->bits; }

int bits_finished(const Bits *bits) {
    const ptrdiff_t left = (bits->end - bits->next) * 8 + bits->bits;
    return left >= 0 && left <= 7;
}

/* Leave at least 56 valid bits, from eight bytes at once. */
static inline void refill(Bits *bits) {
    uint64_t eight;
    memcpy(&eight, bits->next, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    bits->buffer |= eight >> bits->bits;
    bits->next += (63 - bits->bits) >> 3;
    bits->bits |= 56;
}

static inline void consume(Bits *bits, int count) {
    bits->buffer <<= count;
    bits->bits -= count;
}

/* Find a symbol whose code is longer than the table's index; all zero for a code that does not exist. */
static Symbol long_symbol(uint64_t buffer, const Huffman *table, int is_dc) {
    const unsigned prefix = (unsigned)(buffer >> 48);
    int length = LOOKAHEAD + 1;
    while (length <= 16 && prefix >= table->limit[length]) length++;
    if (length > 16) return (Symbol){0, 0, 0, 0};
    return describe(length, table->symbols[((int)(prefix >> (16 - length)) + table->offset[length]) & 255], is_dc);
}

static inline Symbol next_symbol(const Bits *bits, const Huffman *table, int is_dc) {
    const Symbol symbol = table->fast[bits->buffer >> (64 - LOOKAHEAD)];
    return symbol.length ? symbol : long_symbol(bits->buffer, table, is_dc);
}

/* The value behind a symbol's code, without branches: JPEG's signed numbers, Annex F.2.2.1. */
static inline int value_of(const Bits *bits, Symbol symbol) {
    const uint64_t from = bits->buffer << symbol.code;
    const int raw = (int)(from >> 1 >> (63 - symbol.size));
    const int negative = (int)(from >> 63) - 1; /* all ones when the first bit is 0 */
    return raw - (negative & ((1 << symbol.size) - 1));
}

static inline Status read_dc(Bits *bits, const Huffman *table, int *running) {
    refill(bits);
    const Symbol symbol = next_symbol(bits, table, 1);
    if (!symbol.length) return CORRUPT;
    *running += value_of(bits, symbol);
    consume(bits, symbol.length);
    return *running >= -32768 && *running <= 32767 ? OK : CORRUPT;
}

Status block_decode(
    Bits *bits, const Huffman *dc, const Huffman *ac, int *running, int16_t *block, uint8_t *places, int *count) {
    Bits local = *bits; /* in registers */
    memset(block, 0, BLOCK * sizeof *block);
    const Status status = read_dc(&local, dc, running);
    int k = 1, found = 0;
    if (status != OK) return status;
    block[0] = (int16_t)*running;
    while (k < BLOCK) {
        if (local.bits < 32) refill(&local);
        const Symbol symbol = next_symbol(&local, ac, 0);
        if (symbol.run == END_OF_BLOCK) {
            consume(&local, symbol.length);
            break;
        }
        k += symbol.run;
        if (k >= BLOCK || !symbol.length) return CORRUPT;
        block[natural_order[k]] = (int16_t)value_of(&local, symbol);
        places[found++] = (uint8_t)k++;
        consume(&local, symbol.length);
    }
    *count = found;
    *bits = local;
    return OK;
}

Status block_skip(Bits *bits, const Huffman *dc, const Huffman *ac, int *running) {
    Bits local = *bits;
    const Status status = read_dc(&local, dc, running);
    int k = 1;
    if (status != OK) return status;
    while (k < BLOCK) {
        if (local.bits < 32) refill(&local);
        const Symbol symbol = next_symbol(&local, ac, 0);
        consume(&local, symbol.length);
        if (symbol.run == END_OF_BLOCK) break;
        k += symbol.run + 1;
        if (k > BLOCK || !symbol.length) return CORRUPT;
    }
    *bits = local;
    return OK;
}
