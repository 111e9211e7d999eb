/* Plain C that compilers vectorise, in one version an instruction set, all with the same results: a sum is formed in LANES partial
 * sums, whatever the width of a vector, and -ffp-contract=off keeps multiply and add apart. */
#include "activation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 16, LANES = 32, GRAIN = 65536 }; /* GRAIN: elements (10 to 40 us) that are worth the waking of a thread (about 10 us) */

#define INT8_MAX_F 127.0f
#define FLOOR 1e-5f
#define ROUND 12582912.0f /* 1.5 * 2^23: added to a small float, it leaves the integer nearest (ties to even) in the low bits */

#if defined(EVERY_ISA) /* given from outside, empty: one plain version, for the test that compares the results */
#elif defined(__x86_64__) && defined(__gnu_linux__)
#define EVERY_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_ISA /* NEON is every aarch64 compiler's baseline */
#endif

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The buffers below are zero from `columns` to a multiple of LANES, so that sums need no tail. */
static inline int64_t round_up(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static inline __attribute__((always_inline)) float sum(const float *values, int64_t columns, int squared)
{
    float lanes[LANES] = {0};
    for (int64_t i = 0; i < columns; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] += squared ? values[i + l] * values[i + l] : values[i + l];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            lanes[l] += lanes[l + half];
    return lanes[0];
}

static inline __attribute__((always_inline)) void rms_norm(float *restrict values, const float *restrict weight, float eps, int64_t columns)
{
    float scale = 1.0f / sqrtf(sum(values, columns, 1) / (float)columns + eps);
    for (int64_t i = 0; i < columns; i++)
        values[i] = weight[i] * (values[i] * scale);
}

/* e^-|x| to 2e-7, exactly 0 from |x| = 88 on. */
static inline float decay(float x)
{
    uint32_t magnitude = bits_of(x) & 0x7fffffff, limit = bits_of(88.0f);
    x = -float_of(magnitude < limit ? magnitude : limit);
    float shifted = x * 1.44269504f + ROUND; /* x = n ln 2 + r, |r| <= ln 2 / 2; n in the low bits */
    float n = shifted - ROUND;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts, the first exact in a product with n */
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_of((bits_of(shifted) + 127) << 23); /* 2^n; n = -127 gives 0 */
}

/* x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3): what (1 + tanh u) / 2 is, and with all its digits where tanh u nears -1.
 * Written without a choice between x < 0 and x > 0, which compilers make a jump: one of the two brackets is 0. */
static inline float gelu(float x)
{
    float e = decay(1.59576912f * (x + 0.044715f * (x * x * x)));
    float half = 0.5f * x, magnitude = fabsf(half);
    return ((half + magnitude) + (half - magnitude) * e) / (1.0f + e);
}

EVERY_ISA static void rms_norm_row(const float *restrict x, const float *restrict weight, float eps, int64_t columns, float *restrict out)
{
    memcpy(out, x, (size_t)columns * sizeof *out);
    rms_norm(out, weight, eps, columns);
}

EVERY_ISA static void layer_norm_row(const float *restrict x, const float *restrict weight, const float *restrict bias, float eps,
                                     int64_t columns, float *restrict out)
{
    memcpy(out, x, (size_t)columns * sizeof *out);
    float mean = sum(out, columns, 0) / (float)columns;
    for (int64_t i = 0; i < columns; i++)
        out[i] -= mean;
    float scale = 1.0f / sqrtf(sum(out, columns, 1) / (float)columns + eps);
    for (int64_t i = 0; i < columns; i++)
        out[i] = out[i] * scale * weight[i] + bias[i];
}

EVERY_ISA static void squared_relu_norm_row(const float *restrict gate, const float *restrict up, const float *restrict weight, float eps,
                                            int64_t columns, float *restrict out)
{
    for (int64_t i = 0; i < columns; i++) {
        float g = 0.5f * (gate[i] + fabsf(gate[i])); /* relu without a jump; NaN stays NaN */
        out[i] = g * g * up[i];
    }
    rms_norm(out, weight, eps, columns);
}

EVERY_ISA static void gelu_row(const float *restrict x, int64_t columns, float *restrict out)
{
    for (int64_t i = 0; i < columns; i++)
        out[i] = gelu(x[i]);
}

EVERY_ISA static void quantize_row(const float *restrict x, int64_t columns, int8_t *restrict codes, float *restrict absmax,
                                   int32_t *restrict sums)
{
    int64_t padded = round_up(columns, BLOCK);
    uint32_t largest = 0; /* magnitudes are ordered as their bits are, infinity and then NaN last */
    for (int64_t i = 0; i < columns; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    float top = float_of(largest);
    *absmax = top < FLOOR ? FLOOR : top;
    *sums = 0;
    if (!isfinite(top)) {
        memset(codes, 0, (size_t)padded);
        return;
    }
    float scale = 1.0f / *absmax * INT8_MAX_F; /* the two roundings of torch's 127 / absmax */
    int32_t total = 0;
    for (int64_t i = 0; i < columns; i++) {
        int32_t code = (int32_t)(bits_of(x[i] * scale + ROUND) - bits_of(ROUND));
        codes[i] = (int8_t)code;
        total += code;
    }
    memset(codes + columns, 0, (size_t)(padded - columns));
    *sums = total;
}

static int threads_for(int64_t rows, int64_t columns, int threads)
{
    int64_t worthwhile = 1 + rows * columns / GRAIN;
    return (int)(threads < worthwhile ? threads : worthwhile);
}

int bitvla_quantize(const float *x, int64_t rows, int64_t columns, int8_t *codes, float *absmax, int32_t *sums, int threads)
{
    int64_t padded = round_up(columns, BLOCK);
#pragma omp parallel for schedule(static) num_threads(threads_for(rows, columns, threads))
    for (int64_t r = 0; r < rows; r++)
        quantize_row(x + r * columns, columns, codes + r * padded, absmax + r, sums + r);
    return 0;
}

/* ROW fills `out`, this thread's buffer, with row r of what is to be quantized. */
#define QUANTIZE_EACH(ROW)                                                                              \
    int64_t padded = round_up(columns, BLOCK);                                                          \
    int failed = 0;                                                                                     \
    _Pragma("omp parallel num_threads(threads_for(rows, columns, threads)) reduction(| : failed)")      \
    {                                                                                                   \
        float *out = calloc((size_t)round_up(columns, LANES), sizeof *out);                             \
        failed = out == NULL;                                                                           \
        _Pragma("omp for schedule(static)") for (int64_t r = 0; r < rows; r++) if (out != NULL)         \
        {                                                                                               \
            int64_t at = r * columns;                                                                   \
            ROW;                                                                                        \
            quantize_row(out, columns, codes + r * padded, absmax + r, sums + r);                       \
        }                                                                                               \
        free(out);                                                                                      \
    }                                                                                                   \
    return failed ? -1 : 0

int bitvla_rms_norm_quantize(const float *x, const float *weight, float eps, int64_t rows, int64_t columns,
                             int8_t *codes, float *absmax, int32_t *sums, int threads)
{
    QUANTIZE_EACH(rms_norm_row(x + at, weight, eps, columns, out));
}

int bitvla_layer_norm_quantize(const float *x, const float *weight, const float *bias, float eps, int64_t rows, int64_t columns,
                               int8_t *codes, float *absmax, int32_t *sums, int threads)
{
    QUANTIZE_EACH(layer_norm_row(x + at, weight, bias, eps, columns, out));
}

int bitvla_squared_relu_norm_quantize(const float *gate, const float *up, const float *weight, float eps, int64_t rows, int64_t columns,
                                      int8_t *codes, float *absmax, int32_t *sums, int threads)
{
    QUANTIZE_EACH(squared_relu_norm_row(gate + at, up + at, weight, eps, columns, out));
}

int bitvla_gelu_quantize(const float *x, int64_t rows, int64_t columns, int8_t *codes, float *absmax, int32_t *sums, int threads)
{
    QUANTIZE_EACH(gelu_row(x + at, columns, out));
}
