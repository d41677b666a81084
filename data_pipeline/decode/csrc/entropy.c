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
    uint8_t *const start = to;
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
    *bits = (Bits){start, 0, 8 * (uint64_t)(to - start)};
    memset(to, 0, BITS_MARGIN);
    return marker;
}

int bits_overrun(const Bits *bits) { return bits->position > bits->size; }

int bits_finished(const Bits *bits) { return bits->position <= bits->size && bits->size - bits->position <= 7; }

/* Return the next bits, left-aligned: 57 or more of the 64 are valid. */
static inline uint64_t peek(const Bits *bits) {
    uint64_t eight;
    memcpy(&eight, bits->bytes + (bits->position >> 3), 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    eight = __builtin_bswap64(eight);
#endif
    return eight << (bits->position & 7);
}

/* Find a symbol whose code is longer than the table's index; all zero for a code that does not exist. */
static Symbol long_symbol(uint64_t window, const Huffman *table, int is_dc) {
    const unsigned prefix = (unsigned)(window >> 48);
    int length = LOOKAHEAD + 1;
    while (length <= 16 && prefix >= table->limit[length]) length++;
    if (length > 16) return (Symbol){0, 0, 0, 0};
    return describe(length, table->symbols[((int)(prefix >> (16 - length)) + table->offset[length]) & 255], is_dc);
}

/* The value behind a symbol's code, without branches: JPEG's signed numbers, Annex F.2.2.1. */
static inline int value_of(uint64_t window, Symbol symbol) {
    const uint64_t from = window << symbol.code;
    const int raw = (int)(from >> 1 >> (63 - symbol.size));
    const int negative = (int)(from >> 63) - 1; /* all ones when the first bit is 0 */
    return raw - (negative & ((1 << symbol.size) - 1));
}

static inline Status read_dc(Bits *bits, const Huffman *table, int *running) {
    const uint64_t window = peek(bits);
    Symbol symbol = table->fast[window >> (64 - LOOKAHEAD)];
    if (!symbol.length) symbol = long_symbol(window, table, 1);
    if (!symbol.length) return CORRUPT;
    *running += value_of(window, symbol);
    bits->position += symbol.length;
    return *running >= -32768 && *running <= 32767 ? OK : CORRUPT;
}

/* Values go to `block` and `places` or to `tokens`, where they are not NULL. Two symbols share a look at the bits: a
 * short one takes 25 bits at most and a long one 31 of the 57, after which a short one still fits. */
static inline __attribute__((always_inline)) Status read_ac(
    Bits *bits, const Huffman *table, int16_t *block, uint8_t *places, Token *tokens, int *count) {
    int k = 1, found = 0, behind = 1; /* the last token */
    for (;;) {
        uint64_t window = peek(bits);
        for (int i = 0; i < 2; i++) {
            Symbol symbol = table->fast[window >> (64 - LOOKAHEAD)];
            if (!symbol.length) {
                if (i > 0) break;
                symbol = long_symbol(window, table, 0);
                if (!symbol.length) return CORRUPT;
            }
            bits->position += symbol.length;
            k += symbol.run;
            if (k >= BLOCK) { /* END_OF_BLOCK is far more than a block */
                *count = found;
                return symbol.run == END_OF_BLOCK ? OK : CORRUPT;
            }
            if (block) {
                block[natural_order[k]] = (int16_t)value_of(window, symbol);
                places[found++] = (uint8_t)k;
            }
            if (tokens) { /* 16 zeros are no token, but part of the next one's run; no branch, they would be guessed */
                const int value = value_of(window, symbol);
                tokens[found] = (Token){(int16_t)value, (uint8_t)(k - behind), 0};
                behind = value ? k + 1 : behind;
                found += value != 0;
            }
            if (++k == BLOCK) {
                *count = found;
                return OK;
            }
            window <<= symbol.length;
        }
    }
}

Status block_decode(
    Bits *bits, const Huffman *dc, const Huffman *ac, int *running, int16_t *block, uint8_t *places, int *count) {
    Bits local = *bits; /* in registers */
    Status status = read_dc(&local, dc, running);
    if (status != OK) return status;
    memset(block, 0, BLOCK * sizeof *block);
    block[0] = (int16_t)*running;
    status = read_ac(&local, ac, block, places, NULL, count);
    *bits = local;
    return status;
}

Status block_tokens(Bits *bits, const Huffman *dc, const Huffman *ac, int *running, Token *tokens, int *count) {
    Bits local = *bits;
    Status status = read_dc(&local, dc, running);
    if (status != OK) return status;
    tokens[0] = (Token){(int16_t)*running, 0, 1};
    status = read_ac(&local, ac, NULL, NULL, tokens + 1, count);
    if (status == OK) ++*count;
    *bits = local;
    return status;
}

Status block_skip(Bits *bits, const Huffman *dc, const Huffman *ac, int *running) {
    Bits local = *bits;
    int count;
    Status status = read_dc(&local, dc, running);
    if (status != OK) return status;
    status = read_ac(&local, ac, NULL, NULL, NULL, &count);
    *bits = local;
    return status;
}
