/* From integer sums to outputs. Included by every kernel, so that it is compiled for its instruction set. */
#ifndef BITVLA_FINISH_H
#define BITVLA_FINISH_H

#include "kernel.h"

static void finish(
    const struct output *out, const int32_t *accumulators, int rows, int valid, int64_t token, int64_t tokens, int64_t row)
{
    for (int64_t t = 0; t < tokens; t++) {
        const int64_t m = token + t;
        const int32_t *product = accumulators + t * rows;
        const int32_t sum = out->sums[m];  /* codes are one too high: 0, 1, 2 */
        if (out->integers) {
            int32_t *integers = out->integers + m * out->ld + row;
            for (int n = 0; n < valid; n++)
                integers[n] = product[n] - sum;
            continue;
        }
        const float step = out->scale * out->absmax[m] / 127.0f;
        float *y = out->y + m * out->ld + row;
        const float *bias = out->bias ? out->bias + row : 0;
        const float *residual = out->residual ? out->residual + m * out->ld_residual + row : 0;
        if (bias && residual)
            for (int n = 0; n < valid; n++)
                y[n] = (float)(product[n] - sum) * step + bias[n] + residual[n];
        else if (bias)
            for (int n = 0; n < valid; n++)
                y[n] = (float)(product[n] - sum) * step + bias[n];
        else if (residual)
            for (int n = 0; n < valid; n++)
                y[n] = (float)(product[n] - sum) * step + residual[n];
        else
            for (int n = 0; n < valid; n++)
                y[n] = (float)(product[n] - sum) * step;
    }
}

#endif
