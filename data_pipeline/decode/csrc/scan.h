/* Walking a scan's blocks, and stepping over those that nobody needs. */
#ifndef COATNET_SCAN_H
#define COATNET_SCAN_H

#include "jpeg.h"

/* Of the image, in MCUs; right and bottom exclusive. */
typedef struct {
    int left, top, right, bottom;
} Region;

/* Takes the blocks of a region in scan order. A block is decoded to `values`, then `take` is called, which may
 * let `values` point elsewhere. x and y count the component's blocks from the image's left and top, `count` says
 * how many AC values there are. */
typedef struct Sink Sink;
struct Sink {
    int16_t *values;
    uint8_t places[BLOCK]; /* of the AC values, in zigzag order */
    void (*take)(Sink *sink, int component, int x, int y, int count);
};

/* Decode the region. Restart intervals without any of its MCUs are not even entropy-decoded, and nothing is
 * decoded behind the region's last MCU; when that is the image's last, an EOI marker must follow. Without a sink
 * nothing is kept. `scratch` has room for scan_scratch_bytes. */
Status scan_region(const Jpeg *jpeg, Region region, Sink *sink, uint8_t *scratch);

/* A whole image's tokens; the list grows, and is the caller's to free whatever comes back. */
typedef struct {
    Token *list;
    size_t count, room;
} Tokens;

Status scan_tokens(const Jpeg *jpeg, Tokens *tokens, uint8_t *scratch);

size_t scan_scratch_bytes(const Jpeg *jpeg);

#endif
