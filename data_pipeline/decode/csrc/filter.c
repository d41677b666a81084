/* The weights of an antialiased resize, computed as Pillow does (Resample.c), then rounded to integers. */
#include "pixels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double bicubic_kernel(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

static double bilinear_kernel(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Round so that the weights still add up to one: the error goes to the largest, where it matters least. */
static void quantise(int16_t *out, const double *weights, double total, int count) {
    int sum = 0, largest = 0;
    for (int i = 0; i < count; i++) {
        out[i] = (int16_t)lrint(weights[i] / total * (1 << WEIGHT_BITS));
        sum += out[i];
        if (out[i] > out[largest]) largest = i;
    }
    out[largest] = (int16_t)(out[largest] + (1 << WEIGHT_BITS) - sum);
}

static int allocate(Filter *filter, int out) {
    filter->size = out;
    filter->weights = NULL;
    filter->first = malloc((size_t)out * sizeof *filter->first);
    filter->count = malloc((size_t)out * sizeof *filter->count);
    return filter->first && filter->count;
}

/* Find which source pixels each output pixel takes, and return the greatest number of them. */
static int find_spans(Filter *filter, int in, double scale, double support) {
    int widest = 0;
    for (int i = 0; i < filter->size; i++) {
        const double centre = (i + 0.5) * scale;
        int low = (int)(centre - support + 0.5), high = (int)(centre + support + 0.5);
        if (low < 0) low = 0;
        if (high > in) high = in;
        filter->first[i] = low;
        filter->count[i] = high - low;
        if (high - low > widest) widest = high - low;
    }
    return widest;
}

static int fill_weights(Filter *filter, int bicubic, double scale, double stretch, int widest) {
    double (*kernel)(double) = bicubic ? bicubic_kernel : bilinear_kernel;
    double *exact = malloc((size_t)widest * sizeof *exact);
    filter->taps = (widest + 3) & ~3;
    filter->weights = calloc((size_t)filter->size * (size_t)filter->taps, sizeof *filter->weights);
    for (int i = 0; exact && filter->weights && i < filter->size; i++) {
        const double centre = (i + 0.5) * scale;
        double total = 0.0;
        for (int j = 0; j < filter->count[i]; j++)
            total += exact[j] = kernel((filter->first[i] + j - centre + 0.5) / stretch);
        quantise(filter->weights + (size_t)i * (size_t)filter->taps, exact, total, filter->count[i]);
    }
    const int done = exact && filter->weights;
    free(exact);
    return done;
}

int filter_make(Filter *filter, int in, int out, int bicubic) {
    const double scale = (double)in / out, stretch = scale > 1.0 ? scale : 1.0;
    const double support = (bicubic ? 2.0 : 1.0) * stretch;
    if (allocate(filter, out) &&
        fill_weights(filter, bicubic, scale, stretch, find_spans(filter, in, scale, support)))
        return 1;
    filter_free(filter);
    return 0;
}

void filter_free(Filter *filter) {
    free(filter->first);
    free(filter->count);
    free(filter->weights);
    filter->first = filter->count = NULL;
    filter->weights = NULL;
}
