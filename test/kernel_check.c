/* Compares every instruction set that runs here with the definition, on worst cases and random ones. Run by test_kernel_library.py,
 * also under an emulator. Arrays end at a page that may not be touched, so a step too far is a crash. Prints one line an instruction
 * set and exits 0, or says where the first difference is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ternary.h"

static void *guarded(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
    char *memory = mmap(NULL, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + pages * page, page, PROT_NONE))
        abort();
    return memory + pages * page - bytes;
}

static void release(void *array, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
    munmap((char *)array + bytes - pages * page, (pages + 1) * page);
}

static uint32_t state = 1;
static int draw(int low, int high)  /* both included */
{
    state = state * 1664525u + 1013904223u;
    return low + (int)((state >> 8) % (uint32_t)(high - low + 1));
}

enum pattern { RANDOM, MOST, LEAST, ALTERNATING, PATTERNS };

static int code(int pattern, int n, int k)
{
    switch (pattern) {
    case RANDOM:
        return draw(-1, 1);
    case ALTERNATING:
        return (n + k) % 2 ? 1 : -1;
    default:
        return n % 2 ? -1 : 1;
    }
}

static int activation(int pattern, int k)
{
    switch (pattern) {
    case MOST:
        return 127;
    case LEAST:
        return -128;
    case ALTERNATING:
        return k % 2 ? 127 : -128;
    default:
        return draw(-128, 127);
    }
}

static int check(int isa, int tokens, int rows, int columns, int pattern, int threads)
{
    const int64_t blocks = (columns + 15) / 16, stride = (rows + 15) / 16 * 16, ld = 16 * blocks;
    const size_t weight_bytes = (size_t)(blocks * stride * 4), code_bytes = (size_t)(tokens * ld), out_bytes = (size_t)(tokens * rows) * 4;
    uint8_t *words = guarded(weight_bytes);
    int8_t *codes = guarded(code_bytes), *plain = malloc((size_t)(rows * ld));
    int32_t *sums = guarded((size_t)tokens * 4), *product = guarded(out_bytes);
    float *absmax = guarded((size_t)tokens * 4), *bias = guarded((size_t)rows * 4), *residual = guarded(out_bytes), *y = guarded(out_bytes);
    const float scale = 0.037f;
    memset(plain, 0, (size_t)(rows * ld));
    memset(words, 0x55, weight_bytes);
    for (int n = 0; n < rows; n++) {
        bias[n] = 0.25f * (float)draw(-9, 9);
        for (int k = 0; k < columns; k++) {
            const int c = plain[n * ld + k] = (int8_t)code(pattern, n, k);
            uint8_t *byte = &words[(k / 16 * stride + n) * 4 + k % 4];
            const int shift = 2 * (k % 16 / 4);
            *byte = (uint8_t)((*byte & ~(3 << shift)) | (c + 1) << shift);
        }
    }
    memset(codes, 0, code_bytes);
    for (int m = 0; m < tokens; m++) {
        absmax[m] = 0.125f * (float)draw(1, 99);
        sums[m] = 0;
        for (int k = 0; k < columns; k++)
            sums[m] += codes[m * ld + k] = (int8_t)activation(pattern, k);
    }
    for (int i = 0; i < tokens * rows; i++)
        residual[i] = 0.5f * (float)draw(-9, 9);
    int status = bitvla_matmul(codes, ld, sums, words, tokens, rows, stride, blocks, product, rows, isa, threads);
    if (status == 0)
        status = bitvla_linear(
            codes, ld, sums, absmax, words, scale, tokens, rows, stride, blocks, bias, residual, rows, y, rows, isa, threads);
    int wrong = status != 0;
    for (int m = 0; m < tokens && !wrong; m++)
        for (int n = 0; n < rows && !wrong; n++) {
            int32_t want = 0;
            for (int k = 0; k < columns; k++)
                want += codes[m * ld + k] * plain[n * ld + k];
            const float step = scale * absmax[m] / 127.0f, float_want = (float)want * step + bias[n] + residual[m * rows + n];
            wrong = product[m * rows + n] != want || y[m * rows + n] != float_want;
        }
    if (wrong)
        printf("isa %d: %d tokens, %d rows, %d columns, pattern %d, %d threads: wrong (status %d)\n",
               isa, tokens, rows, columns, pattern, threads, status);
    release(words, weight_bytes), release(codes, code_bytes), release(product, out_bytes), release(y, out_bytes);
    release(residual, out_bytes), release(sums, (size_t)tokens * 4), release(absmax, (size_t)tokens * 4), release(bias, (size_t)rows * 4);
    free(plain);
    return wrong;
}

int main(void)
{
    static const int shapes[][3] = {
        {1, 1, 1}, {1, 16, 16}, {3, 17, 31}, {2, 64, 256}, {4, 63, 257}, {5, 80, 512}, {6, 65, 300}, {7, 130, 1152}, {11, 48, 640},
        {13, 33, 2560}, {3, 20, 6912}, {300, 70, 48}, {2500, 17, 20},
    };
    int failures = 0;
    for (int isa = 0; isa < BITVLA_ISAS; isa++)
        if (bitvla_isas() >> isa & 1) {
            int wrong = 0;
            for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
                for (int pattern = 0; pattern < PATTERNS; pattern++)
                    wrong |= check(isa, shapes[i][0], shapes[i][1], shapes[i][2], pattern, 1 + pattern % 2 * 2);
            printf("isa %d: %s\n", isa, wrong ? "wrong" : "exact");
            failures += wrong;
        }
    return failures != 0;
}
