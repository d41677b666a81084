/* Optimal Huffman codes; see optimal.c. */
#ifndef COATNET_OPTIMAL_H
#define COATNET_OPTIMAL_H

#include <stdint.h>

typedef struct {
    uint8_t counts[17], symbols[256];
    int used; /* of `symbols` */
    uint16_t word[256];
    uint8_t length[256];
} Code;

/* 0 when the frequencies are so uneven that a code would be longer than 64 bits. */
int optimal_code(Code *code, const uint64_t *frequencies);

#endif
