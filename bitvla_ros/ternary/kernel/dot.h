/* The register tile of instruction sets whose dot product takes four columns of a lane's row at once. Included before panel.h, with
 *   zero, broadcast    see avx512vnni.c */
#ifndef BITVLA_DOT_H
#define BITVLA_DOT_H

#include "finish.h"

/* accumulators [tokens, LANES vectors], `rows` apart, = codes * strip, added to what is there if `add`.
 * On the way it fetches what is wanted soon, at every step-th group from `line` on: all at once would have to wait for each other. */
INLINE void tile(
    const int tokens, const int vectors, const int8_t *codes, int64_t ld, const uint8_t *strip, int64_t groups, bool add,
    int32_t *accumulators, int rows, const struct soon *soon, int64_t line, int64_t step)
{
    VECTOR sum[TOKENS][VECTORS];
    int32_t *row = accumulators;
    UNROLL for (int t = 0; t < tokens; t++, row = next_row(row, rows))
        UNROLL for (int v = 0; v < vectors; v++)
            sum[t][v] = add ? load(row + v * LANES) : zero();
    for (int64_t g = 0; g < groups; g++) {
        if (g == line) {
            fetch(soon, tokens, g);
            line += step;
        }
        VECTOR weights[VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            weights[v] = load(strip + (g * vectors + v) * LANES * 4);
        UNROLL for (int t = 0; t < tokens; t++) {
            const VECTOR four = broadcast(codes + t * ld + 4 * g);
            UNROLL for (int v = 0; v < vectors; v++)
                sum[t][v] = dot(sum[t][v], weights[v], four);
        }
    }
    row = accumulators;
    UNROLL for (int t = 0; t < tokens; t++, row = next_row(row, rows))
        UNROLL for (int v = 0; v < vectors; v++)
            store(row + v * LANES, sum[t][v]);
}

#endif
