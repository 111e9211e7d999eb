/* The quantizer of W1.58-A8 activations, alone and fused with what comes before it in the model.
 *
 * Every function reads contiguous float32 rows [rows, columns] and writes, row by row,
 *   codes   int8 [rows, padded], padded = columns rounded up to a multiple of 16, zeros behind the columns
 *   absmax  float32 [rows], at least 1e-5: value ~ code * absmax / 127
 *   sums    int32 [rows], the sum of the row's codes
 * Rows are shared out over `threads`; a row's result depends neither on their number nor on the instruction set.
 * A row with a NaN or an infinity gets that as its absmax, and zero codes: whatever is computed from it is not finite either.
 *
 * Returns 0, or -1 where there was no memory. rows, columns and threads are at least 1.
 */
#ifndef BITVLA_ACTIVATION_H
#define BITVLA_ACTIVATION_H

#include <stdint.h>

/* The rows as they are: equals quantize_activation of ternary/quantize.py bit for bit. */
int bitvla_quantize(const float *x, int64_t rows, int64_t columns, int8_t *codes, float *absmax, int32_t *sums, int threads);

/* weight * (x / sqrt(mean(x^2) + eps)). weight: float32 [columns]. */
int bitvla_rms_norm_quantize(const float *x, const float *weight, float eps, int64_t rows, int64_t columns,
                             int8_t *codes, float *absmax, int32_t *sums, int threads);

/* (x - mean) / sqrt(variance + eps) * weight + bias. weight, bias: float32 [columns]. */
int bitvla_layer_norm_quantize(const float *x, const float *weight, const float *bias, float eps, int64_t rows, int64_t columns,
                               int8_t *codes, float *absmax, int32_t *sums, int threads);

/* The RMS norm, as above, of relu(gate)^2 * up. */
int bitvla_squared_relu_norm_quantize(const float *gate, const float *up, const float *weight, float eps, int64_t rows, int64_t columns,
                                      int8_t *codes, float *absmax, int32_t *sums, int threads);

/* x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))). */
int bitvla_gelu_quantize(const float *x, int64_t rows, int64_t columns, int8_t *codes, float *absmax, int32_t *sums, int threads);

#endif
