// Short arrays of floats that fit a register, in the vector extensions of GCC and Clang. The compiler
// makes AVX-512, AVX2, SSE or NEON of them; -ffp-contract=fast makes a·b + c one operation.

#ifndef MINILLM_VECTOR_H
#define MINILLM_VECTOR_H

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define PANEL (2 * LANES)  // rows that are multiplied side by side
#if defined(__AVX512F__) || defined(__aarch64__)
#define TOKENS 12  // that a panel is multiplied with at once: 24 sums in 32 registers
#else
#define TOKENS 6  // 12 sums in 16 registers
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef int32_t vi_any __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef uint16_t vs_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf v) { *(vf_any *)p = v; }
INLINE vi load_int(const void *p) { return *(const vi_any *)p; }
INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf from_int(vi v) { return __builtin_convertvector(v, vf); }
INLINE vf choose(vi which, vf yes, vf no) { return (vf)((which & (vi)yes) | (~which & (vi)no)); }
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Returns float16 numbers as float32: the exponent is moved by a multiplication, which is right for
// the smallest ones too; infinity and NaN keep theirs.
INLINE vf from_f16(vs_any v) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)v);
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps((__m128i)v);
#elif defined(__ARM_NEON)
    return (vf)vcvt_f32_f16((float16x4_t)v);
#else
    vu bits = __builtin_convertvector(v, vu), number = (bits & 0x7fff) << 13;
    vf x = (vf)number * 0x1p112f;
    vu special = (vu)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    return (vf)((vu)x | special | (bits & 0x8000) << 16);
#endif
}

// Returns numbers i … i + LANES − 1 of a matrix whose rows lie one after another, in float32.
INLINE vf widen(int kind, const void *w, size_t i) {
    if (kind == F32) return load((const float *)w + i);
    vs_any half = *(const vs_any *)((const uint16_t *)w + i);
    if (kind == F16) return from_f16(half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

INLINE float widen_one(int kind, const void *w, size_t i) {
    if (kind == F32) return ((const float *)w)[i];
    uint16_t half = ((const uint16_t *)w)[i];
    if (kind == BF16) return float_of((uint32_t)half << 16);
    return from_f16((vs_any){half})[0];
}

// Returns the sum of all lanes, by halves.
INLINE float total(vf v) {
#if LANES == 16
    typedef float v8 __attribute__((vector_size(32)));
    v8 e = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#elif LANES == 8
    vf e = v;
#endif
    typedef float v4 __attribute__((vector_size(16)));
#if LANES > 4
    v4 f = __builtin_shufflevector(e, e, 0, 1, 2, 3) + __builtin_shufflevector(e, e, 4, 5, 6, 7);
#else
    v4 f = v;
#endif
    f += __builtin_shufflevector(f, f, 2, 3, 0, 1);
    return f[0] + f[1];
}

INLINE float greatest(vf v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

// Transposes LANES vectors: number j of vector i becomes number i of vector j. Each round merges
// vectors i and i + LANES/2, number by number.
INLINE void transpose(vf v[LANES]) {
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        vf next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            vf a = v[i], b = v[i + LANES / 2];
#if LANES == 16
            next[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                                  22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                                      13, 29, 14, 30, 15, 31);
#elif LANES == 8
            next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            next[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            next[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) v[i] = next[i];
    }
}

// Returns e^x within 2 units in the last place (Cephes' expf): x = n·ln 2 + r, e^r by a polynomial,
// 2^n by its bits. Below −87 it is as good as 0.
INLINE vf exponential(vf x) {
    x = larger(splat(-87.3f), choose(x < splat(88.3f), x, splat(88.3f)));
    vf n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // the nearest whole number
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}

// Σ over i of x[t·xs + i] times the two vectors at w[i·ws], for T rows t of x; the sums begin with
// y's or with 0 and go to y[t·ys]. T is a constant, so that all sums stay in registers. This is the
// inner loop of a matrix product, of the scores, and of the values that attention mixes.
INLINE void outer(int T, const float *x, size_t xs, const float *w, size_t ws, int n, float *y,
                  size_t ys, bool more) {
    vf sum[TOKENS][2];
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
        sum[t][0] = more ? load(y + t * ys) : (vf){0};
        sum[t][1] = more ? load(y + t * ys + LANES) : (vf){0};
    }
    for (int i = 0; i < n; i++) {
        vf first = load(w + i * ws), second = load(w + i * ws + LANES);
#pragma GCC unroll 12
        for (int t = 0; t < T; t++) {
            vf factor = splat(x[t * xs + i]);
            sum[t][0] += factor * first;
            sum[t][1] += factor * second;
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
        store(y + t * ys, sum[t][0]);
        store(y + t * ys + LANES, sum[t][1]);
    }
}

#endif
