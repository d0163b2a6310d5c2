// Many tokens times 32 rows, by Intel's tile unit: it multiplies tiles of 16 × 16 with 32 bfloat16
// numbers in depth, sixteen times as fast as the vector units multiply float32.
//
// The arithmetic stays that of float32: a float32 number is the sum of three bfloat16 numbers of 8
// bits each. An activation has three such parts; a weight has as many as its kind needs. Of their
// products, those below 2^-23 of the largest are left out, which float32 would round away.

#include "parts.h"

#if defined(__AMX_BF16__)

#define DEPTH 32  // inputs of a tile
#define TILE (16 * DEPTH)

// The shapes of the eight tile registers.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
} Shapes;

static void use_shapes(void) {
    Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.rows[i] = 16, shapes.bytes_per_row[i] = 2 * DEPTH;
    __asm__ volatile("" ::"r"(&shapes) : "memory");  // the compiler must have written all of it
    _tile_loadconfig(&shapes);
}

// A number of few bits times a scale of 8 or 11 bits fits two parts; all else needs three.
static int parts_of(int kind) {
    switch (kind) {
    case BF16: return 1;
    case F16:
    case Q8:
    case Q4:
    case Q4_0:
    case Q5_0: return 2;
    default: return 3;
    }
}

// Cuts off the upper halves of 32 numbers, which are bfloat16; what is lost is left for the next part.
INLINE __m512i take_part(vf *left, vf *right) {
    static const uint16_t upper_halves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                              23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                              45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    __m512i order = _mm512_loadu_si512(upper_halves);
    __m512i part = _mm512_permutex2var_epi16((__m512i)*left, order, (__m512i)*right);
    *left -= (vf)((vu)*left & 0xffff0000);
    *right -= (vf)((vu)*right & 0xffff0000);
    return part;
}

// Reads n numbers, 32 at most, as two vectors; the rest is 0.
INLINE void read_32(int kind, const void *from, size_t at, int n, vf *left, vf *right) {
    if (n >= DEPTH) {
        *left = widen(kind, from, at);
        *right = widen(kind, from, at + LANES);
        return;
    }
    float few[DEPTH] = {0};
    for (int i = 0; i < n; i++) few[i] = widen_one(kind, from, at + i);
    *left = load(few);
    *right = load(few + LANES);
}

// ---- activations: tiles (blocks of 16 tokens, 3 parts, inputs/32, 16 tokens, 32) ----

void amx_split(const Operand *x, int block, int first, uint16_t *tiles) {
    int n = x->inputs, last = first + SPLIT < n ? first + SPLIT : n;
    for (int i = first; i < last; i += DEPTH) {
        for (int t = 0; t < 16; t++) {
            int token = block * 16 + t;
            vf left = {0}, right = {0};
            if (token < x->count) read_32(F32, x->x, (size_t)token * n + i, n - i, &left, &right);
            uint16_t *to = tiles + (size_t)(i - first) * 16 + t * DEPTH;
            for (int part = 0; part < 3; part++)
                _mm512_storeu_si512(to + part * SPLIT * 16, take_part(&left, &right));
        }
    }
}

// ---- weights: tiles (inputs/32, 2, parts, 16 pairs of inputs, 16 rows, 2) ----

// 16 rows and 32 inputs of a quantised matrix: its panels have the rows side by side already.
INLINE void quantised_tile(int n_parts, const Matrix *m, int row, int group, uint16_t *tile) {
    float widened[DEPTH * LANES];
    size_t at = (size_t)(row / Q_ROWS) * groups_of(m->inputs) + group;
    dequantise_group(m, at, 0, widened, LANES);
    for (int pair = 0; pair < DEPTH / 2; pair++) {
        vf even = load(widened + 2 * pair * LANES), odd = load(widened + (2 * pair + 1) * LANES);
        for (int part = 0; part < n_parts; part++) {
            vu upper = (vu)even & 0xffff0000, upper_odd = (vu)odd & 0xffff0000;
            *(vi_any *)(tile + part * TILE + pair * 32) = (vi)(upper >> 16 | upper_odd);
            even -= (vf)upper;
            odd -= (vf)upper_odd;
        }
    }
}

// The same of a matrix whose rows lie one after another; rows from `last` on are 0.
INLINE void plain_tile(int kind, int n_parts, const Matrix *m, int row, int last, int i,
                       uint16_t *tile) {
    if (kind == BF16 && row + 16 <= last && i + DEPTH <= m->inputs) {  // as the file has it
        const uint16_t *w = (const uint16_t *)m->weights + (size_t)row * m->inputs + i;
        vf pairs[LANES];
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++) pairs[r] = load((const float *)(w + (size_t)r * m->inputs));
        transpose(pairs);
#pragma GCC unroll 16
        for (int p = 0; p < 16; p++) store((float *)(tile + p * 32), pairs[p]);
        return;
    }
    vf left[16], right[16];
    for (int r = 0; r < 16; r++) {
        left[r] = right[r] = (vf){0};
        if (row + r < last)
            read_32(kind, m->weights, (size_t)(row + r) * m->inputs + i, m->inputs - i, &left[r],
                    &right[r]);
    }
    for (int part = 0; part < n_parts; part++) {
        vf pairs[LANES];
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++) pairs[r] = (vf)take_part(&left[r], &right[r]);
        transpose(pairs);
