/* The loops of rows.h, written for the compiler's vectoriser and compiled once per instruction set. */

#include "rows.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__) && !defined(__clang__)
#if __GNUC__ >= 12
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else /* knows no levels, and takes one feature each: AVX2's clone multiplies and adds in two instructions */
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

/* e^x within 2 ulp: x = n ln 2 + r, a polynomial in r (Cephes' expf), n into the exponent's bits. */
INLINE float exponential(float x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = (x * 1.44269504f + shift) - shift;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* (1 + tanh(u)) / 2 = 1 / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3): GELU's tanh form is x times this. */
#define TWO_ROOT_2_PI 1.5957691216f
#define CUBIC 0.044715f

INLINE float gate(float x) {
    return 1.0f / (1.0f + exponential(-TWO_ROOT_2_PI * x * (1.0f + CUBIC * x * x)));
}

/* Beyond 10 the slope is 0 or 1 to fp32's last digit, and the cube would overflow. */
INLINE float gelu_slope(float x) {
    x = x < -10.0f ? -10.0f : x;
    x = x > 10.0f ? 10.0f : x;
    const float s = gate(x);
    return s + x * s * (1.0f - s) * TWO_ROOT_2_PI * (1.0f + 3.0f * CUBIC * x * x);
}

/* Sums are of distances from the first row: fp32 sums of values far from zero would lose their digits. */
FOR_EACH_PROCESSOR
void rows_moments(const float *x, size_t rows, size_t width, float *restrict mean, float *restrict squares) {
    memset(mean, 0, width * sizeof *mean);
    memset(squares, 0, width * sizeof *squares);
    for (size_t row = 1; row < rows; row++)
        for (size_t c = 0; c < width; c++) mean[c] += x[row * width + c] - x[c];
    const float share = 1.0f / (float)rows;
    for (size_t c = 0; c < width; c++) mean[c] = x[c] + mean[c] * share;
    for (size_t row = 0; row < rows; row++)
        for (size_t c = 0; c < width; c++) {
            const float centred = x[row * width + c] - mean[c];
            squares[c] += centred * centred;
        }
}

FOR_EACH_PROCESSOR
void rows_normalise(const float *x, float *restrict y, size_t rows, size_t width, const float *mean,
                    const float *scale, const float *bias, int gelu) {
    for (size_t row = 0; row < rows; row++, x += width, y += width) {
        if (gelu)
            for (size_t c = 0; c < width; c++) {
                const float z = (x[c] - mean[c]) * scale[c] + bias[c];
                y[c] = z * gate(z);
            }
        else
            for (size_t c = 0; c < width; c++) y[c] = (x[c] - mean[c]) * scale[c] + bias[c];
    }
}

FOR_EACH_PROCESSOR
void rows_gradient_sums(const float *x, const float *dy, float *restrict g, size_t rows, size_t width,
                        const float *mean, const float *scale, const float *bias, int gelu, float *restrict sum,
                        float *restrict sum_centred) {
    for (size_t row = 0; row < rows; row++, x += width, dy += width) {
        if (gelu) {
            float *restrict own = g + row * width;
            for (size_t c = 0; c < width; c++) {
                const float centred = x[c] - mean[c];
                const float gradient = dy[c] * gelu_slope(centred * scale[c] + bias[c]);
                own[c] = gradient;
                sum[c] += gradient;
                sum_centred[c] += gradient * centred;
            }
        } else
            for (size_t c = 0; c < width; c++) {
                sum[c] += dy[c];
                sum_centred[c] += dy[c] * (x[c] - mean[c]);
            }
    }
}

/* Not restrict: dx may be g. The vectoriser is told that each element depends on its own only. */
FOR_EACH_PROCESSOR
void rows_gradient(const float *x, const float *g, float *dx, size_t rows, size_t width, const float *mean,
                   const float *scale, const float *slope, const float *offset) {
    for (size_t row = 0; row < rows; row++, x += width, g += width, dx += width)
#pragma GCC ivdep
        for (size_t c = 0; c < width; c++) dx[c] = scale[c] * g[c] + slope[c] * (x[c] - mean[c]) + offset[c];
}

FOR_EACH_PROCESSOR
void rows_gelu(const float *x, float *restrict y, size_t count) {
    for (size_t i = 0; i < count; i++) y[i] = x[i] * gate(x[i]);
}

FOR_EACH_PROCESSOR
void rows_gelu_gradient(const float *x, const float *dy, float *restrict dx, size_t count) {
    for (size_t i = 0; i < count; i++) dx[i] = dy[i] * gelu_slope(x[i]);
}
