/* Plain C, for processors without any of the others. A panel is [columns][16]. */
#include <stddef.h>
#include <string.h>

#include "finish.h"

enum { ROWS = 16, BLOCKS = 64, TOKENS = 4 };

static void unpack(const uint8_t *words, int64_t stride, int64_t blocks, int rows, uint8_t *panel)
{
    (void)rows;
    for (int64_t b = 0; b < blocks; b++)
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < 4; j++) {
                const uint8_t byte = words[(b * stride + r) * 4 + j];
                for (int s = 0; s < 4; s++)
                    panel[(16 * b + 4 * s + j) * ROWS + r] = byte >> 2 * s & 3;
            }
}

static void accumulate(
    const int8_t *codes, int64_t ld, int tokens, const uint8_t *panel, int64_t blocks, int rows, bool add, int32_t *accumulators,
    const struct soon *soon)
{
    (void)rows, (void)soon;
    for (int t = 0; t < tokens; t++) {
        int32_t sum[ROWS] = {0};
        if (add)
            memcpy(sum, accumulators + t * ROWS, sizeof sum);
        for (int64_t b = 0; b < blocks; b++) {
            int16_t part[ROWS] = {0};  /* 16 products of at most 256 */
            for (int k = 0; k < 16; k++)
                for (int r = 0; r < ROWS; r++)
                    part[r] += (int16_t)(codes[t * ld + 16 * b + k] * panel[(16 * b + k) * ROWS + r]);
            for (int r = 0; r < ROWS; r++)
                sum[r] += part[r];
        }
        memcpy(accumulators + t * ROWS, sum, sizeof sum);
    }
}

/* Not registers alone, but nothing beyond the first cache. */
static double spin(int64_t rounds)
{
    int8_t codes[TOKENS * 16] = {0};
    uint8_t panel[16 * ROWS] = {0};
    int32_t accumulators[TOKENS * ROWS] = {0};
    for (int64_t i = 0; i < rounds; i++) {
        /* Without this the compiler would know that all of it is zero. */
        __asm__ volatile("" : : "r"(codes), "r"(panel), "r"(accumulators) : "memory");
        accumulate(codes, 16, TOKENS, panel, 1, ROWS, true, accumulators, NULL);
    }
    __asm__ volatile("" : : "r"(accumulators) : "memory");
    return (double)rounds * TOKENS * 16 * ROWS;
}

const struct kernel bitvla_scalar = {ROWS, BLOCKS, TOKENS, unpack, accumulate, finish, spin};
