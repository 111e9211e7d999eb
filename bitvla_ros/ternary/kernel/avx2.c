/* AVX2: vpmaddubsw, codes 0..2 times int8, summed in pairs to int16, and vpaddw.
 *
 * A pair lies in -512..508, so 64 of them fit int16 exactly, -128 included: every 64 additions (256 columns) the int16 sums are
 * widened into the int32 accumulators. A register holds 8 rows, two int16 halves each. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "finish.h"

enum { LANES = 8, VECTORS = 2, TOKENS = 6, ROWS = 64, BLOCKS = 16, LONGEST = 64 };

#define VECTOR __m256i
#define REGISTER(x) "x"(x)
#define load(p) _mm256_loadu_si256((const __m256i *)(p))
#define store(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define dot(sum, weights, codes) _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, codes))
#define two_bits(words, bit) _mm256_and_si256(_mm256_srli_epi32(words, bit), _mm256_set1_epi8(3))

INLINE __m256i broadcast(const int8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, 4);
    return _mm256_set1_epi32(four);
}

/* sum[t] = codes of token t * strip, over at most LONGEST groups of four columns */
INLINE void sum_pairs(const int tokens, __m256i sum[][2], const int8_t *codes, int64_t ld, const uint8_t *strip, int64_t groups)
{
    UNROLL for (int t = 0; t < tokens; t++)
        sum[t][0] = sum[t][1] = _mm256_setzero_si256();
    for (int64_t g = 0; g < groups; g++) {
        const __m256i low = load(strip + g * 64);
        const __m256i high = load(strip + g * 64 + 32);
        UNROLL for (int t = 0; t < tokens; t++) {
            const __m256i four = broadcast(codes + t * ld + 4 * g);
            sum[t][0] = dot(sum[t][0], low, four);
            sum[t][1] = dot(sum[t][1], high, four);
        }
    }
}

/* The same for six tokens, which take all sixteen registers: twelve sums, two for the strip, two in between. Compilers spill them. */
INLINE void sum_pairs_of_six(__m256i sum[][2], const int8_t *codes, int64_t ld, const uint8_t *strip, int64_t groups)
{
    const int8_t *last_three = codes + 3 * ld;
    __m256i low, high, four, pairs;
#define ZERO(sum) "vpxor %[" sum "], %[" sum "], %[" sum "]\n\t"
#define TOKEN(address, sum_low, sum_high) \
    "vpbroadcastd " address ", %[four]\n\t" \
    "vpmaddubsw %[four], %[low], %[pairs]\n\t" \
    "vpmaddubsw %[four], %[high], %[four]\n\t" \
    "vpaddw %[pairs], %[" sum_low "], %[" sum_low "]\n\t" \
    "vpaddw %[four], %[" sum_high "], %[" sum_high "]\n\t"
    __asm__ volatile(
        ZERO("l0") ZERO("h0") ZERO("l1") ZERO("h1") ZERO("l2") ZERO("h2") ZERO("l3") ZERO("h3") ZERO("l4") ZERO("h4") ZERO("l5") ZERO("h5")
        "1:\n\t"
        "vmovdqa (%[strip]), %[low]\n\t"
        "vmovdqa 32(%[strip]), %[high]\n\t"
        TOKEN("(%[codes])", "l0", "h0")
        TOKEN("(%[codes],%[ld])", "l1", "h1")
        TOKEN("(%[codes],%[ld],2)", "l2", "h2")
        TOKEN("(%[last_three])", "l3", "h3")
        TOKEN("(%[last_three],%[ld])", "l4", "h4")
        TOKEN("(%[last_three],%[ld],2)", "l5", "h5")
        "add $64, %[strip]\n\t"
        "add $4, %[codes]\n\t"
        "add $4, %[last_three]\n\t"
        "dec %[groups]\n\t"
        "jnz 1b\n\t"
        : [l0] "=&x"(sum[0][0]), [h0] "=&x"(sum[0][1]), [l1] "=&x"(sum[1][0]), [h1] "=&x"(sum[1][1]),
          [l2] "=&x"(sum[2][0]), [h2] "=&x"(sum[2][1]), [l3] "=&x"(sum[3][0]), [h3] "=&x"(sum[3][1]),
          [l4] "=&x"(sum[4][0]), [h4] "=&x"(sum[4][1]), [l5] "=&x"(sum[5][0]), [h5] "=&x"(sum[5][1]),
          [low] "=&x"(low), [high] "=&x"(high), [four] "=&x"(four), [pairs] "=&x"(pairs),
          [strip] "+r"(strip), [codes] "+r"(codes), [last_three] "+r"(last_three), [groups] "+r"(groups)
        : [ld] "r"(ld)
        : "memory", "cc");
#undef TOKEN
#undef ZERO
}

INLINE void tile(
    const int tokens, const int vectors, const int8_t *codes, int64_t ld, const uint8_t *strip, int64_t groups, bool add,
    int32_t *accumulators, int rows, const struct soon *soon, int64_t line, int64_t step)
{
    (void)vectors;  /* always two */
    for (; line < groups; line += step)
        fetch(soon, tokens, line);
    for (int64_t g = 0; g < groups; g += LONGEST, add = true) {
        const int64_t count = groups - g < LONGEST ? groups - g : LONGEST;
        __m256i sum[TOKENS][2];
        if (tokens == TOKENS)
            sum_pairs_of_six(sum, codes + 4 * g, ld, strip + g * 64, count);
        else
            sum_pairs(tokens, sum, codes + 4 * g, ld, strip + g * 64, count);
        int32_t *row = accumulators;
        UNROLL for (int t = 0; t < tokens; t++, row = next_row(row, rows))
            UNROLL for (int half = 0; half < 2; half++) {
                int32_t *to = row + half * 8;
                const __m256i wide = _mm256_madd_epi16(sum[t][half], _mm256_set1_epi16(1));
                store(to, add ? _mm256_add_epi32(load(to), wide) : wide);
            }
    }
}

#include "panel.h"

const struct kernel bitvla_avx2 = {ROWS, BLOCKS, TOKENS, unpack, accumulate, finish, spin};
