/* A sequential JPEG: its header, its Huffman tables and a reader of its bits.
 *
 * Everything here is strict: what libjpeg would repair with a warning is CORRUPT, and what is rare is
 * UNSUPPORTED. The caller hands both to Pillow, which has the last word.
 */
#ifndef COATNET_JPEG_H
#define COATNET_JPEG_H

#include <stddef.h>
#include <stdint.h>

typedef enum { OK = 0, UNSUPPORTED = 1, CORRUPT = 2, LIMIT = 3, BAD_BOX = 4, NO_MEMORY = 5 } Status;

enum { LOOKAHEAD = 10, MAX_COMPONENTS = 3, BLOCK = 64 };

/* What the next LOOKAHEAD bits mean: a code of `code` bits, then a value of `size` bits, together `length`, behind
 * `run` zeros. END_OF_BLOCK: there are no more values. `length` 0: no code, or one that is too long for the table. */
enum { END_OF_BLOCK = 255 };
typedef struct {
    uint8_t length, code, size, run;
} Symbol;

typedef struct {
    Symbol fast[1 << LOOKAHEAD];
    uint32_t limit[18];  /* first 16-bit prefix that is no code of this length or shorter */
    int32_t offset[17];  /* index of a code's symbol, less the code */
    uint8_t symbols[256];
    uint8_t counts[17];
    int defined;
} Huffman;

typedef struct {
    int id, h, v, quantiser, dc, ac;
    int width, height; /* in samples */
} Component;

typedef struct {
    int width, height, components;
    int h_max, v_max;          /* sampling factors of an MCU, 1 or 2 */
    int mcus_x, mcus_y;        /* the image in MCUs */
    int restart_interval;      /* in MCUs, 0 for none */
    Component component[MAX_COMPONENTS];
    uint16_t quantiser[4][BLOCK]; /* in natural order */
    int quantiser_defined[4];
    Huffman dc[4], ac[4];
    const uint8_t *scan;       /* the entropy-coded bytes */
    const uint8_t *end;        /* of the payload */
} Jpeg;

extern const uint8_t natural_order[BLOCK];

/* Read the header up to the scan. Of the payload only [data, data + size) is touched. */
Status jpeg_parse(Jpeg *jpeg, const uint8_t *data, size_t size, uint64_t max_pixels);

/* Build the look-up table from `counts` and `symbols`; `is_dc` says how a symbol is to be read. */
Status huffman_build(Huffman *table, int is_dc);

/* Bits of entropy-coded data whose stuffed zeros were removed. Behind them lie BITS_MARGIN zero bytes. */
typedef struct {
    const uint8_t *bytes;
    uint64_t position, size; /* in bits */
} Bits;

enum { BITS_MARGIN = 320 }; /* more than the longest block and a look ahead */

/* Copy the data from `from` up to the next marker to `to`, without stuffed zeros and with the margin behind, and
 * return where the marker is; NULL: there is none before `end`. `to` has room for end - from + BITS_MARGIN. */
const uint8_t *bits_start(Bits *bits, uint8_t *to, const uint8_t *from, const uint8_t *end);

/* True when more bits were read than there are. */
int bits_overrun(const Bits *bits);

/* True when all bits were read but the padding of the last byte. */
int bits_finished(const Bits *bits);

/* Decode one block's values into `block` (natural order, zeroed here); CORRUPT or OK. Not to be called after an
 * overrun. `running` is the component's DC value. The zigzag positions of the AC values that were
 * set go to `places`, their number to `count`. */
Status block_decode(
    Bits *bits, const Huffman *dc, const Huffman *ac, int *running, int16_t *block, uint8_t *places, int *count);

/* One value: the zeros before it (DC: 0) and where it stands, at 0 (DC) or behind (AC). Blocks end at the next DC. */
typedef struct {
    int16_t value;
    uint8_t run, is_dc;
} Token;

/* The same as up to BLOCK tokens. */
Status block_tokens(Bits *bits, const Huffman *dc, const Huffman *ac, int *running, Token *tokens, int *count);

/* The same without keeping the values. */
Status block_skip(Bits *bits, const Huffman *dc, const Huffman *ac, int *running);

#endif
