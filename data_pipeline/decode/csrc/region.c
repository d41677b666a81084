/* See region.h. The order of the work: blocks of the box's MCUs to planes; then, for each output row, the source
 * rows that it needs to RGB, resized across and down, or down and across: Pillow's order, with its rounding between,
 * since clamping overshoot in the other order costs more than 10 dB on drawings. A ring holds a few rows at a time. */
#include "region.h"

#include "scan.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t *samples;
    ptrdiff_t stride;
    int left, top; /* the image's sample that `samples` points at */
} Plane;

typedef struct {
    Sink sink;
    const Jpeg *jpeg;
    const Pixels *pixels;
    Plane plane[MAX_COMPONENTS];
    Block waiting;
    int slot; /* which of `values` the next block goes to: 1 while one is waiting */
    _Alignas(32) int16_t values[2][BLOCK];
} Planes;

typedef struct {
    const Jpeg *jpeg;
    const Pixels *pixels;
    const Request *request;
    const Planes *planes;
    const Filter *across, *down;
    int across_first;
    uint8_t *ring; /* the box's newest rows, resized across if that comes first */
    size_t ring_bytes;
    int ring_rows, made; /* `made` counts from the box's top */
    uint8_t *sources[2], *mixed[2], *resized[2];
    int16_t *sums;
    uint8_t *chroma[2];
    const uint8_t **taps;
    uint8_t *scratch; /* for the scan */
} Rows;

void decoder_start(Decoder *decoder, int allow_simd) { decoder->pixels = pixels_select(allow_simd); }

void decoder_stop(Decoder *decoder) {
    free(decoder->memory);
    decoder->memory = NULL;
    decoder->memory_bytes = 0;
}

static int reserve(Decoder *decoder, size_t bytes) {
    if (bytes <= decoder->memory_bytes) return 1;
    free(decoder->memory);
    decoder->memory = malloc(bytes);
    decoder->memory_bytes = decoder->memory ? bytes : 0;
    return decoder->memory != NULL;
}

/* Hand out a part of the memory, on a cache line; with no base only the need is counted. */
static void *part(uint8_t *base, size_t *used, size_t bytes) {
    void *start = base ? base + *used : NULL;
    *used += (bytes + PADDING + 63) & ~(size_t)63;
    return start;
}

/* ---- blocks to planes ---- */

static int clamped(int value, int least, int most) { return value < least ? least : value > most ? most : value; }

static void fill_flat(uint8_t *out, ptrdiff_t stride, int dc, int quantiser) {
    const int value = clamped((int16_t)(dc * quantiser) * 4, -32768, 32767);
    const int level = clamped(((value + 16) >> 5) + 128, 0, 255);
    for (int i = 0; i < 8; i++) memset(out + i * stride, level, 8);
}

static void take_block(Sink *sink, int component, int x, int y, int count) {
    Planes *planes = (Planes *)sink; /* its first member */
    const Plane *plane = &planes->plane[component];
    const uint16_t *quantiser = planes->jpeg->quantiser[planes->jpeg->component[component].quantiser];
    uint8_t *out = plane->samples + (8 * y - plane->top) * plane->stride + (8 * x - plane->left);
    if (!count) {
        fill_flat(out, plane->stride, sink->values[0], quantiser[0]);
        return;
    }
    const Block block = {sink->values, quantiser, out, plane->stride};
    if (planes->slot) planes->pixels->inverse_dct(&planes->waiting, &block);
    else planes->waiting = block;
    planes->slot ^= 1;
    sink->values = planes->values[planes->slot];
}

static Status decode_planes(Planes *planes, Region region, uint8_t *scratch) {
    planes->sink.take = take_block;
    planes->sink.values = planes->values[0];
    planes->slot = 0;
    Status status = scan_region(planes->jpeg, region, &planes->sink, scratch);
    if (planes->slot) planes->pixels->inverse_dct(&planes->waiting, &planes->waiting);
    return status;
}

/* ---- planes to rows of pixels ---- */

static const uint8_t *sample(const Plane *plane, int x, int y) {
    return plane->samples + (y - plane->top) * plane->stride + (x - plane->left);
}

