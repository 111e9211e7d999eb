/* AVX-512 VNNI: vpdpbusd, unsigned codes 0..2 times int8, four columns of sixteen rows. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, VECTORS = 4, TOKENS = 6, ROWS = 64, BLOCKS = 18 };  /* 24 sums, 4 of the panel, 1 of the tokens: of 32 registers */

#define VECTOR __m512i
#define REGISTER(x) "v"(x)
#define zero() _mm512_setzero_si512()
#define load(p) _mm512_loadu_si512(p)
#define store(p, v) _mm512_storeu_si512(p, v)
#define dot(sum, weights, codes) _mm512_dpbusd_epi32(sum, weights, codes)
#define two_bits(words, bit) _mm512_and_si512(_mm512_srli_epi32(words, bit), _mm512_set1_epi8(3))

static inline __m512i broadcast(const int8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, 4);
    return _mm512_set1_epi32(four);
}

#include "dot.h"
#include "panel.h"

const struct kernel bitvla_avx512vnni = {ROWS, BLOCKS, TOKENS, unpack, accumulate, finish, spin};
