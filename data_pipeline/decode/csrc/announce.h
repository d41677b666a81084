/* What a JPEG announces before its first scan, without decoding anything: see jpeg_announce. */
#ifndef COATNET_ANNOUNCE_H
#define COATNET_ANNOUNCE_H

#include "jpeg.h"

typedef struct {
    int width, height, components, bits;
    int coding;      /* the start-of-frame marker's code */
    int orientation; /* EXIF's, 1 to 8; 1 where it is missing or broken */
    int restart_interval;
} Announced;

/* Walk the segments up to the first scan. UNSUPPORTED: they do not simply follow each other; a patient reader may still
 * make something of them. Sizes and processes are not judged. */
Status jpeg_announce(Announced *found, const uint8_t *data, size_t size);

#endif
