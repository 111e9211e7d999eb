/* Panels: unpacking them, and passing tokens over them in register tiles. Included with
 *   LANES                            32-bit lanes of a register: one row each
 *   VECTORS, TOKENS                  a tile: rows (in registers) by tokens, as many as the registers hold
 *   VECTOR, load, store, two_bits    see avx512vnni.c
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

/* Fetches every `step`-th byte of the tokens' codes, from `first` on. */
INLINE void prefetch(const int tokens, const int8_t *codes, int64_t ld, int64_t columns, int64_t first, int64_t step)
{
    for (int64_t k = first; k < columns; k += step)
        UNROLL for (int t = 0; t < tokens; t++)
            __builtin_prefetch(codes + t * ld + k);
}

INLINE void accumulate_tokens(
    const int tokens, const int8_t *codes, int64_t ld, int64_t ahead, const uint8_t *panel, int64_t blocks, int rows, bool add,
    int32_t *accumulators)
{
    /* Each strip fetches its share of cache lines. */
    const int wide = rows / WIDE, strips = wide + rows % WIDE / 16;
    for (int s = 0; s < strips; s++) {
        const int r = s <= wide ? s * WIDE : wide * WIDE + (s - wide) * 16;
        prefetch(tokens, codes + ahead, ld, 16 * blocks, 64 * s, 64 * strips);
        if (s < wide)
            tile(tokens, VECTORS, codes, ld, panel + r * 16 * blocks, 4 * blocks, add, accumulators + r, rows);
        else
            tile(tokens, 16 / LANES, codes, ld, panel + r * 16 * blocks, 4 * blocks, add, accumulators + r, rows);
    }
}

static void accumulate(
    const int8_t *codes, int64_t ld, int tokens, int64_t ahead, const uint8_t *panel, int64_t blocks, int rows, bool add,
    int32_t *accumulators)
{
#define WHILE_LEFT(n) \
    for (; tokens >= n; tokens -= n, codes += n * ld, accumulators += n * rows) \
        accumulate_tokens(n, codes, ld, ahead, panel, blocks, rows, add, accumulators);
    WHILE_LEFT(TOKENS)
    WHILE_LEFT(TOKENS / 2)
    WHILE_LEFT(2)
    WHILE_LEFT(1)
#undef WHILE_LEFT
}

#endif
