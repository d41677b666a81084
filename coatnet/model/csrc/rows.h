/* Loops over rows of channels, fp32: what a CPU spends its time on between the matrix products.

   Every function works on `rows` consecutive rows of `width` channels and on nothing else, so that a caller
   may hand out chunks to threads and add partial sums up in a fixed order. */

#ifndef COATNET_ROWS_H
#define COATNET_ROWS_H

#include <stddef.h>

/* Per channel: the mean, and the sum of squared distances from it. */
void rows_moments(const float *x, size_t rows, size_t width, float *mean, float *squares);

/* y = (x - mean) * scale + bias, then GELU (tanh form) if asked. */
void rows_normalise(const float *x, float *y, size_t rows, size_t width, const float *mean, const float *scale,
                    const float *bias, int gelu);

/* With z = (x - mean) * scale + bias: g = dy * GELU'(z), or dy itself. Adds, per channel, g and g * (x - mean)
   to two sums that the caller has cleared. g may be NULL where there is no GELU. */
void rows_gradient_sums(const float *x, const float *dy, float *g, size_t rows, size_t width, const float *mean,
                        const float *scale, const float *bias, int gelu, float *sum, float *sum_centred);

/* dx = scale * g + slope * (x - mean) + offset; dx may be g. */
void rows_gradient(const float *x, const float *g, float *dx, size_t rows, size_t width, const float *mean,
                   const float *scale, const float *slope, const float *offset);

void rows_gelu(const float *x, float *y, size_t count);
void rows_gelu_gradient(const float *x, const float *dy, float *dx, size_t count);

#endif
