// Weights times activations: y[t, o] = Σ w[o, i] · x[t, i].
//
// For one token, memory is what limits: each row is read once, as the file has it. For many, it is
// arithmetic: a panel of rows is widened to float32 and transposed once, and stays in a near cache
// while all tokens pass by, some at a time, whose sums stay in registers. Quantised weights are
// multiplied as whole numbers, with activations of three digits (pointwise.c): the products are
// exact, and every processor gets the same.

#include "parts.h"

#define AHEAD 8192  // bytes: so far before they are needed, weights are asked for

INLINE float bf16_of(uint16_t half) { return float_of((uint32_t)half << 16); }

static bool is_quantised(const Matrix *m) { return m->kind >= Q8; }

// Returns whether the tile unit multiplies this matrix with this many tokens.
static bool fits_tiles(const Matrix *m, int count) {
#if defined(__AMX_BF16__)
    return count >= 8 && m->kind != PANELS;
#else
    (void)m, (void)count;
    return false;
#endif
}

bool needs_digits(const Matrix *m, int count) { return is_quantised(m) && count < MANY; }

bool needs_parts(const Matrix *m, int count) { return fits_tiles(m, count); }

// ---- one token, rows one after another ----

INLINE float rest_of_row(int kind, const void *w, size_t at, const float *x, int i, int n) {
    float sum = 0;
    for (; i < n; i++) sum += widen_one(kind, w, at + i) * x[i];
    return sum;
}

// Four rows at once, which processors with long registers read faster.
INLINE void four_rows(int kind, const void *w, size_t at, const float *x, int n, float *y) {
    const char *bytes = (const char *)w;
    size_t size = kind == F32 ? 4 : 2, r1 = at + n, r2 = at + 2 * (size_t)n,
           r3 = at + 3 * (size_t)n;
    vf a = {0}, b = {0}, c = {0}, d = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        const char *ahead = bytes + (at + 4 * (size_t)i) * size + AHEAD;
        for (size_t line = 0; line < 4 * LANES * size; line += 64) __builtin_prefetch(ahead + line);
        vf v = load(x + i);
        a += widen(kind, w, at + i) * v;
        b += widen(kind, w, r1 + i) * v;
        c += widen(kind, w, r2 + i) * v;
        d += widen(kind, w, r3 + i) * v;
    }
    y[0] = total(a) + rest_of_row(kind, w, at, x, i, n);
    y[1] = total(b) + rest_of_row(kind, w, r1, x, i, n);
    y[2] = total(c) + rest_of_row(kind, w, r2, x, i, n);
    y[3] = total(d) + rest_of_row(kind, w, r3, x, i, n);
}

// One row; four sums, so that none waits for itself.
INLINE float one_row(int kind, const void *w, size_t at, const float *x, int n) {
    vf a = {0}, b = {0}, c = {0}, d = {0};
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        a += widen(kind, w, at + i) * load(x + i);
        b += widen(kind, w, at + i + LANES) * load(x + i + LANES);
        c += widen(kind, w, at + i + 2 * LANES) * load(x + i + 2 * LANES);
        d += widen(kind, w, at + i + 3 * LANES) * load(x + i + 3 * LANES);
    }
    for (; i + LANES <= n; i += LANES) a += widen(kind, w, at + i) * load(x + i);
    return total((a + b) + (c + d)) + rest_of_row(kind, w, at, x, i, n);
}

INLINE void rows_as_they_are(int kind, const void *w, int first, int last, const float *x, int n,
                             float *y) {
    int row = first;
    if (LANES == 16)
        for (; row + 4 <= last; row += 4)
            four_rows(kind, w, (size_t)row * n, x, n, y + row - first);
    for (; row < last; row++) y[row - first] = one_row(kind, w, (size_t)row * n, x, n);
}

// ---- many tokens ----

// Transposes PANEL rows, in float32: (inputs, PANEL); rows from `last` on are 0.
INLINE void transpose_rows(int kind, const void *w, int first, int last, int n, float *panel) {
    for (int block = 0; block < PANEL; block += LANES) {
        int row = first + block, i = 0;
        for (; row + LANES <= last && i + LANES <= n; i += LANES) {
            vf v[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) v[r] = widen(kind, w, (size_t)(row + r) * n + i);
            transpose(v);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) store(panel + (size_t)(i + r) * PANEL + block, v[r]);
        }
        for (; i < n; i++)
            for (int r = 0; r < LANES; r++)
                panel[(size_t)i * PANEL + block + r] =
                    row + r < last ? widen_one(kind, w, (size_t)(row + r) * n + i) : 0;
    }
}

