/* From coefficients to resized pixels. Each function has a plain form and, on x86-64, one for AVX2 that gives
 * the same result to the last bit; `pixels_select` chooses at run time.
 */
#ifndef COATNET_PIXELS_H
#define COATNET_PIXELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAVE_AVX2 1
#define AVX2 __attribute__((target("avx2")))
#endif

enum { WEIGHT_BITS = 14 };               /* the fraction of a filter's weights */
enum { PIXEL = 4, PADDING = 64 };        /* R, G, B and an unused byte; bytes that may be touched behind a row */

/* Blocks on their way to the inverse DCT; two at a time are worth a wide register. */
typedef struct {
    const int16_t *values;     /* natural order, not yet dequantised */
    const uint16_t *quantiser; /* natural order */
    uint8_t *out;
    ptrdiff_t stride;
} Block;

/* One output pixel takes `taps` source pixels from `first` on; weights add up to 1 << WEIGHT_BITS. */
typedef struct {
    int size, taps; /* `taps` is a multiple of 4, weights behind an output's own are 0 */
    int *first, *count;
    int16_t *weights; /* size × taps */
} Filter;

/* Whether there are samples beside the first and the last one of a row; else these stand there again. */
typedef struct {
    int before, behind;
} Edges;

static inline void mend_edges(int16_t *sums, int count, Edges edges) {
    if (!edges.before) sums[0] = sums[1];
    if (!edges.behind) sums[count + 1] = sums[count];
}

typedef struct {
    /* libjpeg's accurate integer inverse DCT of two blocks. */
    void (*inverse_dct)(const Block *first, const Block *second);
    /* One row of YCbCr, chroma at full width, to pixels; as libjpeg rounds. */
    void (*to_rgb)(uint8_t *out, const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width);
    /* Chroma at full resolution from `count` samples a row, as libjpeg's "fancy" (triangle) upsampling rounds: two
     * pixels each across for h2, one for h1. `near` is the row of samples at the pixels' side, `far` the one beyond;
     * `sums` has room for `count` numbers and PADDING bytes, `out` for PADDING bytes more than its pixels. */
    void (*upsample_h2v2)(uint8_t *out, int16_t *sums, const uint8_t *near, const uint8_t *far, int count, Edges edges);
    void (*upsample_h2v1)(uint8_t *out, int16_t *sums, const uint8_t *row, int count, Edges edges);
    void (*upsample_h1v2)(uint8_t *out, const uint8_t *near, const uint8_t *far, int bias, int count);
    /* Two rows of pixels to `filter->size` ones each, mirrored if `flip`. */
    void (*resize_rows)(uint8_t *const *out, const uint8_t *const *rows, const Filter *filter, int flip);
    /* The weighted sum of `taps` (even) rows of pixels. */
    void (*mix_rows)(uint8_t *out, const uint8_t *const *rows, const int16_t *weights, int taps, int width);
    /* Pixels as R, G, B without the unused byte; writes not a byte more. */
    void (*pack_row)(uint8_t *out, const uint8_t *row, int width);
} Pixels;

/* Choose the fastest form that this processor has, or the plain one. */
const Pixels *pixels_select(int allow_simd);

extern const Pixels plain_pixels;
#ifdef HAVE_AVX2
extern const Pixels avx2_pixels;
#endif

/* Fill a filter that maps `in` pixels to `out`, antialiased; bicubic (a = -0.5) or bilinear. 0: no memory. */
int filter_make(Filter *filter, int in, int out, int bicubic);
void filter_free(Filter *filter);

#endif
