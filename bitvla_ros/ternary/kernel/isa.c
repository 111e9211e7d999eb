/* Which instruction sets run here, and how fast at best. */
#define _GNU_SOURCE
#include <stddef.h>
#include <time.h>

#include "kernel.h"

#ifdef __aarch64__
#include <sys/auxv.h>
#endif

const struct kernel *bitvla_kernel(int isa)
{
    switch (isa) {
    case BITVLA_SCALAR:
        return &bitvla_scalar;
#ifdef BITVLA_HAS_AVX2
    case BITVLA_AVX2:
        return __builtin_cpu_supports("avx2") ? &bitvla_avx2 : NULL;
#endif
#ifdef BITVLA_HAS_AVXVNNI
    case BITVLA_AVXVNNI:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avxvnni") ? &bitvla_avxvnni : NULL;
#endif
#ifdef BITVLA_HAS_AVX512VNNI
    case BITVLA_AVX512VNNI:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni") ? &bitvla_avx512vnni : NULL;
#endif
#ifdef BITVLA_HAS_NEON
    case BITVLA_NEON: {
        const unsigned long dot_product = 1ul << 20;  /* HWCAP_ASIMDDP */
        return getauxval(AT_HWCAP) & dot_product ? &bitvla_neon : NULL;
    }
#endif
    default:
        return NULL;
    }
}

uint32_t bitvla_isas(void)
{
    uint32_t found = 0;
    for (int isa = 0; isa < BITVLA_ISAS; isa++)
        if (bitvla_kernel(isa))
            found |= 1u << isa;
    return found;
}

/* Processor time of this thread: what others do on the machine is not in it. */
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int bitvla_ceiling(int isa, double seconds, int threads, double *macs_per_second)
{
    const struct kernel *kernel = bitvla_kernel(isa);
    if (!macs_per_second || !(seconds >= 0 && seconds <= 60) || threads < 1 || threads > MOST_THREADS)
        return BITVLA_BAD_ARGUMENT;
    if (!kernel)
        return BITVLA_UNSUPPORTED;
    double rate = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : rate)
    {
        double macs = 0;
        const double start = now();
        double end;
        do {
            macs += kernel->spin(10000);
            end = now();
        } while (end - start < seconds);
        rate += macs / (end - start);
    }
    *macs_per_second = rate;
    return BITVLA_OK;
}
