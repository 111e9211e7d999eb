/* NEON with the dot product instructions (Armv8.2 and later): sdot, codes 0..2 times int8, four columns of four rows. */
#include <arm_neon.h>
#include <stdint.h>

#include "finish.h"

/* 16 sums, 4 of the panel, 4 of the tokens: of 32 registers. */
enum { LANES = 4, VECTORS = 4, TOKENS = 4, ROWS = 64, BLOCKS = 16 };

#define VECTOR int32x4_t
#define REGISTER(x) "w"(x)
#define load(p) vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)(p)))
#define store(p, v) vst1q_u8((uint8_t *)(p), vreinterpretq_u8_s32(v))
#define dot(sum, weights, codes) vdotq_s32(sum, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(codes))
#define two_bits(words, bit) \
    vandq_s32(vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(words), vdupq_n_s32(-(bit)))), vdupq_n_s32(0x03030303))

/* As in dot.h, but a token's register holds the codes of four groups, and sdot picks one: broadcasting takes time from sdot here. */
INLINE void tile(
    const int tokens, const int vectors, const int8_t *codes, int64_t ld, const uint8_t *strip, int64_t groups, bool add,
    int32_t *accumulators, int rows, const struct soon *soon, int64_t line, int64_t step)
{
    (void)vectors;  /* always four */
    int32x4_t sum[TOKENS][VECTORS];
    int32_t *row = accumulators;
    UNROLL for (int t = 0; t < tokens; t++, row = next_row(row, rows))
        UNROLL for (int v = 0; v < VECTORS; v++)
            sum[t][v] = add ? load(row + v * LANES) : vdupq_n_s32(0);
    for (int64_t g = 0; g < groups; g += 4, strip += 4 * 64) {
        if (g == line) {
            fetch(soon, tokens, g);
            line += step;
        }
        int8x16_t four[TOKENS];
        UNROLL for (int t = 0; t < tokens; t++)
            four[t] = vld1q_s8(codes + t * ld + 4 * g);
#define GROUP(i) \
        UNROLL for (int v = 0; v < VECTORS; v++) { \
            const int8x16_t weights = vreinterpretq_s8_u8(vld1q_u8(strip + i * 64 + v * 16)); \
            UNROLL for (int t = 0; t < tokens; t++) \
                sum[t][v] = vdotq_laneq_s32(sum[t][v], weights, four[t], i); \
        }
        GROUP(0)
        GROUP(1)
        GROUP(2)
        GROUP(3)
#undef GROUP
    }
    row = accumulators;
    UNROLL for (int t = 0; t < tokens; t++, row = next_row(row, rows))
        UNROLL for (int v = 0; v < VECTORS; v++)
            store(row + v * LANES, sum[t][v]);
}

#include "panel.h"

const struct kernel bitvla_neon = {ROWS, BLOCKS, TOKENS, unpack, accumulate, finish, spin};
