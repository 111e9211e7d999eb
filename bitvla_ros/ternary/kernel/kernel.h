/* What an instruction set brings to the product. */
#ifndef BITVLA_KERNEL_H
#define BITVLA_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "ternary.h"

enum { MOST_THREADS = 1024 };

/* Where sums go: integers if that is set, else y. */
struct output {
    const int32_t *sums;
    const float *absmax;
    float scale;
    const float *bias, *residual;
    int64_t ld_residual;
    float *y;
    int32_t *integers;
    int64_t ld;
};

/* Rows that will be wanted soon, of as many tokens as are multiplied: brought into the cache meanwhile, a line of each at a time. */
struct soon {
    int count;
    struct {
        const void *rows;
        int64_t pitch;  /* bytes */
    } of[3];
};

/* A panel is some rows, a multiple of 16, and some columns, unpacked to codes 0, 1, 2 in an order of the kernel's own.
 * Panels and accumulators are aligned to 64 bytes. */
struct kernel {
    int rows;     /* of a panel at most */
    int blocks;   /* of 16 columns, of a panel at most */
    int tokens;   /* that are multiplied at once, in registers, at most */

    /* words: of the panel's first row and block; stride: rows a block of words holds. */
    void (*unpack)(const uint8_t *words, int64_t stride, int64_t blocks, int rows, uint8_t *panel);

    /* accumulators [tokens, rows] = codes [tokens, 16 blocks] * panel, added to what is there if `add` */
    void (*accumulate)(
        const int8_t *codes, int64_t ld, int tokens, const uint8_t *panel, int64_t blocks, int rows, bool add, int32_t *accumulators,
        const struct soon *soon);

    /* accumulators [tokens, rows] -> the first `valid` rows of the output, at [token, row] */
    void (*finish)(const struct output *out, const int32_t *accumulators, int rows, int valid, int64_t token, int tokens, int64_t row);

    /* Multiply-accumulates on registers, `rounds` times over; returns how many it did. */
    double (*spin)(int64_t rounds);
};

/* Null where this build or this processor lacks the instruction set. */
const struct kernel *bitvla_kernel(int isa);

extern const struct kernel bitvla_scalar, bitvla_avx2, bitvla_avxvnni, bitvla_avx512vnni, bitvla_neon;

#endif
