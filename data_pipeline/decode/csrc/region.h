/* One image: decode a box of it, resize, mirror. */
#ifndef COATNET_REGION_H
#define COATNET_REGION_H

#include "jpeg.h"
#include "pixels.h"

typedef struct {
    const uint8_t *data;
    size_t size;
    int left, top, right, bottom; /* the box, in pixels of the source */
    int flip, bicubic;
    uint64_t max_pixels;
    uint8_t *out; /* height × width × 3 */
    int width, height;
} Request;

/* What is kept from image to image: tables and memory. */
typedef struct {
    Jpeg jpeg;
    const Pixels *pixels;
    uint8_t *memory;
    size_t memory_bytes;
} Decoder;

/* A new decoder is all zeros; one that was used keeps its memory until it is stopped. */
void decoder_start(Decoder *decoder, int allow_simd);
void decoder_stop(Decoder *decoder);
Status decoder_run(Decoder *decoder, const Request *request);

/* Entropy-decode the whole image and keep nothing. */
Status decoder_check(Decoder *decoder, const uint8_t *data, size_t size, uint64_t max_pixels);

#endif
