/* The AVX2 forms of pixels.h. Compiled everywhere on x86-64, called only where the processor has AVX2. */
#include "pixels.h"

#ifdef HAVE_AVX2
#include <immintrin.h>
#include <string.h>

typedef __m256i V;

/* ---- inverse DCT: one block per 128-bit lane ---- */

typedef struct {
    V low, high; /* 32-bit sums of the lower and upper four columns */
} Wide;

AVX2 static inline V pair(int a, int b) { return _mm256_set1_epi32((int)((uint32_t)(uint16_t)a | (uint32_t)b << 16)); }

/* a·x + b·y for 16-bit x and y */
AVX2 static inline Wide rotate(V x, V y, V ab) {
    return (Wide){
        _mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), ab), _mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), ab)};
}

AVX2 static inline Wide plus(Wide a, Wide b) {
    return (Wide){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

AVX2 static inline Wide minus(Wide a, Wide b) {
    return (Wide){_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}

/* (a + half) >> shift, saturated to 16 bits */
AVX2 static inline V narrow(Wide a, int shift) {
    const V half = _mm256_set1_epi32(1 << (shift - 1));
    return _mm256_packs_epi32(
        _mm256_srai_epi32(_mm256_add_epi32(a.low, half), shift),
        _mm256_srai_epi32(_mm256_add_epi32(a.high, half), shift));
}

AVX2 static inline __attribute__((always_inline)) void dct_pass(V x[8], int shift) {
    const V zero = _mm256_setzero_si256();
    const Wide e2 = rotate(x[2], x[6], pair(4433, -10704)), e3 = rotate(x[2], x[6], pair(10703, 4433));
    const Wide e0 = rotate(_mm256_add_epi16(x[0], x[4]), zero, pair(8192, 0));
    const Wide e1 = rotate(_mm256_sub_epi16(x[0], x[4]), zero, pair(8192, 0));
    const Wide even[4] = {plus(e0, e3), plus(e1, e2), minus(e1, e2), minus(e0, e3)};
    const V z3 = _mm256_add_epi16(x[7], x[3]), z4 = _mm256_add_epi16(x[5], x[1]);
    const Wide s3 = rotate(z3, z4, pair(-6436, 9633)), s4 = rotate(z3, z4, pair(9633, 6437));
    const Wide odd[4] = {
        plus(rotate(x[7], x[1], pair(-7373, 4926)), s4),
        plus(rotate(x[5], x[3], pair(-20995, 4177)), s3),
        plus(rotate(x[5], x[3], pair(-4176, -20995)), s4),
        plus(rotate(x[7], x[1], pair(-4927, -7373)), s3),
    };
    for (int i = 0; i < 4; i++) {
        x[i] = narrow(plus(even[i], odd[i]), shift);
        x[7 - i] = narrow(minus(even[i], odd[i]), shift);
    }
}

AVX2 static inline __attribute__((always_inline)) void transpose(V x[8]) {
    V a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi32(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi32(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi32(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi32(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        x[2 * i] = _mm256_unpacklo_epi64(b[i], b[i + 4]);
        x[2 * i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 4]);
    }
}

AVX2 static inline V two_rows(const void *first, const void *second) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)first)),
        _mm_loadu_si128((const __m128i *)second), 1);
}

AVX2 static void inverse_dct(const Block *first, const Block *second) {
    const V centre = _mm256_set1_epi8((char)0x80);
    V x[8];
    for (int i = 0; i < 8; i++)
        x[i] = _mm256_mullo_epi16(
            two_rows(first->values + 8 * i, second->values + 8 * i),
            two_rows(first->quantiser + 8 * i, second->quantiser + 8 * i));
    dct_pass(x, 11);
    transpose(x);
    dct_pass(x, 18);
    transpose(x);
    for (int i = 0; i < 8; i += 2) { /* signed saturation, then +128, is libjpeg's clamp */
        const V rows = _mm256_xor_si256(_mm256_packs_epi16(x[i], x[i + 1]), centre);
        const __m128i one = _mm256_castsi256_si128(rows), two = _mm256_extracti128_si256(rows, 1);
        _mm_storel_epi64((__m128i *)(first->out + i * first->stride), one);
        _mm_storel_epi64((__m128i *)(first->out + (i + 1) * first->stride), _mm_unpackhi_epi64(one, one));
        _mm_storel_epi64((__m128i *)(second->out + i * second->stride), two);
        _mm_storel_epi64((__m128i *)(second->out + (i + 1) * second->stride), _mm_unpackhi_epi64(two, two));
    }
}

/* ---- colour ---- */

AVX2 static inline V widen(const uint8_t *p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)); }

