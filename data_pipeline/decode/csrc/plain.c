/* The plain forms of pixels.h: what every processor runs, and what AVX2 is tested against. */
#include "pixels.h"

enum { HALF = 1 << (WEIGHT_BITS - 1) };

static uint8_t clamp(int value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

static int16_t saturate(int value) {
    return (int16_t)(value < -32768 ? -32768 : value > 32767 ? 32767 : value);
}

/* One pass over eight values `step` apart; Loeffler, Ligtenberg, Moschytz with 11 multiplications, in the
 * arithmetic of libjpeg's jidctint.c with 13 fractional bits. Sums wrap at 16 bits as in its SIMD forms. */
static void dct_pass(int16_t *p, int step, int shift) {
    const int x0 = p[0], x1 = p[step], x2 = p[2 * step], x3 = p[3 * step];
    const int x4 = p[4 * step], x5 = p[5 * step], x6 = p[6 * step], x7 = p[7 * step];
    const int e2 = x2 * 4433 - x6 * 10704, e3 = x2 * 10703 + x6 * 4433;
    const int e0 = (int16_t)(x0 + x4) * 8192, e1 = (int16_t)(x0 - x4) * 8192;
    const int even[4] = {e0 + e3, e1 + e2, e1 - e2, e0 - e3};
    const int z3 = (int16_t)(x7 + x3), z4 = (int16_t)(x5 + x1);
    const int s3 = z3 * -6436 + z4 * 9633, s4 = z3 * 9633 + z4 * 6437;
    const int odd[4] = {
        x7 * -7373 + x1 * 4926 + s4,
        x5 * -20995 + x3 * 4177 + s3,
        x5 * -4176 + x3 * -20995 + s4,
        x7 * -4927 + x1 * -7373 + s3,
    };
    for (int i = 0; i < 4; i++) {
        p[i * step] = saturate((even[i] + odd[i] + (1 << (shift - 1))) >> shift);
        p[(7 - i) * step] = saturate((even[i] - odd[i] + (1 << (shift - 1))) >> shift);
    }
}

static void inverse_dct_one(const Block *block) {
    int16_t values[64];
    for (int i = 0; i < 64; i++) values[i] = (int16_t)(block->values[i] * block->quantiser[i]);
    for (int column = 0; column < 8; column++) dct_pass(values + column, 8, 11);
    for (int row = 0; row < 8; row++) {
        dct_pass(values + 8 * row, 1, 18);
        uint8_t *out = block->out + row * block->stride;
        for (int i = 0; i < 8; i++) out[i] = clamp(values[8 * row + i] + 128);
    }
}

static void inverse_dct(const Block *first, const Block *second) {
    inverse_dct_one(first);
    inverse_dct_one(second);
}

static void to_rgb(uint8_t *out, const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width) {
    for (int i = 0; i < width; i++, out += PIXEL) {
        const int b = cb[i] - 128, r = cr[i] - 128;
        out[0] = clamp(y[i] + ((91881 * r + 32768) >> 16));
        out[1] = clamp(y[i] + ((-22554 * b - 46802 * r + 32768) >> 16));
        out[2] = clamp(y[i] + ((116130 * b + 32768) >> 16));
        out[3] = 0;
    }
}

/* Pixels 2i and 2i+1 lie a quarter of a sample left and right of sample i. */
static void spread(uint8_t *out, const int16_t *sums, int count, int even, int odd, int shift) {
    for (int i = 0; i < count; i++) {
        out[2 * i] = (uint8_t)((3 * sums[i + 1] + sums[i] + even) >> shift);
        out[2 * i + 1] = (uint8_t)((3 * sums[i + 1] + sums[i + 2] + odd) >> shift);
    }
}

static void upsample_h2v2(
    uint8_t *out, int16_t *sums, const uint8_t *near, const uint8_t *far, int count, Edges edges) {
    for (int i = -edges.before; i < count + edges.behind; i++) sums[i + 1] = (int16_t)(3 * near[i] + far[i]);
    mend_edges(sums, count, edges);
    spread(out, sums, count, 8, 7, 4);
}

static void upsample_h2v1(uint8_t *out, int16_t *sums, const uint8_t *row, int count, Edges edges) {
    for (int i = -edges.before; i < count + edges.behind; i++) sums[i + 1] = row[i];
    mend_edges(sums, count, edges);
    spread(out, sums, count, 1, 2, 2);
}

static void upsample_h1v2(uint8_t *out, const uint8_t *near, const uint8_t *far, int bias, int count) {
    for (int i = 0; i < count; i++) out[i] = (uint8_t)((3 * near[i] + far[i] + bias) >> 2);
}

static void resize_row(uint8_t *out, const uint8_t *row, const Filter *filter, int flip) {
    for (int i = 0; i < filter->size; i++, out += PIXEL) {
        const int from = flip ? filter->size - 1 - i : i;
        const int16_t *weights = filter->weights + from * filter->taps;
        const uint8_t *source = row + PIXEL * filter->first[from];
        int sum[3] = {HALF, HALF, HALF};
        for (int t = 0; t < filter->count[from]; t++, source += PIXEL)
            for (int c = 0; c < 3; c++) sum[c] += source[c] * weights[t];
        for (int c = 0; c < 3; c++) out[c] = clamp(sum[c] >> WEIGHT_BITS);
        out[3] = 0;
    }
}

static void resize_rows(uint8_t *const *out, const uint8_t *const *rows, const Filter *filter, int flip) {
    resize_row(out[0], rows[0], filter, flip);
    resize_row(out[1], rows[1], filter, flip);
}

static void mix_rows(uint8_t *out, const uint8_t *const *rows, const int16_t *weights, int taps, int width) {
    for (int i = 0; i < width; i++, out += PIXEL) {
        int sum[3] = {HALF, HALF, HALF};
        for (int t = 0; t < taps; t++)
            for (int c = 0; c < 3; c++) sum[c] += rows[t][PIXEL * i + c] * weights[t];
        for (int c = 0; c < 3; c++) out[c] = clamp(sum[c] >> WEIGHT_BITS);
        out[3] = 0;
    }
}

static void pack_row(uint8_t *out, const uint8_t *row, int width) {
    for (int i = 0; i < width; i++, out += 3, row += PIXEL)
        for (int c = 0; c < 3; c++) out[c] = row[c];
}

const Pixels plain_pixels = {
    .inverse_dct = inverse_dct,
    .to_rgb = to_rgb,
    .upsample_h2v2 = upsample_h2v2,
    .upsample_h2v1 = upsample_h2v1,
    .upsample_h1v2 = upsample_h1v2,
    .resize_rows = resize_rows,
    .mix_rows = mix_rows,
    .pack_row = pack_row,
};

const Pixels *pixels_select(int allow_simd) {
#ifdef HAVE_AVX2
    if (allow_simd && __builtin_cpu_supports("avx2")) return &avx2_pixels;
#endif
    (void)allow_simd;
    return &plain_pixels;
}
