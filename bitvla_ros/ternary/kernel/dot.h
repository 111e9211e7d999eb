/* The register tile of instruction sets whose dot product takes four columns of a lane's row at once. Included before panel.h, with
 *   zero, broadcast, dot, REGISTER    see avx512vnni.c */
#ifndef BITVLA_DOT_H
#define BITVLA_DOT_H

#include "finish.h"

/* accumulators [tokens, LANES vectors], `rows` apart, = codes * strip, added to what is there if `add` */
INLINE void tile(
    const int tokens, const int vectors, const int8_t *codes, int64_t ld, const uint8_t *strip, int64_t groups, bool add,
    int32_t *accumulators, int rows)
{
    VECTOR sum[TOKENS][VECTORS];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int v = 0; v < vectors; v++)
            sum[t][v] = add ? load(accumulators + t * rows + v * LANES) : zero();
    for (int64_t g = 0; g < groups; g++) {
        VECTOR weights[VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            weights[v] = load(strip + (g * vectors + v) * LANES * 4);
        UNROLL for (int t = 0; t < tokens; t++) {
            const VECTOR four = broadcast(codes + t * ld + 4 * g);
            UNROLL for (int v = 0; v < vectors; v++)
                sum[t][v] = dot(sum[t][v], weights[v], four);
        }
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int v = 0; v < vectors; v++)
            store(accumulators + t * rows + v * LANES, sum[t][v]);
}

static double spin(int64_t rounds)
{
    VECTOR sum[TOKENS][VECTORS], weights = {0}, four = {0};
    /* The empty instructions change what the compiler knows of the values: nothing. */
    UNROLL for (int t = 0; t < TOKENS; t++)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            sum[t][v] = four;
            __asm__ volatile("" : "+" REGISTER(sum[t][v]));
        }
    for (int64_t i = 0; i < rounds; i++) {
        __asm__ volatile("" : "+" REGISTER(weights), "+" REGISTER(four));
        UNROLL for (int t = 0; t < TOKENS; t++)
            UNROLL for (int v = 0; v < VECTORS; v++)
                sum[t][v] = dot(sum[t][v], weights, four);
    }
    UNROLL for (int t = 0; t < TOKENS; t++)
        UNROLL for (int v = 0; v < VECTORS; v++)
            __asm__ volatile("" : : REGISTER(sum[t][v]));
    return (double)rounds * TOKENS * VECTORS * LANES * 4;
}

#endif
