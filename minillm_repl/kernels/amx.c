// Many tokens times 32 rows, by Intel's tile unit: it multiplies tiles of 16 × 16 with 32 bfloat16
// numbers or 64 bytes in depth, sixteen times as fast as the vector units.
//
// The arithmetic stays that of float32: bfloat16 weights are used as they are, and an activation is
// the sum of three bfloat16 numbers, which together have all its bits; quantised weights are
// multiplied with three digits of each activation, as whole numbers (pointwise.c).

#include "parts.h"

#if defined(__AMX_BF16__)

// The shapes of the eight tile registers.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
} Shapes;

static void use_shapes(const Shapes *shapes) {
    __asm__ volatile("" ::"r"(shapes) : "memory");
    _tile_loadconfig(shapes);
}

void amx_split(const Operand *x, int block, int first, uint32_t *parts) {
    static const uint16_t upper_halves[32] = {
        1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    __m512i order = _mm512_loadu_si512(upper_halves);
    int n = x->inputs, last = first + SPLIT < n ? first + SPLIT : n;
    for (int i = first; i < last; i += 2 * LANES) {
        vf left[16], right[16];  // what is left of 16 tokens' numbers, LANES and LANES
        for (int t = 0; t < 16; t++) {
            int token = block * 16 + t;
            const float *from = x->x + (size_t)token * n + i;
            left[t] = token < x->count ? load(from) : (vf){0};
            right[t] = token < x->count ? load(from + LANES) : (vf){0};
        }
        for (int part = 0; part < 3; part++) {
            vf pairs[LANES];
            for (int t = 0; t < 16; t++) {
                pairs[t] = (vf)_mm512_permutex2var_epi16((__m512i)left[t], order, (__m512i)right[t]);
                left[t] -= (vf)((vu)left[t] & 0xffff0000);
                right[t] -= (vf)((vu)right[t] & 0xffff0000);
            }
            transpose(pairs);
            uint32_t *to = parts + (size_t)part * SPLIT * 8 + (i - first) * 8;
            for (int p = 0; p < LANES; p++) store((float *)to + p * 16, pairs[p]);
        }
    }
}

// Writes a tile (16 rows, 16 tokens) into out (tokens, rows).
static void put_tile(const float *tile, int tokens, float *out, int stride) {
    vf v[LANES];
    for (int r = 0; r < 16; r++) v[r] = load(tile + r * 16);
    transpose(v);
    for (int t = 0; t < tokens; t++) store(out + (size_t)t * stride, v[t]);
}

void amx_bf16(const Matrix *m, int first, const Operand *x, float *out, int stride, Scratch *s) {
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.rows[i] = 16, shapes.bytes_per_row[i] = 64;
    use_shapes(&shapes);
    int n = m->inputs, blocks = (x->count + 15) / 16;
    const uint16_t *w = (const uint16_t *)m->weights + (size_t)first * n, *w2 = w + 16 * (size_t)n;
    size_t part = (size_t)n * 8, block = 3 * part;
    for (int b = 0; b < blocks; b += 2) {
        const uint32_t *parts = x->parts + b * block;
        size_t second = b + 1 < blocks ? block : 0;  // the last may be alone: it is done twice
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int i = 0; i < n; i += 32) {
            _tile_loadd(4, w + i, n * 2);
            _tile_loadd(5, w2 + i, n * 2);
            for (int p = 0; p < 3; p++) {
                const uint32_t *from = parts + p * part + (size_t)i * 8;
                _tile_loadd(6, from, 64);
                _tile_loadd(7, from + second, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, s->tiles, 64);
        _tile_stored(1, s->tiles + 256, 64);
        _tile_stored(2, s->tiles + 512, 64);
        _tile_stored(3, s->tiles + 768, 64);
        for (int i = 0; i < 4; i++) {
            int t = (b + i / 2) * 16, tokens = x->count - t < 16 ? x->count - t : 16;
            if (tokens > 0) put_tile(s->tiles + i * 256, tokens, out + (size_t)t * stride + i % 2 * 16, stride);
        }
    }
    _tile_release();
}

// Quantised weights of a panel of 16 rows, in bytes: (groups, 8, 16, 4).
static const uint8_t *bytes_of(const Matrix *m, int panel, uint8_t *bytes) {
    size_t groups = groups_of(m->inputs), size = GROUP * Q_ROWS;
    if (m->kind == Q8) return (const uint8_t *)m->weights + panel * groups * size;
    const uint8_t *from = (const uint8_t *)m->weights + panel * groups * size / 2;
    for (size_t i = 0; i < groups * 4; i++) {
        vi v = load_int(from + i * 64);
        *(vi_any *)(bytes + i * 128) = v & 0x0f0f0f0f;
        *(vi_any *)(bytes + i * 128 + 64) = (vi)((vu)v >> 4) & 0x0f0f0f0f;
    }
    return bytes;
}

// 16 tokens from t on, times a panel of 16 rows. In a group the products are whole numbers.
static void sixteen(const Matrix *m, int panel, const uint8_t *w, const Operand *x, int t, Scratch *s,
                    vf y[16]) {
    int groups = groups_of(m->inputs), padded = groups * GROUP, offset = digit_offset(m);
    const int8_t *digits = x->digits + (size_t)t * DIGITS * padded;
    const int32_t *low = (int32_t *)s->tiles, *middle = low + 256, *high = low + 512;
    for (int i = 0; i < 16; i++) y[i] = (vf){0};
    for (int g = 0; g < groups; g++) {
        _tile_loadd(4, w + (size_t)g * GROUP * Q_ROWS, 64);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_loadd(5, digits + g * GROUP, DIGITS * padded);
        _tile_loadd(6, digits + padded + g * GROUP, DIGITS * padded);
        _tile_loadd(7, digits + 2 * padded + g * GROUP, DIGITS * padded);
        _tile_dpbsud(0, 5, 4);
        _tile_dpbsud(1, 6, 4);
        _tile_dpbsud(2, 7, 4);
        _tile_stored(0, s->tiles, 64);
        _tile_stored(1, s->tiles + 256, 64);
        _tile_stored(2, s->tiles + 512, 64);
        vf scale = widen(BF16, m->scales, ((size_t)panel * groups + g) * Q_ROWS);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            size_t at = (size_t)(t + i) * groups + g;
            const int32_t *sums = x->sums + at * DIGITS;
            vi upper = load_int(high + i * 16) * 128 + load_int(middle + i * 16);
            upper -= offset * (sums[2] * 128 + sums[1]);
            vf product = from_int(upper) * 128.0f + from_int(load_int(low + i * 16) - offset * sums[0]);
            y[i] += product * (scale * x->steps[at]);
        }
    }
}

void amx_q8(const Matrix *m, int first, const Operand *x, float *out, int stride, Scratch *s) {
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.rows[i] = 16, shapes.bytes_per_row[i] = i < 5 ? 64 : GROUP;
    shapes.rows[4] = GROUP / 4;
    use_shapes(&shapes);
    for (int half = 0; half < 2; half++) {
        const uint8_t *w = bytes_of(m, first / Q_ROWS + half, s->bytes);
        for (int t = 0; t < x->count; t += 16) {
            vf y[16];
            sixteen(m, first / Q_ROWS + half, w, x, t, s, y);
            for (int i = 0; i < 16 && t + i < x->count; i++)
                store(out + (size_t)(t + i) * stride + half * Q_ROWS, y[i]);
        }
    }
    _tile_release();
}

#endif