/* Return one row of a chroma plane at the luma's resolution, from the box's left on. */
static const uint8_t *chroma_row(const Rows *rows, int component, int y) {
    const Jpeg *jpeg = rows->jpeg;
    const Component *c = &jpeg->component[component];
    const Plane *plane = &rows->planes->plane[component];
    const int left = rows->request->left, right = rows->request->right;
    uint8_t *out = rows->chroma[component - 1];
    const int near = jpeg->v_max == 2 ? y / 2 : y;
    const int far = jpeg->v_max == 2 ? clamped(y & 1 ? near + 1 : near - 1, 0, c->height - 1) : near;
    if (jpeg->h_max == 1 && jpeg->v_max == 1) return sample(plane, left, y);
    if (jpeg->h_max == 1) {
        rows->pixels->upsample_h1v2(
            out, sample(plane, left, near), sample(plane, left, far), y & 1 ? 2 : 1, right - left);
        return out;
    }
    const int first = left / 2, count = (right - 1) / 2 - first + 1;
    const int end = clamped(c->width, 0, plane->left + (int)plane->stride);
    const Edges edges = {first > plane->left, first + count < end};
    if (jpeg->v_max == 2)
        rows->pixels->upsample_h2v2(
            out, rows->sums, sample(plane, first, near), sample(plane, first, far), count, edges);
    else
        rows->pixels->upsample_h2v1(out, rows->sums, sample(plane, first, near), count, edges);
    return out + (left & 1);
}

static uint8_t *ring_row(const Rows *rows, int y) {
    return rows->ring + (size_t)(y % rows->ring_rows) * rows->ring_bytes;
}

/* Make two more rows of the box, or the last one twice. */
static void make_rows(Rows *rows) {
    const Request *request = rows->request;
    const int last = request->bottom - request->top - 1;
    uint8_t *const ring[2] = {ring_row(rows, rows->made), ring_row(rows, rows->made + 1)};
    for (int i = 0; i < 2; i++) {
        const int y = request->top + clamped(rows->made + i, 0, last);
        const uint8_t *luma = sample(&rows->planes->plane[0], request->left, y);
        const uint8_t *chroma[2] = {rows->chroma[0], rows->chroma[1]}; /* of a gray image: all 128 */
        for (int c = 1; c < rows->jpeg->components; c++) chroma[c - 1] = chroma_row(rows, c, y);
        uint8_t *out = rows->across_first ? rows->sources[i] : ring[i];
        rows->pixels->to_rgb(out, luma, chroma[0], chroma[1], request->right - request->left);
    }
    if (rows->across_first) {
        const uint8_t *const sources[2] = {rows->sources[0], rows->sources[1]};
        rows->pixels->resize_rows(ring, sources, rows->across, request->flip);
    }
    rows->made += 2;
}

static void mix_row(Rows *rows, uint8_t *out, int i) {
    const Filter *down = rows->down;
    const int first = down->first[i], count = down->count[i];
    const int width = rows->across_first ? rows->request->width : rows->request->right - rows->request->left;
    while (rows->made < first + count) make_rows(rows);
    for (int t = 0; t < count; t++) rows->taps[t] = ring_row(rows, first + t);
    if (count & 1) rows->taps[count] = rows->taps[count - 1]; /* its weight is 0 */
    rows->pixels->mix_rows(out, rows->taps, down->weights + (size_t)i * (size_t)down->taps, (count + 1) & ~1, width);
}

static void resize(Rows *rows) {
    const Request *request = rows->request;
    const uint8_t *const mixed[2] = {rows->mixed[0], rows->mixed[1]};
    for (int i = 0; i < request->height; i += 2) {
        const int count = i + 1 < request->height ? 2 : 1;
        for (int j = 0; j < count; j++) mix_row(rows, rows->mixed[j], i + j);
        if (!rows->across_first) rows->pixels->resize_rows(rows->resized, mixed, rows->across, request->flip);
        for (int j = 0; j < count; j++)
            rows->pixels->pack_row(
                request->out + (size_t)(i + j) * 3 * (size_t)request->width,
                rows->across_first ? mixed[j] : rows->resized[j], request->width);
    }
}

/* Pillow 13 resizes down first where that shortens the work by much. */
static int across_comes_first(const Request *request) {
    const int shorter = request->bottom - request->top - request->height;
    const int narrower = request->right - request->left - request->width;
    return !(shorter > 0 && shorter > 2 * narrower);
}

/* ---- the whole ---- */

/* The MCUs that hold the box and the chroma samples beside it that its upsampling looks at. */
static Region needed_mcus(const Jpeg *jpeg, const Request *request) {
    const int h = 8 * jpeg->h_max, v = 8 * jpeg->v_max;
    const int beside = jpeg->h_max - 1, above = jpeg->v_max - 1;
    return (Region){
        clamped(request->left - beside, 0, jpeg->width) / h,
        clamped(request->top - above, 0, jpeg->height) / v,
        clamped(request->right + beside + h - 1, 0, jpeg->mcus_x * h) / h,
        clamped(request->bottom + above + v - 1, 0, jpeg->mcus_y * v) / v,
    };
}

