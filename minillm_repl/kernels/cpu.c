// Can this processor run this library? The program asks every library that it finds, the fastest
// first, before it calls anything else in it. So this file alone is compiled for the oldest
// processor (x86-64-v2, armv8-a), whatever the rest of the library needs: no instruction in it
// can be unknown here. tools/compile_kernels.py defines MINILLM_NEEDS, one of the levels below, and
// MINILLM_SOURCES, the digest of the sources (variants.py).

#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

// What a variant needs. Each level of x86 includes those before it.
#define BASELINE 0
#define AVX2 1    // and FMA: x86-64-v3
#define AVX512 2  // and VNNI and BF16: x86-64-v4, Sapphire Rapids, Zen 4
#define AMX 3     // tiles of int8 and bfloat16: Sapphire Rapids
#define NEON 4    // armv8.2-a with the dot product

#if defined(__x86_64__)

#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// XCR0: the registers that the system saves when it switches threads.
#define SAVES_YMM 0x06u
#define SAVES_ZMM 0xe6u
#define SAVES_TILES 0x60000u

// Intel's manual, volume 2, CPUID: leaf 1, leaf 7 (subleaves 0 and 1), leaf 0x80000001.
#define LEAF1_V2_ECX (1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23)
#define LEAF1_V3_ECX (1u << 12 | 1u << 22 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 29)
#define LEAF7_V3_EBX (1u << 3 | 1u << 5 | 1u << 8)                           // BMI1 AVX2 BMI2
#define LEAF7_V4_EBX (1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31)  // F DQ CD BW VL
#define LEAF7_VNNI_ECX (1u << 11)
#define LEAF7_1_BF16_EAX (1u << 5)
#define LEAF7_AMX_EDX (1u << 22 | 1u << 24 | 1u << 25)  // BF16 TILE INT8
#define EXTENDED_V2_ECX (1u << 0)                       // LAHF
#define EXTENDED_V3_ECX (1u << 5)                       // LZCNT

static int has(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

// Linux gives the tiles to a process that asks for them; threads that it starts later have them too.
static int system_grants_tiles(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    const int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return 0;
#endif
}

static int supported(int needed) {
    uint32_t a, b, c, d, leaf1_c = 0, leaf7_a = 0, leaf7_b = 0, leaf7_c = 0, leaf7_d = 0;
    uint32_t bf16_a = 0, extended_c = 0, xcr0 = 0, xcr0_high;
    if (__get_cpuid(1, &a, &b, &c, &d)) leaf1_c = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) leaf7_a = a, leaf7_b = b, leaf7_c = c, leaf7_d = d;
    if (leaf7_a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) bf16_a = a;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d)) extended_c = c;
    if (has(leaf1_c, 1u << 27)) __asm__("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));

    int ok = has(leaf1_c, LEAF1_V2_ECX) && has(extended_c, EXTENDED_V2_ECX);
    if (needed >= AVX2)
        ok = ok && has(leaf1_c, LEAF1_V3_ECX) && has(leaf7_b, LEAF7_V3_EBX) &&
             has(extended_c, EXTENDED_V3_ECX) && has(xcr0, SAVES_YMM);
    if (needed >= AVX512)
        ok = ok && has(leaf7_b, LEAF7_V4_EBX) && has(leaf7_c, LEAF7_VNNI_ECX) &&
             has(bf16_a, LEAF7_1_BF16_EAX) && has(xcr0, SAVES_ZMM);
    if (needed >= AMX)
        ok = ok && has(leaf7_d, LEAF7_AMX_EDX) && has(xcr0, SAVES_TILES) && system_grants_tiles();
    return ok;
}

#elif defined(__aarch64__)

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

static int supported(int needed) {
    if (needed == BASELINE) return 1;
#if defined(__linux__)
    // asm/hwcap.h: the atomics and the multiply of armv8.1, and the dot product.
    const unsigned long atomics = 1ul << 8, asimdrdm = 1ul << 12, asimddp = 1ul << 20;
    const unsigned long all = atomics | asimdrdm | asimddp;
    return (getauxval(AT_HWCAP) & all) == all;
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(43) != 0;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
#else
    return 1;  // every Mac with arm64 has the dot product
#endif
}

#else
#error "the kernels are for x86-64 and arm64"
#endif

EXPORT int minillm_supported(void) { return supported(MINILLM_NEEDS); }

EXPORT int minillm_abi(void) { return (int)MINILLM_SOURCES; }
