/* Reading a JPEG's markers. See jpeg.h. */
#include "jpeg.h"

#include <string.h>

enum { SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, JPG = 0xC8, DAC = 0xCC, SOF15 = 0xCF };
enum { RST0 = 0xD0, SOI = 0xD8, EOI = 0xD9, SOS = 0xDA, DQT = 0xDB, DRI = 0xDD, APP0 = 0xE0, APP14 = 0xEE };

const uint8_t natural_order[BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

typedef struct {
    int jfif, adobe, adobe_transform, frame;
} Seen;

static unsigned word(const uint8_t *p) { return (unsigned)p[0] << 8 | p[1]; }

static Status read_quantisers(Jpeg *jpeg, const uint8_t *p, size_t size) {
    while (size > 0) {
        int wide = p[0] >> 4, index = p[0] & 15;
        size_t need = 1 + (wide ? 2 * BLOCK : BLOCK);
        if (wide > 1 || index > 3 || size < need) return CORRUPT;
        for (int i = 0; i < BLOCK; i++)
            jpeg->quantiser[index][natural_order[i]] = wide ? word(p + 1 + 2 * i) : p[1 + i];
        jpeg->quantiser_defined[index] = 1;
        p += need;
        size -= need;
    }
    return OK;
}

static Status read_huffman(Jpeg *jpeg, const uint8_t *p, size_t size) {
    while (size > 0) {
        int is_ac = p[0] >> 4, index = p[0] & 15;
        size_t symbols = 0;
        if (is_ac > 1 || index > 3 || size < 17) return CORRUPT;
        Huffman *table = is_ac ? &jpeg->ac[index] : &jpeg->dc[index];
        for (int i = 1; i <= 16; i++) symbols += table->counts[i] = p[i];
        if (symbols > 256 || size < 17 + symbols) return CORRUPT;
        memset(table->symbols, 0, sizeof table->symbols);
        memcpy(table->symbols, p + 17, symbols);
        table->defined = 1;
        p += 17 + symbols;
        size -= 17 + symbols;
    }
    return OK;
}

static Status read_frame(Jpeg *jpeg, const uint8_t *p, size_t size, uint64_t max_pixels) {
    if (size < 6) return CORRUPT;
    if (p[0] != 8) return UNSUPPORTED;
    jpeg->height = (int)word(p + 1);
    jpeg->width = (int)word(p + 3);
    jpeg->components = p[5];
    if (jpeg->width == 0 || jpeg->height == 0) return UNSUPPORTED;
    if ((uint64_t)jpeg->width * (uint64_t)jpeg->height > max_pixels) return LIMIT;
    if (jpeg->components != 1 && jpeg->components != 3) return UNSUPPORTED;
    if (size != 6 + 3 * (size_t)jpeg->components) return CORRUPT;
    for (int i = 0; i < jpeg->components; i++) {
        Component *c = &jpeg->component[i];
        c->id = p[6 + 3 * i];
        c->h = p[7 + 3 * i] >> 4;
        c->v = p[7 + 3 * i] & 15;
        c->quantiser = p[8 + 3 * i];
        if (c->quantiser > 3) return CORRUPT;
    }
    return OK;
}

static Status read_scan(Jpeg *jpeg, const uint8_t *p, size_t size) {
    if (size < 1 || p[0] != jpeg->components) return UNSUPPORTED; /* several scans */
    if (size != 4 + 2 * (size_t)jpeg->components) return CORRUPT;
    for (int i = 0; i < jpeg->components; i++) {
        Component *c = &jpeg->component[i];
        if (p[1 + 2 * i] != c->id) return UNSUPPORTED;
        c->dc = p[2 + 2 * i] >> 4;
        c->ac = p[2 + 2 * i] & 15;
        if (c->dc > 3 || c->ac > 3) return CORRUPT;
    }
    const uint8_t *spectral = p + 1 + 2 * jpeg->components;
    return spectral[0] == 0 && spectral[1] == 63 && spectral[2] == 0 ? OK : UNSUPPORTED;
}

/* libjpeg's guess of the colour space, restricted to what is decoded here: gray and YCbCr. */
static int is_ycc(const Jpeg *jpeg, const Seen *seen) {
    const Component *c = jpeg->component;
    if (seen->jfif) return 1;
    if (seen->adobe) return seen->adobe_transform == 1;
    return c[0].id == 1 && c[1].id == 2 && c[2].id == 3;
}

static Status set_geometry(Jpeg *jpeg) {
    Component *c = jpeg->component;
    if (jpeg->components == 1) c[0].h = c[0].v = 1; /* one component: an MCU is one block */
    jpeg->h_max = c[0].h;
    jpeg->v_max = c[0].v;
    if (jpeg->h_max < 1 || jpeg->h_max > 2 || jpeg->v_max < 1 || jpeg->v_max > 2) return UNSUPPORTED;
    for (int i = 0; i < jpeg->components; i++) {
        if (i > 0 && (c[i].h != c[1].h || c[i].v != c[1].v)) return UNSUPPORTED;
        if (i > 0 && (c[i].h != 1 || c[i].v != 1)) return UNSUPPORTED;
        c[i].width = (jpeg->width * c[i].h + jpeg->h_max - 1) / jpeg->h_max;
        c[i].height = (jpeg->height * c[i].v + jpeg->v_max - 1) / jpeg->v_max;
        if (!jpeg->quantiser_defined[c[i].quantiser]) return UNSUPPORTED;
        if (!jpeg->dc[c[i].dc].defined || !jpeg->ac[c[i].ac].defined) return UNSUPPORTED;
    }
    jpeg->mcus_x = (jpeg->width + 8 * jpeg->h_max - 1) / (8 * jpeg->h_max);
    jpeg->mcus_y = (jpeg->height + 8 * jpeg->v_max - 1) / (8 * jpeg->v_max);
    return OK;
}

static Status build_tables(Jpeg *jpeg) {
    int dc_built = 0, ac_built = 0;
    for (int i = 0; i < jpeg->components; i++) {
        const Component *c = &jpeg->component[i];
        Status status = OK;
        if (!(dc_built >> c->dc & 1)) status = huffman_build(&jpeg->dc[c->dc], 1);
        if (status == OK && !(ac_built >> c->ac & 1)) status = huffman_build(&jpeg->ac[c->ac], 0);
        if (status != OK) return status;
        dc_built |= 1 << c->dc;
        ac_built |= 1 << c->ac;
    }
    return OK;
}

static void reset(Jpeg *jpeg) {
    jpeg->restart_interval = 0;
    memset(jpeg->quantiser_defined, 0, sizeof jpeg->quantiser_defined);
    for (int i = 0; i < 4; i++) jpeg->dc[i].defined = jpeg->ac[i].defined = 0;
}

static Status read_segment(
    Jpeg *jpeg, Seen *seen, int marker, const uint8_t *p, size_t size, uint64_t max_pixels) {
    switch (marker) {
    case DQT:
        return read_quantisers(jpeg, p, size);
    case DHT:
        return read_huffman(jpeg, p, size);
    case DRI:
        if (size != 2) return CORRUPT;
        jpeg->restart_interval = (int)word(p);
        return OK;
    case APP0:
        if (size >= 5 && memcmp(p, "JFIF", 5) == 0) seen->jfif = 1;
        return OK;
    case APP14:
        if (size >= 12 && memcmp(p, "Adobe", 5) == 0) {
            seen->adobe = 1;
            seen->adobe_transform = p[11];
        }
        return OK;
    case SOF0:
    case SOF1:
        if (seen->frame) return CORRUPT;
        seen->frame = 1;
        return read_frame(jpeg, p, size, max_pixels);
    default:
        if ((marker >= SOF0 && marker <= SOF15) || marker < SOF0) return UNSUPPORTED;
        return OK;
    }
}

Status jpeg_parse(Jpeg *jpeg, const uint8_t *data, size_t size, uint64_t max_pixels) {
    const uint8_t *p = data, *end = data + size;
    Seen seen = {0, 0, 0, 0};
    reset(jpeg);
    if (size < 4 || p[0] != 0xFF || p[1] != SOI) return UNSUPPORTED;
    p += 2;
    for (;;) {
        while (end - p >= 2 && p[0] == 0xFF && p[1] == 0xFF) p++; /* fill bytes */
        if (end - p < 4 || p[0] != 0xFF) return CORRUPT;
        int marker = p[1];
        size_t length = word(p + 2);
        if (length < 2 || (size_t)(end - p) < 2 + length) return CORRUPT;
        const uint8_t *body = p + 4;
        p += 2 + length;
        if (marker == SOS) {
            if (!seen.frame) return CORRUPT;
            Status status = read_scan(jpeg, body, length - 2);
            if (status == OK) status = set_geometry(jpeg);
            if (status == OK && jpeg->components == 3 && !is_ycc(jpeg, &seen)) status = UNSUPPORTED;
            if (status == OK) status = build_tables(jpeg);
            jpeg->scan = p;
            jpeg->end = end;
            return status;
        }
        if (marker >= RST0 && marker <= EOI) return CORRUPT;
        Status status = read_segment(jpeg, &seen, marker, body, length - 2, max_pixels);
        if (status != OK) return status;
    }
}
