/* Panels: unpacking them, and passing tokens over them in register tiles. Included with
 *   LANES                            32-bit lanes of a register: one row each
 *   VECTORS, TOKENS                  a tile: rows (in registers) by tokens, as many as the registers hold
 *   VECTOR, load, store, two_bits    see avx512vnni.c
 *   dot, REGISTER                    for the ceiling: the instructions that multiply and add, and the constraint of inline assembly
 *   tile                             see dot.h
 * A panel is strips of a tile's rows (what remains: strips of 16), each [columns / 4][rows][4]: a load brings four columns of LANES
 * rows, to be multiplied with four codes of one token, which are read where they are. Nothing is summed across lanes. */
#ifndef BITVLA_PANEL_H
#define BITVLA_PANEL_H

#include "finish.h"

enum { WIDE = VECTORS * LANES };

INLINE void unpack_strip(const uint8_t *words, int64_t stride, int64_t blocks, const int rows, uint8_t *strip)
{
    for (int64_t b = 0; b < blocks; b++, words += 4 * stride, strip += 16 * rows)
        for (int r = 0; r < rows; r += LANES) {
            const VECTOR word = load(words + 4 * r);
            for (int s = 0; s < 4; s++)
                store(strip + (s * rows + r) * 4, two_bits(word, 2 * s));
        }
}

static void unpack(const uint8_t *words, int64_t stride, int64_t blocks, int rows, uint8_t *panel)
{
    int r = 0;
    for (; r + WIDE <= rows; r += WIDE)
        unpack_strip(words + 4 * r, stride, blocks, WIDE, panel + r * 16 * blocks);
    for (; r < rows; r += 16)
        unpack_strip(words + 4 * r, stride, blocks, 16, panel + r * 16 * blocks);
}

INLINE void accumulate_tokens(
    const int tokens, const int8_t *codes, int64_t ld, const uint8_t *panel, int64_t blocks, int rows, bool add, int32_t *accumulators,
    const struct soon *soon)
{
    /* Every strip fetches its share of the lines that are wanted soon. */
    const int wide = rows / WIDE, strips = wide + rows % WIDE / 16;
    for (int s = 0; s < strips; s++) {
        const int r = s < wide ? s * WIDE : wide * WIDE + (s - wide) * 16;
#define TILE(vectors) \
    tile(tokens, vectors, codes, ld, panel + r * 16 * blocks, 4 * blocks, add, accumulators + r, rows, soon, 16 * s, 16 * strips)
        if (s < wide)
            TILE(VECTORS);
        else
            TILE(16 / LANES);
#undef TILE
    }
}

static void accumulate(
    const int8_t *codes, int64_t ld, int tokens, const uint8_t *panel, int64_t blocks, int rows, bool add, int32_t *accumulators,
    const struct soon *soon)
{
#define WHILE_LEFT(n) \
    for (; tokens >= n; tokens -= n, codes += n * ld, accumulators += n * rows) \
        accumulate_tokens(n, codes, ld, panel, blocks, rows, add, accumulators, soon);
    WHILE_LEFT(TOKENS)
    WHILE_LEFT(TOKENS / 2)
    WHILE_LEFT(2)
    WHILE_LEFT(1)
#undef WHILE_LEFT
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
    for (int64_t i = 0; i < rounds; i++)
        UNROLL for (int t = 0; t < TOKENS; t++)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                __asm__ volatile("" : "+" REGISTER(weights), "+" REGISTER(four));
                sum[t][v] = dot(sum[t][v], weights, four);
            }
    UNROLL for (int t = 0; t < TOKENS; t++)
        UNROLL for (int v = 0; v < VECTORS; v++)
            __asm__ volatile("" : : REGISTER(sum[t][v]));
    return (double)rounds * TOKENS * VECTORS * LANES * 4;
}

#endif