// PANEL rows, transposed, times all tokens; only the first `rows` are wanted. It stays a function of
// its own: inlined, GCC 12 keeps one of twelve sums in memory, at half the speed.
static __attribute__((noinline)) void panel_times(const float *panel, const Operand *x, int rows,
                                                  float *out, int stride) {
    int n = x->inputs, t = 0;
    float few[TOKENS * PANEL];
    float *y = rows == PANEL ? out : few;
    size_t step = rows == PANEL ? (size_t)stride : PANEL;
    for (int taken; t < x->count; t += taken) {
        const float *from = x->x + (size_t)t * n;
        if (x->count - t >= TOKENS)
            outer(taken = TOKENS, from, n, panel, PANEL, n, y, step, false);
        else if (x->count - t >= 4)
            outer(taken = 4, from, n, panel, PANEL, n, y, step, false);
        else
            outer(taken = 1, from, n, panel, PANEL, n, y, step, false);
        if (rows == PANEL)
            y += taken * step;
        else
            for (int i = 0; i < taken; i++)
                memcpy(out + (size_t)(t + i) * stride, few + i * PANEL, (size_t)rows * 4);
    }
}

// One token times a panel; four sums of each row, so that none waits for itself.
static void panel_times_one(const float *panel, const float *x, int n, int rows, float *y) {
    vf sum[4][2] = {{{0}}};
    int i = 0;
    for (; i + 4 <= n; i += 4) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vf factor = splat(x[i + j]);
            sum[j][0] += factor * load(panel + (size_t)(i + j) * PANEL);
            sum[j][1] += factor * load(panel + (size_t)(i + j) * PANEL + LANES);
        }
    }
    for (; i < n; i++) {
        sum[0][0] += x[i] * load(panel + (size_t)i * PANEL);
        sum[0][1] += x[i] * load(panel + (size_t)i * PANEL + LANES);
    }
    float all[PANEL];
    store(all, (sum[0][0] + sum[1][0]) + (sum[2][0] + sum[3][0]));
    store(all + LANES, (sum[0][1] + sum[1][1]) + (sum[2][1] + sum[3][1]));
    memcpy(y, all, (size_t)rows * 4);
}

static void some_rows(const Matrix *m, int first, int last, const Operand *x, float *out,
                      int stride, Scratch *s) {
    int n = m->inputs;
    if (x->count >= MANY || m->kind == PANELS) {
#if defined(__AMX_BF16__)
        if (fits_tiles(m, x->count)) {
            amx_matmul(m, first, last, x, out, stride, s);
            return;
        }
#endif
        for (int row = first; row < last; row += PANEL) {
            int rows = last - row < PANEL ? last - row : PANEL;
            const float *panel = s->panel;
            switch (m->kind) {
            case F32: transpose_rows(F32, m->weights, row, row + rows, n, s->panel); break;
            case BF16: transpose_rows(BF16, m->weights, row, row + rows, n, s->panel); break;
            case F16: transpose_rows(F16, m->weights, row, row + rows, n, s->panel); break;
            case PANELS: panel = (const float *)m->weights + (size_t)row * n; break;
            default: dequantise_panel(m, row, s->panel);
            }
            if (x->count == 1)
                panel_times_one(panel, x->x, n, rows, out + row - first);
            else
                panel_times(panel, x, rows, out + row - first, stride);
        }
        return;
    }
    for (int t = 0; t < x->count; t++, out += stride) {
        const float *from = x->x + (size_t)t * n;
        switch (m->kind) {
        case F32: rows_as_they_are(F32, m->weights, first, last, from, n, out); break;
        case BF16: rows_as_they_are(BF16, m->weights, first, last, from, n, out); break;
        case F16: rows_as_they_are(F16, m->weights, first, last, from, n, out); break;
        default: quantised_matmul(m, first, last, x, t, out);
        }
    }
}

void matmul(const Matrix *m, int first, int last, const Operand *x, float *out, int stride,
            Scratch *s) {
    for (int row = first; row < last; row += PIECE_ROWS) {
        int end = last - row < PIECE_ROWS ? last : row + PIECE_ROWS;
        some_rows(m, row, end, x, out + row - first, stride, s);
    }
    if (m->bias)
        for (int t = 0; t < x->count; t++)
            for (int row = first; row < last; row++)
                out[(size_t)t * stride + row - first] += m->bias[row];
}
