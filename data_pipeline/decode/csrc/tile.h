/* The lossless rewrite that makes a JPEG's regions cheap: see tile_jpeg. */
#ifndef COATNET_TILE_H
#define COATNET_TILE_H

#include "jpeg.h"

/* Write the same coefficients anew, with restart markers about every `tile_width` pixels of a row of MCUs, so that a
 * reader can step over what it does not need, and with Huffman tables that are optimal for them. All other segments before
 * the scan are copied. The result was decoded again and compared before OK is returned; free it by tile_free. */
Status tile_jpeg(
    const uint8_t *data, size_t size, int tile_width, uint64_t max_pixels, uint8_t **out, size_t *out_size);

void tile_free(uint8_t *bytes);

#endif