AVX2 static inline void rgb16(uint8_t *out, const uint8_t *y, const uint8_t *cb, const uint8_t *cr) {
    const V centre = _mm256_set1_epi16(128), zero = _mm256_setzero_si256();
    const V luma = widen(y);
    const V b = _mm256_sub_epi16(widen(cb), centre), r = _mm256_sub_epi16(widen(cr), centre);
    const V red = _mm256_add_epi16(_mm256_add_epi16(luma, r), narrow(rotate(r, zero, pair(26345, 0)), 16));
    const V green = _mm256_sub_epi16(_mm256_add_epi16(luma, narrow(rotate(b, r, pair(-22554, 18734)), 16)), r);
    const V twice = _mm256_add_epi16(b, b);
    const V blue = _mm256_add_epi16(_mm256_add_epi16(luma, twice), narrow(rotate(b, zero, pair(-14942, 0)), 16));
    const V rb = _mm256_packus_epi16(red, blue);    /* per lane: 8 red, 8 blue */
    const V gx = _mm256_packus_epi16(green, zero);  /* per lane: 8 green, 8 zeros */
    const V rg = _mm256_unpacklo_epi8(rb, gx), bx = _mm256_unpackhi_epi8(rb, gx);
    const V low = _mm256_unpacklo_epi16(rg, bx), high = _mm256_unpackhi_epi16(rg, bx);
    _mm256_storeu_si256((V *)out, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((V *)(out + 32), _mm256_permute2x128_si256(low, high, 0x31));
}

AVX2 static void to_rgb(uint8_t *out, const uint8_t *y, const uint8_t *cb, const uint8_t *cr, int width) {
    int i = 0;
    for (; i + 16 <= width; i += 16) rgb16(out + PIXEL * i, y + i, cb + i, cr + i);
    if (i == width) return;
    i = width - 16; /* the last ones overlap */
    if (i >= 0) rgb16(out + PIXEL * i, y + i, cb + i, cr + i);
    else plain_pixels.to_rgb(out, y, cb, cr, width);
}

/* ---- chroma ---- */

/* Sixteen samples to 32 pixels; (3·sum + neighbour + bias) >> shift, even and odd ones side by side. */
AVX2 static inline void spread(uint8_t *out, const int16_t *sums, int count, int even, int odd, int shift) {
    for (int i = 0; i < count; i += 16) {
        const V before = _mm256_loadu_si256((const V *)(sums + i));
        const V here = _mm256_loadu_si256((const V *)(sums + i + 1));
        const V behind = _mm256_loadu_si256((const V *)(sums + i + 2));
        const V triple = _mm256_add_epi16(here, _mm256_add_epi16(here, here));
        const V left = _mm256_add_epi16(_mm256_add_epi16(triple, before), _mm256_set1_epi16((short)even));
        const V right = _mm256_add_epi16(_mm256_add_epi16(triple, behind), _mm256_set1_epi16((short)odd));
        const V pairs = _mm256_or_si256(
            _mm256_srli_epi16(left, shift), _mm256_slli_epi16(_mm256_srli_epi16(right, shift), 8));
        _mm256_storeu_si256((V *)(out + 2 * i), pairs);
    }
}

/* Sums are made for whole vectors; of the samples behind the row's, at most PADDING bytes, nothing is used. */
AVX2 static void upsample_h2v2(
    uint8_t *out, int16_t *sums, const uint8_t *near, const uint8_t *far, int count, Edges edges) {
    for (int i = -edges.before; i < count + edges.behind; i += 16) {
        const V a = widen(near + i);
        const V sum = _mm256_add_epi16(_mm256_add_epi16(a, _mm256_add_epi16(a, a)), widen(far + i));
        _mm256_storeu_si256((V *)(sums + i + 1), sum);
    }
    mend_edges(sums, count, edges);
    spread(out, sums, count, 8, 7, 4);
}

AVX2 static void upsample_h2v1(uint8_t *out, int16_t *sums, const uint8_t *row, int count, Edges edges) {
    for (int i = -edges.before; i < count + edges.behind; i += 16)
        _mm256_storeu_si256((V *)(sums + i + 1), widen(row + i));
    mend_edges(sums, count, edges);
    spread(out, sums, count, 1, 2, 2);
}

AVX2 static void upsample_h1v2(uint8_t *out, const uint8_t *near, const uint8_t *far, int bias, int count) {
    for (int i = 0; i < count; i += 16) {
        const V a = widen(near + i), triple = _mm256_add_epi16(a, _mm256_add_epi16(a, a));
        const V sum = _mm256_add_epi16(_mm256_add_epi16(triple, widen(far + i)), _mm256_set1_epi16((short)bias));
        const V bytes = _mm256_packus_epi16(_mm256_srli_epi16(sum, 2), _mm256_setzero_si256());
        _mm_storeu_si128((__m128i *)(out + i), _mm256_castsi256_si128(_mm256_permute4x64_epi64(bytes, 0x08)));
    }
}

/* ---- resize ---- */

AVX2 static inline V tap4(const uint8_t *pixels, V by_channel, V weight) {
    const V four = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixels));
    return _mm256_madd_epi16(_mm256_shuffle_epi8(four, by_channel), weight);
}

