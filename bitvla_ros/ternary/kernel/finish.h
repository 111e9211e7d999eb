/* From integer sums to outputs. Included by every kernel, so that it is compiled for its instruction set. */
#ifndef BITVLA_FINISH_H
#define BITVLA_FINISH_H

#include "kernel.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Four bytes of a row belong to a group of four columns; a cache line, to sixteen groups. */
INLINE void fetch(const struct soon *soon, const int tokens, int64_t group)
{
    for (int i = 0; i < soon->count; i++)
        UNROLL for (int t = 0; t < tokens; t++)
            __builtin_prefetch((const char *)soon->of[i].rows + t * soon->of[i].pitch + 4 * group);
}

/* Keeps the compiler from computing, and spilling, the addresses of all rows beforehand. */
INLINE int32_t *next_row(int32_t *row, int rows)
{
    row += rows;
    __asm__("" : "+r"(row));
    return row;
}

/* One token's outputs. `n` is a constant to the callers that can afford one. */
INLINE void finish_token(const struct output *out, const int32_t *product, const int n, int64_t m, int64_t row)
{
    const int32_t sum = out->sums[m];  /* codes are one too high: 0, 1, 2 */
/* The next iteration reads nothing that this one writes, though y may be the residual. */
#define EACH _Pragma("GCC ivdep") for (int i = 0; i < n; i++)
    if (out->integers) {
        int32_t *integers = out->integers + m * out->ld + row;
        EACH integers[i] = product[i] - sum;
        return;
    }
    const float step = out->scale * out->absmax[m] / 127.0f;
    float *y = out->y + m * out->ld + row;
    const float *bias = out->bias ? out->bias + row : 0;
    const float *residual = out->residual ? out->residual + m * out->ld_residual + row : 0;
    if (bias && residual)
        EACH y[i] = (float)(product[i] - sum) * step + bias[i] + residual[i];
    else if (bias)
        EACH y[i] = (float)(product[i] - sum) * step + bias[i];
    else if (residual)
        EACH y[i] = (float)(product[i] - sum) * step + residual[i];
    else
        EACH y[i] = (float)(product[i] - sum) * step;
#undef EACH
}

static void finish(const struct output *out, const int32_t *accumulators, int rows, int valid, int64_t token, int tokens, int64_t row)
{
    for (int t = 0; t < tokens; t++, accumulators += rows)
        if (valid == 64)
            finish_token(out, accumulators, 64, token + t, row);
        else
            finish_token(out, accumulators, valid, token + t, row);
}

#endif
