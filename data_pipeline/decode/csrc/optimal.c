/* Huffman codes that are optimal for given frequencies and no longer than 16 bits: Annex K.2 of the JPEG
 * standard (ITU T.81), with the reserved all-ones code. */
#include "optimal.h"

#include <string.h>

enum { RESERVED = 256, SYMBOLS = 257, LONGEST = 64 };

/* Merge the two rarest trees until one is left; `length` grows for each symbol of a merged tree. */
static void merge(uint64_t *frequency, int *length) {
    int next[SYMBOLS];
    for (int i = 0; i < SYMBOLS; i++) next[i] = -1;
    for (;;) {
        int rarest = -1, second = -1;
        for (int i = 0; i < SYMBOLS; i++) {
            if (!frequency[i]) continue;
            if (rarest < 0 || frequency[i] <= frequency[rarest]) {
                second = rarest;
                rarest = i;
            } else if (second < 0 || frequency[i] <= frequency[second]) {
                second = i;
            }
        }
        if (second < 0) return;
        frequency[rarest] += frequency[second];
        frequency[second] = 0;
        for (length[rarest]++; next[rarest] >= 0; length[rarest]++) rarest = next[rarest];
        next[rarest] = second;
        for (length[second]++; next[second] >= 0; length[second]++) second = next[second];
    }
}

/* Move codes of more than 16 bits up the tree, pair by pair. */
static void shorten(int *count) {
    for (int i = LONGEST; i > 16; i--) {
        while (count[i] > 0) {
            int j = i - 2;
            while (count[j] == 0) j--;
            count[i] -= 2;
            count[i - 1]++;
            count[j + 1] += 2;
            count[j]--;
        }
    }
}

int optimal_code(Code *code, const uint64_t *frequencies) {
    uint64_t frequency[SYMBOLS];
    int length[SYMBOLS] = {0}, count[LONGEST + 1] = {0}, longest = 16;
    memcpy(frequency, frequencies, 256 * sizeof *frequency);
    frequency[RESERVED] = 1;
    merge(frequency, length);
    for (int i = 0; i < SYMBOLS; i++) {
        if (length[i] > LONGEST) return 0;
        if (length[i]) count[length[i]]++;
    }
    shorten(count);
    while (longest > 0 && count[longest] == 0) longest--;
    count[longest]--; /* the reserved code is one of the longest */
    memset(code, 0, sizeof *code);
    for (int bits = 1; bits <= LONGEST; bits++)
        for (int symbol = 0; symbol < RESERVED; symbol++)
            if (length[symbol] == bits) code->symbols[code->used++] = (uint8_t)symbol;
    unsigned word = 0;
    for (int bits = 1, index = 0; bits <= 16; bits++, word <<= 1) {
        code->counts[bits] = (uint8_t)count[bits];
        for (int i = 0; i < count[bits]; i++, index++) {
            code->word[code->symbols[index]] = (uint16_t)word++;
            code->length[code->symbols[index]] = (uint8_t)bits;
        }
    }
    return 1;
}