/* Four source pixels per step: a lane takes two, brought together channel by channel for the multiply-add. Two rows
 * at once share the weights; `taps` is a constant for the usual numbers. A sixth of the whole kernel's time. */
AVX2 static inline __attribute__((always_inline)) void resize_with_taps(
    uint8_t *const *out, const uint8_t *const *rows, const Filter *filter, int flip, int taps) {
    const int size = filter->size;
    const V by_channel = _mm256_setr_epi8(
        0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1,
        8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
    const V by_lane = _mm256_setr_epi8(
        0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
    const V half = _mm256_set1_epi32(1 << (WEIGHT_BITS - 1));
    for (int i = 0; i < size; i++) {
        const int from = flip ? size - 1 - i : i;
        const int16_t *weights = filter->weights + from * taps;
        const size_t first = PIXEL * (size_t)filter->first[from];
        const uint8_t *upper = rows[0] + first, *lower = rows[1] + first;
        V sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int t = 0; t < taps; t += 4) {
            int64_t four;
            memcpy(&four, weights + t, sizeof four);
            const V weight = _mm256_shuffle_epi8(_mm256_set1_epi64x(four), by_lane);
            sum[0] = _mm256_add_epi32(sum[0], tap4(upper + PIXEL * t, by_channel, weight));
            sum[1] = _mm256_add_epi32(sum[1], tap4(lower + PIXEL * t, by_channel, weight));
        }
        V total = _mm256_add_epi32( /* lane 0: the upper row's pixel, lane 1: the lower one's */
            _mm256_permute2x128_si256(sum[0], sum[1], 0x20), _mm256_permute2x128_si256(sum[0], sum[1], 0x31));
        total = _mm256_srai_epi32(_mm256_add_epi32(total, half), WEIGHT_BITS);
        total = _mm256_packs_epi32(total, total);
        total = _mm256_packus_epi16(total, total);
        const int32_t pixel[2] = {
            _mm_cvtsi128_si32(_mm256_castsi256_si128(total)), _mm_cvtsi128_si32(_mm256_extracti128_si256(total, 1))};
        memcpy(out[0] + PIXEL * i, &pixel[0], PIXEL);
        memcpy(out[1] + PIXEL * i, &pixel[1], PIXEL);
    }
}

AVX2 static void resize_rows(uint8_t *const *out, const uint8_t *const *rows, const Filter *filter, int flip) {
    switch (filter->taps) {
    case 4:
        resize_with_taps(out, rows, filter, flip, 4);
        break;
    case 8:
        resize_with_taps(out, rows, filter, flip, 8);
        break;
    default:
        resize_with_taps(out, rows, filter, flip, filter->taps);
    }
}

AVX2 static inline V mix8(const uint8_t *const *rows, const int16_t *weights, int taps, int offset) {
    const V zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (WEIGHT_BITS - 1));
    V sum[4] = {half, half, half, half};
    for (int t = 0; t < taps; t += 2) {
        const V weight = pair(weights[t], weights[t + 1]);
        const V a = _mm256_loadu_si256((const V *)(rows[t] + offset));
        const V b = _mm256_loadu_si256((const V *)(rows[t + 1] + offset));
        const V low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
        sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), weight));
        sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), weight));
        sum[2] = _mm256_add_epi32(sum[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), weight));
        sum[3] = _mm256_add_epi32(sum[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), weight));
    }
    for (int j = 0; j < 4; j++) sum[j] = _mm256_srai_epi32(sum[j], WEIGHT_BITS);
    return _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
}

/* Rows are read and written up to the next multiple of 32 bytes: see PADDING. */
AVX2 static void mix_rows(uint8_t *out, const uint8_t *const *rows, const int16_t *weights, int taps, int width) {
    for (int i = 0; i < PIXEL * width; i += 32) _mm256_storeu_si256((V *)(out + i), mix8(rows, weights, taps, i));
}

AVX2 static void pack_row(uint8_t *out, const uint8_t *row, int width) {
    const __m128i without_fourth = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    int i = 0;
    for (; i + 6 <= width; i += 4) { /* four pixels, and four bytes of what follows */
        const __m128i pixels = _mm_loadu_si128((const __m128i *)(row + PIXEL * i));
        _mm_storeu_si128((__m128i *)(out + 3 * i), _mm_shuffle_epi8(pixels, without_fourth));
    }
    plain_pixels.pack_row(out + 3 * i, row + PIXEL * i, width - i);
}

const Pixels avx2_pixels = {
    .inverse_dct = inverse_dct,
    .to_rgb = to_rgb,
    .upsample_h2v2 = upsample_h2v2,
    .upsample_h2v1 = upsample_h2v1,
    .upsample_h1v2 = upsample_h1v2,
    .resize_rows = resize_rows,
    .mix_rows = mix_rows,
    .pack_row = pack_row,
};
#endif