#pragma GCC unroll 16
        for (int p = 0; p < 16; p++) store((float *)(tile + part * TILE + p * 32), pairs[p]);
    }
}

static void make_tiles(const Matrix *m, int first, int last, uint16_t *tile) {
    int n_parts = parts_of(m->kind);
    for (int i = 0; i < m->inputs; i += DEPTH)
        for (int row = first; row < first + 32; row += 16, tile += n_parts * TILE)
            switch (row < last ? m->kind : -1) {
            case F32: plain_tile(F32, 3, m, row, last, i, tile); break;
            case F16: plain_tile(F16, 2, m, row, last, i, tile); break;
            case BF16: plain_tile(BF16, 1, m, row, last, i, tile); break;
            case -1: memset(tile, 0, (size_t)n_parts * TILE * sizeof *tile); break;
            default:
                if (n_parts == 2)
                    quantised_tile(2, m, row, i / GROUP, tile);
                else
                    quantised_tile(3, m, row, i / GROUP, tile);
            }
}

// ---- the product ----

// 16 tokens, or 32 if `two`, whose parts lie `block` apart, times 32 rows: tiles 0 and 1, and 2 and 3.
INLINE void multiply_tiles(int n_parts, bool two, const uint16_t *x, size_t block,
                           const uint16_t *w, int steps) {
    size_t part = block / 3;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < steps; i++, w += 2 * n_parts * TILE, x += TILE) {
        for (int p = 0; p < n_parts; p++) {
            _tile_loadd(6, w + p * TILE, 64);
            _tile_loadd(7, w + (n_parts + p) * TILE, 64);
            for (int q = 0; q < 3 - p; q++) {
                _tile_loadd(4, x + q * part, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if (!two) continue;
                _tile_loadd(5, x + q * part + block, 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
}

// Writes the first tokens and rows of a tile (16 tokens, 16 rows) into out (tokens, rows).
static void put_tile(const float *tile, int tokens, int rows, float *out, int stride) {
    for (int t = 0; t < tokens; t++)
        memcpy(out + (size_t)t * stride, tile + t * 16, (size_t)rows * 4);
}

void amx_matmul(const Matrix *m, int first, int last, const Operand *x, float *out, int stride,
                Scratch *s) {
    int steps = up_to(m->inputs, DEPTH) / DEPTH, n_parts = parts_of(m->kind);
    size_t block = (size_t)3 * steps * TILE;
    uint16_t *w = (uint16_t *)s->panel;
    make_tiles(m, first, last, w);
    use_shapes();
    for (int t = 0; t < x->count; t += 32) {
        const uint16_t *from = x->parts + t / 16 * block;
        bool two = x->count - t > 16;
        switch (2 * n_parts + two) {  // constants, so that each is a loop without branches
        case 2: multiply_tiles(1, false, from, block, w, steps); break;
        case 3: multiply_tiles(1, true, from, block, w, steps); break;
        case 4: multiply_tiles(2, false, from, block, w, steps); break;
        case 5: multiply_tiles(2, true, from, block, w, steps); break;
        case 6: multiply_tiles(3, false, from, block, w, steps); break;
        default: multiply_tiles(3, true, from, block, w, steps);
        }
        if (x->count - t >= 32 && last - first == 32) {
            float *to = out + (size_t)t * stride;
            _tile_stored(0, to, stride * 4);
            _tile_stored(1, to + 16, stride * 4);
            _tile_stored(2, to + 16 * (size_t)stride, stride * 4);
            _tile_stored(3, to + 16 * (size_t)stride + 16, stride * 4);
            continue;
        }
        _tile_stored(0, s->tiles, 64);
        _tile_stored(1, s->tiles + 256, 64);
        _tile_stored(2, s->tiles + 512, 64);
        _tile_stored(3, s->tiles + 768, 64);
        for (int i = 0; i < 4; i++) {
            int token = t + i / 2 * 16, row = i % 2 * 16;
            int tokens = x->count - token < 16 ? x->count - token : 16, rows = last - first - row;
            if (rows > 0 && tokens > 0)
                put_tile(s->tiles + i * 256, tokens, rows < 16 ? rows : 16,
                         out + (size_t)token * stride + row, stride);
        }
    }
    _tile_release();
}

#endif
