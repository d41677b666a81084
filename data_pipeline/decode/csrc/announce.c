/* Reading a JPEG's facts. See announce.h; data_pipeline/decode/jpeg_header.py does the same for every file. */
#include "announce.h"

#include <string.h>

enum { SOF0 = 0xC0, DHT = 0xC4, JPG = 0xC8, DAC = 0xCC, SOF15 = 0xCF, SOI = 0xD8, EOI = 0xD9, SOS = 0xDA, DRI = 0xDD };
enum { TEM = 0x01, RST0 = 0xD0, APP1 = 0xE1, ORIENTATION = 0x0112, SHORT = 3, ENTRY = 12 };

typedef struct {
    const uint8_t *bytes;
    size_t size;
    int big_endian;
} Tiff;

static unsigned word(const uint8_t *p) { return (unsigned)p[0] << 8 | p[1]; }

static uint32_t number(const Tiff *tiff, size_t at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | tiff->bytes[at + (size_t)(tiff->big_endian ? i : bytes - 1 - i)];
    return value;
}

static int exif_orientation(const uint8_t *bytes, size_t size) {
    const Tiff tiff = {bytes, size, size >= 4 && memcmp(bytes, "MM\0*", 4) == 0};
    if (size < 8 || (!tiff.big_endian && memcmp(bytes, "II*\0", 4) != 0)) return 1;
    size_t at = number(&tiff, 4, 4);
    if (at + 2 > size) return 1;
    unsigned entries = number(&tiff, at, 2);
    at += 2;
    for (; entries > 0 && at + ENTRY <= size; entries--, at += ENTRY) {
        if (number(&tiff, at, 2) != ORIENTATION || number(&tiff, at + 2, 2) != SHORT || number(&tiff, at + 4, 4) != 1)
            continue;
        const uint32_t value = number(&tiff, at + 8, 2);
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

Status jpeg_announce(Announced *found, const uint8_t *data, size_t size) {
    const uint8_t *p = data + 2, *end = data + size;
    int framed = 0;
    memset(found, 0, sizeof *found);
    found->orientation = 1;
    if (size < 4 || data[0] != 0xFF || data[1] != SOI) return UNSUPPORTED;
    while (end - p >= 4 && p[0] == 0xFF) {
        const int marker = p[1];
        const size_t length = word(p + 2);
        const uint8_t *body = p + 4;
        if (marker <= TEM || (marker >= RST0 && marker <= EOI) || marker == 0xFF) return UNSUPPORTED;
        if (length < 2 || (size_t)(end - p) < 2 + length) return UNSUPPORTED;
        p += 2 + length;
        const size_t left = length - 2;
        if (marker >= SOF0 && marker <= SOF15 && marker != DHT && marker != JPG && marker != DAC) {
            if (left < 6) return UNSUPPORTED;
            framed = 1;
            found->coding = marker;
            found->bits = body[0];
            found->height = (int)word(body + 1);
            found->width = (int)word(body + 3);
            found->components = body[5];
        } else if (marker == DRI && left >= 2) {
            found->restart_interval = (int)word(body);
        } else if (marker == APP1 && left >= 6 && memcmp(body, "Exif\0\0", 6) == 0) {
            found->orientation = exif_orientation(body + 6, left - 6);
        } else if (marker == SOS) {
            return framed ? OK : UNSUPPORTED;
        }
    }
    return UNSUPPORTED;
}