/* Give every part its place in the memory and return how much that is; with no base only count. */
static size_t lay_out(uint8_t *base, Planes *planes, Rows *rows, Region region) {
    const Jpeg *jpeg = planes->jpeg;
    const size_t width = (size_t)(rows->request->right - rows->request->left);
    const size_t taps = (size_t)rows->down->taps;
    size_t used = 0;
    for (int i = 0; i < jpeg->components; i++) {
        const Component *c = &jpeg->component[i];
        Plane *plane = &planes->plane[i];
        plane->left = 8 * c->h * region.left;
        plane->top = 8 * c->v * region.top;
        plane->stride = 8 * c->h * (ptrdiff_t)(region.right - region.left);
        plane->samples = part(base, &used, (size_t)plane->stride * (size_t)(8 * c->v * (region.bottom - region.top)));
    }
    const size_t out_width = (size_t)rows->request->width, beyond = (size_t)rows->across->taps;
    const size_t row_bytes = PIXEL * (width > out_width ? width : out_width) + PIXEL * beyond;
    rows->ring_rows = (int)taps + 2;
    rows->ring_bytes = (row_bytes + PADDING) & ~(size_t)31;
    rows->ring = part(base, &used, rows->ring_bytes * (taps + 2));
    for (int i = 0; i < 2; i++) {
        rows->sources[i] = part(base, &used, row_bytes);
        rows->mixed[i] = part(base, &used, row_bytes);
        rows->resized[i] = part(base, &used, row_bytes);
    }
    rows->chroma[0] = part(base, &used, width + 2);
    rows->chroma[1] = part(base, &used, width + 2);
    rows->sums = part(base, &used, (width / 2 + 4) * sizeof *rows->sums);
    rows->taps = part(base, &used, (taps + 1) * sizeof *rows->taps);
    rows->scratch = part(base, &used, scan_scratch_bytes(jpeg));
    return used;
}

static Status decode_and_resize(Decoder *decoder, const Request *request, const Filter *across, const Filter *down) {
    const Jpeg *jpeg = &decoder->jpeg;
    const Region region = needed_mcus(jpeg, request);
    const size_t width = (size_t)(request->right - request->left);
    Planes planes;
    planes.jpeg = jpeg;
    planes.pixels = decoder->pixels;
    Rows rows = {
        .jpeg = jpeg, .pixels = decoder->pixels, .request = request, .planes = &planes, .across = across, .down = down,
        .across_first = across_comes_first(request)};
    if (!reserve(decoder, lay_out(NULL, &planes, &rows, region))) return NO_MEMORY;
    lay_out(decoder->memory, &planes, &rows, region);
    Status status = decode_planes(&planes, region, rows.scratch);
    if (status != OK) return status;
    if (jpeg->components == 1) {
        memset(rows.chroma[0], 128, width);
        memset(rows.chroma[1], 128, width);
    }
    for (int i = 0; i < 2; i++) { /* behind a row's pixels weights are 0, but the memory is read */
        memset(rows.sources[i] + PIXEL * width, 0, PIXEL * (size_t)across->taps);
        memset(rows.mixed[i], 0, PIXEL * (width + (size_t)across->taps));
    }
    resize(&rows);
    return OK;
}

Status decoder_run(Decoder *decoder, const Request *request) {
    Status status = jpeg_parse(&decoder->jpeg, request->data, request->size, request->max_pixels);
    if (status != OK) return status;
    const Jpeg *jpeg = &decoder->jpeg;
    if (request->left < 0 || request->top < 0 || request->right > jpeg->width || request->bottom > jpeg->height ||
        request->left >= request->right || request->top >= request->bottom)
        return BAD_BOX;
    /* libjpeg upsamples images of four pixels and less in another way */
    if (jpeg->h_max == 2 && jpeg->component[1].width <= 2) return UNSUPPORTED;
    Filter across, down;
    if (!filter_make(&across, request->right - request->left, request->width, request->bicubic)) return NO_MEMORY;
    if (!filter_make(&down, request->bottom - request->top, request->height, request->bicubic)) {
        filter_free(&across);
        return NO_MEMORY;
    }
    status = decode_and_resize(decoder, request, &across, &down);
    filter_free(&across);
    filter_free(&down);
    return status;
}

Status decoder_check(Decoder *decoder, const uint8_t *data, size_t size, uint64_t max_pixels) {
    Status status = jpeg_parse(&decoder->jpeg, data, size, max_pixels);
    if (status != OK) return status;
    const Region all = {0, 0, decoder->jpeg.mcus_x, decoder->jpeg.mcus_y};
    if (!reserve(decoder, scan_scratch_bytes(&decoder->jpeg))) return NO_MEMORY;
    return scan_region(&decoder->jpeg, all, NULL, decoder->memory);
}
