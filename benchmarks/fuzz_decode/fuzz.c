/* Feeds mutated JPEGs to the kernel, built with AddressSanitizer and UndefinedBehaviorSanitizer: a finding aborts.
 *
 * usage: fuzz SECONDS SEED FILE...   The sequence of mutations is a function of the seed. */
#include "../../data_pipeline/decode/csrc/announce.h"
#include "../../data_pipeline/decode/csrc/region.h"
#include "../../data_pipeline/decode/csrc/tile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_PIXELS = 1 << 20, SIDE = 61, MAX_FILES = 512, STATUSES = 6 };

typedef struct {
    uint8_t *bytes;
    size_t size;
} File;

static uint64_t state;

static uint64_t draw(uint64_t below) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return below ? (state >> 11) % below : 0;
}

static File read_file(const char *path) {
    File file = {NULL, 0};
    FILE *stream = fopen(path, "rb");
    if (!stream) exit(2);
    fseek(stream, 0, SEEK_END);
    file.size = (size_t)ftell(stream);
    rewind(stream);
    file.bytes = malloc(file.size);
    if (fread(file.bytes, 1, file.size, stream) != file.size) exit(2);
    fclose(stream);
    return file;
}

/* Return a position, half of the time in the header, where the structure is. */
static size_t place(const File *file) {
    size_t range = draw(2) && file->size > 700 ? 700 : file->size;
    return draw(range);
}

static void mutate_once(File *file, const File *other) {
    static const uint8_t telling[] = {0x00, 0xFF, 0x01, 0x7F, 0x80, 0xD0, 0xD9, 0xDA, 0xC0, 0xC4, 0xDB, 0xDD, 0x11, 0x22, 0x3F};
    if (file->size < 4) return;
    size_t at = place(file), length = 1 + draw(draw(2) ? 8 : 400);
    if (at + length > file->size) length = file->size - at;
    switch (draw(8)) {
    case 0:
    case 1:
        file->bytes[at] ^= (uint8_t)(1u << draw(8));
        break;
    case 2:
        file->bytes[at] = telling[draw(sizeof telling)];
        break;
    case 3:
        for (size_t i = 0; i < length; i++) file->bytes[at + i] = (uint8_t)draw(256);
        break;
    case 4: /* cut out */
        memmove(file->bytes + at, file->bytes + at + length, file->size - at - length);
        file->size -= length;
        break;
    case 5: /* cut off */
        if (!draw(4)) file->size = at;
        break;
    case 6: /* paste from another file */
        if (other->size > length) memcpy(file->bytes + at, other->bytes + draw(other->size - length), length);
        break;
    default: /* move within the file */
        memmove(file->bytes + at, file->bytes + draw(file->size - length + 1), length);
    }
}

/* Of exactly its size, so that a byte too far is seen. */
static File mutated(const File *from, const File *other) {
    File file = {malloc(from->size), from->size};
    memcpy(file.bytes, from->bytes, from->size);
    for (uint64_t count = 1 + draw(6); count > 0; count--) mutate_once(&file, other);
    File exact = {malloc(file.size ? file.size : 1), file.size};
    memcpy(exact.bytes, file.bytes, file.size);
    free(file.bytes);
    return exact;
}

static Status decode(Decoder *decoder, const File *file) {
    const int width = decoder->jpeg.width > 0 ? decoder->jpeg.width : 1; /* of the image before: mostly the same */
    const int height = decoder->jpeg.height > 0 ? decoder->jpeg.height : 1;
    Request request = {.data = file->bytes, .size = file->size, .max_pixels = MAX_PIXELS};
    request.left = (int)draw((uint64_t)width);
    request.top = (int)draw((uint64_t)height);
    request.right = request.left + 1 + (int)draw((uint64_t)(width - request.left));
    request.bottom = request.top + 1 + (int)draw((uint64_t)(height - request.top));
    request.flip = (int)draw(2);
    request.bicubic = (int)draw(2);
    request.width = 1 + (int)draw(SIDE);
    request.height = 1 + (int)draw(SIDE);
    request.out = malloc((size_t)request.width * (size_t)request.height * 3);
    decoder_start(decoder, (int)draw(2));
    const Status status = decoder_run(decoder, &request);
    free(request.out);
    return status;
}

int main(int count, char **arguments) {
    static File files[MAX_FILES];
    unsigned long long seen[STATUSES] = {0}, tiled = 0, total = 0;
    if (count < 4) return 2;
    const time_t until = time(NULL) + atol(arguments[1]);
    int known = count - 3 < MAX_FILES ? count - 3 : MAX_FILES;
    state = 0x9E3779B97F4A7C15u ^ (uint64_t)atoll(arguments[2]) * 0xBF58476D1CE4E5B9u;
    for (int i = 0; i < known; i++) files[i] = read_file(arguments[3 + i]);
    Decoder *decoder = calloc(1, sizeof *decoder);
    while (time(NULL) < until) {
        for (int i = 0; i < 200; i++, total++) {
            File file = mutated(&files[draw((uint64_t)known)], &files[draw((uint64_t)known)]);
            seen[decode(decoder, &file)]++;
            Announced announced;
            jpeg_announce(&announced, file.bytes, file.size);
            decoder_check(decoder, file.bytes, file.size, MAX_PIXELS);
            uint8_t *bytes;
            size_t size;
            if (i % 8 == 0 && tile_jpeg(file.bytes, file.size, 1 + (int)draw(200), MAX_PIXELS, &bytes, &size) == OK) {
                tiled++;
                tile_free(bytes);
            }
            free(file.bytes);
        }
        if (total % 4000 == 0) decoder_stop(decoder); /* let fresh memory be overrun, too */
    }
    printf(
        "{\"inputs\": %llu, \"ok\": %llu, \"unsupported\": %llu, \"corrupt\": %llu, \"limit\": %llu, "
        "\"bad_box\": %llu, \"tiled\": %llu}\n",
        total, seen[0], seen[1], seen[2], seen[3], seen[4], tiled);
    decoder_stop(decoder);
    free(decoder);
    for (int i = 0; i < known; i++) free(files[i].bytes);
    return 0;
}
