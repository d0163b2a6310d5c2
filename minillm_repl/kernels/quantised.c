// Weights of 8 bits or fewer: whole numbers times the scale of their group, 16 rows side by side.
// model/panels.py packs them, and says how they lie.
//
// For one token, activations are whole numbers too, of three digits (pointwise.c): the products are
// exact, and every processor gets the same. weight = (number − offset) · scale + minimum, so that a
// group adds step · (scale · Σ (number − offset) · x + minimum · Σ x).

#include "parts.h"

// NEON's product wants signed bytes, which the numbers of 8 bits are once their offset is gone.
#if defined(__ARM_NEON)
#define SIGNED_BYTES 1
#else
#define SIGNED_BYTES 0
#endif

#define K_GROUPS 8                  // of a block of the K formats
#define LOWER (GROUP * Q_ROWS / 2)  // bytes of the lower four bits of a group

static int bits_of(int kind) {
    switch (kind) {
    case Q8:
    case Q8_0: return 8;
    case Q5_0:
    case Q5_1:
    case Q5_K: return 5;
    case Q6_K: return 6;
    default: return 4;
    }
}

static int offset_of(int kind) {
    switch (kind) {
    case Q8:
    case Q8_0: return 128;
    case Q4:
    case Q4_0: return 8;
    case Q5_0: return 16;
    case Q6_K: return 32;
    default: return 0;
    }
}

// ---- numbers and scales ----

// Returns four inputs, a byte each, of LANES rows of a group.
INLINE vi numbers_at(int bits, const uint8_t *w, int quad) {
    if (bits == 8) return load_int(w + quad * 4 * Q_ROWS);
    vu lower = (vu)load_int(w + quad / 2 * 4 * Q_ROWS) >> (quad % 2 * 4) & 0x0f0f0f0f;
    if (bits == 4) return (vi)lower;
    vu upper = (vu)load_int(w + LOWER + (bits == 6 ? quad / 4 * 4 * Q_ROWS : 0));
    upper = bits == 6 ? upper >> (quad % 4 * 2) & 0x03030303 : upper >> quad & 0x01010101;
    return (vi)(lower | upper << 4);
}

typedef uint8_t vb_any __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int8_t vc_any __attribute__((vector_size(LANES), aligned(1), may_alias));

INLINE vf from_bytes(const uint8_t *p) {
    return from_int(__builtin_convertvector(*(const vb_any *)p, vi));
}

INLINE vf from_signed_bytes(const uint8_t *p) {
    return from_int(__builtin_convertvector(*(const vc_any *)p, vi));
}

static bool has_minimum(int kind) {
    return kind == Q4_1 || kind == Q5_1 || kind == Q4_K || kind == Q5_K;
}

// Returns the scales of LANES rows in group `at` of a matrix (in its half `half`, if that has a scale
// of its own), and their minima.
INLINE vf scale_of(const Matrix *m, size_t at, int half, int lane, vf *minimum) {
    const uint8_t *s = m->scales;
    size_t group = at % K_GROUPS;
    switch (m->kind) {
    case Q8:
    case Q4: return widen(BF16, s, at * Q_ROWS + lane);
    case Q8_0:
    case Q4_0:
    case Q5_0: return widen(F16, s, at * Q_ROWS + lane);
    case Q4_1:
    case Q5_1:
        *minimum = widen(F16, s, (2 * at + 1) * Q_ROWS + lane);
        return widen(F16, s, 2 * at * Q_ROWS + lane);
    case Q6_K:
        s += at / K_GROUPS * (2 + 2 * K_GROUPS) * Q_ROWS;
        return widen(F16, s, lane) * from_signed_bytes(s + (2 + 2 * group + half) * Q_ROWS + lane);
    default:  // Q4_K, Q5_K
        s += at / K_GROUPS * (4 + 2 * K_GROUPS) * Q_ROWS;
        *minimum =
            -(widen(F16, s, Q_ROWS + lane) * from_bytes(s + (5 + 2 * group) * Q_ROWS + lane));
        return widen(F16, s, lane) * from_bytes(s + (4 + 2 * group) * Q_ROWS + lane);
    }
}

INLINE size_t group_bytes(int bits) { return (size_t)bits * GROUP * Q_ROWS / 8; }

// ---- one token ----

// Adds, to each of LANES numbers, the products of four bytes of w (0 to 255) with the four digits
// in x: that of a row with four inputs.
INLINE vi dot4(vi sum, vi w, int32_t x) {
#if defined(__AVX512VNNI__) && LANES == 16
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
#elif LANES == 8
    // A pair is at most 2 · 255 · 64, which 16 bits hold.
    __m256i pairs = _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(x));
    return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__SSSE3__)
    __m128i pairs = _mm_maddubs_epi16((__m128i)w, _mm_set1_epi32(x));
    return sum + (vi)_mm_madd_epi16(pairs, _mm_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)w, vreinterpretq_s8_s32(vdupq_n_s32(x)));
#elif defined(__ARM_NEON)
    int8x16_t digits = vreinterpretq_s8_s32(vdupq_n_s32(x));
    int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)w), vget_low_s8(digits));
    int16x8_t high = vmull_s8(vget_high_s8((int8x16_t)w), vget_high_s8(digits));
    return sum + (vi)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#else
    for (int j = 0; j < 4; j++)
        sum += ((w >> (8 * j)) & 255) * (int32_t)(int8_t)((uint32_t)x >> (8 * j));
    return sum;
#endif
}

