/* AVX-VNNI: vpdpbusd on 256 bits, for processors without AVX-512. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8, VECTORS = 2, TOKENS = 6, ROWS = 64, BLOCKS = 16 };  /* 12 sums, 2 of the panel, 1 of the tokens: of 16 registers */

#define VECTOR __m256i
#define REGISTER(x) "x"(x)
#define zero() _mm256_setzero_si256()
#define load(p) _mm256_loadu_si256((const __m256i *)(p))
#define store(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define dot(sum, weights, codes) _mm256_dpbusd_avx_epi32(sum, weights, codes)
#define two_bits(words, bit) _mm256_and_si256(_mm256_srli_epi32(words, bit), _mm256_set1_epi8(3))

static inline __m256i broadcast(const int8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, 4);
    return _mm256_set1_epi32(four);
}

#include "dot.h"
#include "panel.h"

const struct kernel bitvla_avxvnni = {ROWS, BLOCKS, TOKENS, unpack, accumulate, finish, spin};
