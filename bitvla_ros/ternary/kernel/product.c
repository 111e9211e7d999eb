/* The product: checks, work for the threads, scratch. The arithmetic is the kernels'. */
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

#include "kernel.h"

enum {
    MOST_BLOCKS = 1 << 19,       /* 16 * 2^19 columns of products up to 256: the last that fit int32 */
    CACHED_CODES = 1024 * 1024,  /* bytes of activations that stay in a core's second cache, more or less */
    FEWEST_TOKENS = 128,         /* that pay for unpacking a panel */
    MOST_TOKENS = 1024,          /* whose accumulators stay in the second cache */
    ITEMS_PER_THREAD = 4,        /* so that threads end together */
};

struct product {
    const int8_t *codes;
    int64_t ld_codes;
    const uint8_t *words;
    int64_t tokens, rows, stride, blocks;
    struct output out;
};

/* Work is cut into items: some tokens times one panel of rows, over all columns. */
struct plan {
    const struct kernel *kernel;
    int64_t token_step, token_parts, block_step;
    int64_t panels;
    size_t panel_bytes, scratch_bytes;
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static bool valid(const struct product *p, int threads)
{
    const void *out = p->out.integers ? (const void *)p->out.integers : (const void *)p->out.y;
    return p->codes && p->out.sums && p->words && out && threads >= 1 && threads <= MOST_THREADS
        && p->tokens >= 1 && p->rows >= 1 && p->blocks >= 1 && p->blocks <= MOST_BLOCKS
        && p->stride % 16 == 0 && p->stride >= p->rows && p->ld_codes >= 16 * p->blocks
        && p->out.ld >= p->rows && (!p->out.residual || p->out.ld_residual >= p->rows);
}

static struct plan make_plan(const struct kernel *kernel, const struct product *p, int threads)
{
    const int64_t panels = divide_up(p->rows, kernel->rows);
    int64_t parts = divide_up(p->tokens * p->blocks * 16, CACHED_CODES);
    if (threads > 1 && parts * panels < ITEMS_PER_THREAD * threads)
        parts = divide_up(ITEMS_PER_THREAD * threads, panels);
    parts = least(parts, divide_up(p->tokens, FEWEST_TOKENS));
    if (parts < divide_up(p->tokens, MOST_TOKENS))
        parts = divide_up(p->tokens, MOST_TOKENS);
    const int64_t step = divide_up(divide_up(p->tokens, parts), kernel->tokens) * kernel->tokens;
    const int64_t block_step = divide_up(p->blocks, divide_up(p->blocks, kernel->blocks));
    const size_t panel_bytes = (size_t)(kernel->rows * 16 * block_step);
    return (struct plan){
        .kernel = kernel,
        .token_step = step,
        .token_parts = divide_up(p->tokens, step),
        .block_step = block_step,
        .panels = panels,
        .panel_bytes = panel_bytes,
        .scratch_bytes = panel_bytes + (size_t)kernel->rows * sizeof(int32_t) * (size_t)step,
    };
}

static void prefetch(const void *rows, int64_t pitch, int64_t count, int64_t bytes)
{
    for (int64_t r = 0; r < count; r++)
        for (int64_t byte = 0; byte < bytes; byte += 64)
            __builtin_prefetch((const char *)rows + r * pitch + byte);
}

static void want(struct soon *soon, const void *rows, int64_t pitch)
{
    soon->of[soon->count].rows = rows;
    soon->of[soon->count++].pitch = pitch;
}

static void run_item(const struct plan *plan, const struct product *p, int64_t item, uint8_t *scratch)
{
    const struct kernel *kernel = plan->kernel;
    /* Tokens outermost: their codes stay in the cache while the panels pass. */
    const int64_t first = item / plan->panels * plan->token_step, panel = item % plan->panels;
    const int64_t last = least(first + plan->token_step, p->tokens);
    const int64_t row = panel * kernel->rows;
    const int valid = (int)least(kernel->rows, p->rows - row), rows = (int)divide_up(valid, 16) * 16;
    const int64_t pitch = p->stride * 4;

    for (int64_t block = 0; block < p->blocks; block += plan->block_step) {
        const int64_t blocks = least(plan->block_step, p->blocks - block), next = block + blocks;
        const bool done = next == p->blocks;
        const uint8_t *words = p->words + block * pitch + row * 4;
        kernel->unpack(words, p->stride, blocks, rows, scratch);
        if (!done)
            prefetch(words + blocks * pitch, pitch, least(blocks, p->blocks - next), rows * 4);
        int32_t *accumulators = (int32_t *)(scratch + plan->panel_bytes);
        for (int64_t token = first; token < last; token += kernel->tokens, accumulators += kernel->tokens * rows) {
            const int64_t tokens = least(kernel->tokens, last - token);
            const int8_t *codes = p->codes + token * p->ld_codes + block * 16;
            struct soon soon = {0};  /* what comes next may be fewer rows: naming more does no harm */
            if (token + tokens < last)
                want(&soon, codes + tokens * p->ld_codes, p->ld_codes);
            if (done && p->out.y)
                want(&soon, p->out.y + token * p->out.ld + row, p->out.ld * 4);
            if (done && p->out.residual)
                want(&soon, p->out.residual + token * p->out.ld_residual + row, p->out.ld_residual * 4);
            kernel->accumulate(codes, p->ld_codes, (int)tokens, scratch, blocks, rows, block > 0, accumulators, &soon);
            if (done)
                kernel->finish(&p->out, accumulators, rows, valid, token, (int)tokens, row);
        }
    }
}

static int run(const struct product *p, int isa, int threads)
{
    if (!valid(p, threads))
        return BITVLA_BAD_ARGUMENT;
    const struct kernel *kernel = bitvla_kernel(isa);
    if (!kernel)
        return BITVLA_UNSUPPORTED;
    const struct plan plan = make_plan(kernel, p, threads);
    const int64_t items = plan.token_parts * plan.panels;
    threads = (int)least(threads, items);
    uint8_t *scratch = aligned_alloc(64, plan.scratch_bytes * (size_t)threads);
    if (!scratch)
        return BITVLA_OUT_OF_MEMORY;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t item = 0; item < items; item++)
        run_item(&plan, p, item, scratch + plan.scratch_bytes * (size_t)omp_get_thread_num());
    free(scratch);
    return BITVLA_OK;
}

int bitvla_matmul(
    const int8_t *codes, int64_t ld_codes, const int32_t *sums, const uint8_t *words, int64_t tokens, int64_t rows, int64_t stride,
    int64_t blocks, int32_t *out, int64_t ld_out, int isa, int threads)
{
    const struct product product = {codes, ld_codes, words, tokens, rows, stride, blocks, {.sums = sums, .integers = out, .ld = ld_out}};
    return run(&product, isa, threads);
}

int bitvla_linear(
    const int8_t *codes, int64_t ld_codes, const int32_t *sums, const float *absmax, const uint8_t *words, float scale, int64_t tokens,
    int64_t rows, int64_t stride, int64_t blocks, const float *bias, const float *residual, int64_t ld_residual, float *out,
    int64_t ld_out, int isa, int threads)
{
    if (!absmax)
        return BITVLA_BAD_ARGUMENT;
    const struct product product = {
        codes, ld_codes, words, tokens, rows, stride, blocks,
        {sums, absmax, scale, bias, residual, ld_residual, out, NULL, ld_out},
    };
    return run(&product, isa, threads);
}