// LANES rows of a panel of 16, from row `lane` on, times one token. Only Q6_K has 6 bits, and scales
// of half a group.
INLINE vf rows_times(int bits, const Matrix *m, int panel, int lane, const Operand *x, int t) {
    int groups = groups_of(m->inputs), padded = groups * GROUP, halves = bits == 6 ? 2 : 1;
    int offset = bits == 8 && SIGNED_BYTES ? 0 : offset_of(m->kind);
    bool minimal = has_minimum(m->kind);
    const uint8_t *w =
        (const uint8_t *)m->weights + (size_t)panel * groups * group_bytes(bits) + lane * 4;
    const int8_t *digits = x->digits + (size_t)t * DIGITS * padded;
    const float *steps = x->steps + (size_t)t * groups;
    const int32_t *sums = x->sums + (size_t)t * groups * 2 * DIGITS;
    vf y = {0};
    for (int g = 0; g < groups; g++, w += group_bytes(bits), sums += 2 * DIGITS) {
        for (int half = 0; half < halves; half++) {
            int32_t sum[DIGITS];  // of the digits of the inputs
            for (int d = 0; d < DIGITS; d++)
                sum[d] = sums[half * DIGITS + d] + (halves == 1 ? sums[DIGITS + d] : 0);
            vi low = (vi){0} - offset * sum[0], middle = (vi){0} - offset * sum[1];
            vi high = (vi){0} - offset * sum[2];
#pragma GCC unroll 8
            for (int i = 0; i < GROUP / 4 / halves; i++) {
                int quad = half * (GROUP / 8) + i;
                vi v = numbers_at(bits, w, quad);
                if (bits == 8 && SIGNED_BYTES) v ^= (int32_t)0x80808080;
                int32_t four[DIGITS];
                for (int d = 0; d < DIGITS; d++)
                    memcpy(four + d, digits + d * padded + g * GROUP + quad * 4, 4);
                low = dot4(low, v, four[0]);
                middle = dot4(middle, v, four[1]);
                high = dot4(high, v, four[2]);
            }
            vf minimum = {0}, scale = scale_of(m, (size_t)panel * groups + g, half, lane, &minimum);
            vf product = from_int(high * 128 + middle) * 128.0f + from_int(low);
            y += product * (scale * steps[g]);
            if (minimal)
                y += minimum * ((float)((sum[2] * 128 + sum[1]) * 128 + sum[0]) * steps[g]);
        }
    }
    return y;
}

INLINE void panels_times(int bits, const Matrix *m, int first, int last, const Operand *x, int t,
                         float *y) {
    for (int row = first; row < last; row += LANES) {
        vf sums = rows_times(bits, m, row / Q_ROWS, row % Q_ROWS, x, t);
        int n = last - row < LANES ? last - row : LANES;
        if (n == LANES)
            store(y + row - first, sums);
        else
            for (int i = 0; i < n; i++) y[row - first + i] = sums[i];
    }
}

void quantised_matmul(const Matrix *m, int first, int last, const Operand *x, int t, float *y) {
    switch (bits_of(m->kind)) {
    case 8: panels_times(8, m, first, last, x, t, y); break;
    case 6: panels_times(6, m, first, last, x, t, y); break;
    case 5: panels_times(5, m, first, last, x, t, y); break;
    default: panels_times(4, m, first, last, x, t, y);
    }
}

// ---- in float32 ----

INLINE void widen_group(int bits, const Matrix *m, size_t at, int lane, float *out, int stride) {
    const uint8_t *w = (const uint8_t *)m->weights + at * group_bytes(bits) + lane * 4;
    int offset = offset_of(m->kind);
    vf minimum = {0}, scale = {0};
    for (int quad = 0; quad < GROUP / 4; quad++) {
        if (quad == 0 || (bits == 6 && quad == 4))
            scale = scale_of(m, at, quad / 4, lane, &minimum);
        vu v = (vu)numbers_at(bits, w, quad);
        for (int j = 0; j < 4; j++, out += stride)
            store(out, from_int((vi)(v >> (8 * j) & 255) - offset) * scale + minimum);
    }
}

void dequantise_group(const Matrix *m, size_t at, int lane, float *out, int stride) {
    switch (bits_of(m->kind)) {
    case 8: widen_group(8, m, at, lane, out, stride); break;
    case 6: widen_group(6, m, at, lane, out, stride); break;
    case 5: widen_group(5, m, at, lane, out, stride); break;
    default: widen_group(4, m, at, lane, out, stride);
    }
}

void dequantise_row(const Matrix *m, int row, float *out) {
    int groups = groups_of(m->inputs), lane = row % Q_ROWS / LANES * LANES;
    float group[GROUP * LANES];
    for (int i = 0; i < m->inputs; i++) {
        if (i % GROUP == 0)
            dequantise_group(m, (size_t)(row / Q_ROWS) * groups + i / GROUP, lane, group, LANES);
        out[i] = group[i % GROUP * LANES + row % LANES];
    }
}

void dequantise_panel(const Matrix *m, int first, float *panel) {
    int groups = groups_of(m->inputs), panels = up_to(m->rows, Q_ROWS) / Q_ROWS;
    for (int block = 0; block < PANEL; block += LANES) {
        int row = first + block;
        for (int g = 0; g < groups; g++) {
            float *out = panel + (size_t)g * GROUP * PANEL + block;
            if (row / Q_ROWS < panels)
                dequantise_group(m, (size_t)(row / Q_ROWS) * groups + g, row % Q_ROWS, out, PANEL);
            else
                for (int i = 0; i < GROUP; i++) store(out + i * PANEL, (vf){0});
        }
    }
}
