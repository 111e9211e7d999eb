/* Exact products of int8 activations and ternary weights, on packed weights.
 *
 * Packed weights, uint8 [blocks, stride, 4]: bits 2s..2s+1 of byte [b, r, j] hold code + 1 of row r, column 16 b + 4 s + j.
 * stride is the number of rows a block holds, a multiple of 16; what pads rows and columns is code 0 (bits 01).
 * Activations, int8 [tokens, 16 blocks] with zeros behind the last column, rows ld_codes bytes apart, and the sum of each token's codes.
 *
 * Results are exact and depend neither on the instruction set nor on the number of threads; bits 11 are no code, and what comes of them
 * is undefined. Several threads may call at once. Every function checks its arguments and returns one of enum bitvla_error. */
#ifndef BITVLA_TERNARY_H
#define BITVLA_TERNARY_H

#include <stdint.h>

enum bitvla_error {
    BITVLA_OK = 0,
    BITVLA_OUT_OF_MEMORY = -1,  /* for the scratch of one call: at most 0.3 MB a thread */
    BITVLA_BAD_ARGUMENT = -2,   /* a null pointer, a size below 1, or strides that cannot hold the sizes */
    BITVLA_UNSUPPORTED = -3,    /* this processor, or this build, lacks the instruction set */
};

enum bitvla_isa {
    BITVLA_SCALAR = 0,
    BITVLA_AVX2 = 1,
    BITVLA_AVXVNNI = 2,
    BITVLA_AVX512VNNI = 3,
    BITVLA_NEON = 4,            /* with the dot product instructions */
    BITVLA_ISAS = 5,
};

/* Bit i is set where instruction set i runs here. */
uint32_t bitvla_isas(void);

/* out[m][n] = sum over k of activation[m][k] * weight[n][k], int32 [tokens, rows], rows ld_out elements apart. */
int bitvla_matmul(
    const int8_t *codes, int64_t ld_codes, const int32_t *sums, const uint8_t *words, int64_t tokens, int64_t rows, int64_t stride,
    int64_t blocks, int32_t *out, int64_t ld_out, int isa, int threads);

/* out[m][n] = (float)product[m][n] * ((scale * absmax[m]) / 127) [+ bias[n]] [+ residual[m][n]], in float32 and in that order.
 * bias and residual may be null; out may be residual. */
int bitvla_linear(
    const int8_t *codes, int64_t ld_codes, const int32_t *sums, const float *absmax, const uint8_t *words, float scale, int64_t tokens,
    int64_t rows, int64_t stride, int64_t blocks, const float *bias, const float *residual, int64_t ld_residual, float *out,
    int64_t ld_out, int isa, int threads);

/* The multiply-accumulates a second that `threads` threads together do on registers alone, with the instructions that the product
 * uses: runs for about that many seconds (at most 60). What products are measured against. */
int bitvla_ceiling(int isa, double seconds, int threads, double *macs_per_second);

#endif
