// Attention with online softmax (Milakov and Gimelshein 2018): a long text is gone through in
// stretches; when a larger score turns up, what was mixed so far is scaled down to it.
//
// Up to four queries that share a key are worked on together: the heads of a group, and, when many
// tokens are read at once, the tokens after them. Row r of a key head is head r % group of token
// r / group. Keys lie in blocks of 32 positions, transposed, so that a query is multiplied with 32
// keys side by side.

#include <float.h>

#include "parts.h"

#define NEVER -1e30f  // below any score: what a query does not see

INLINE void outer_rows(int rows, const float *x, size_t xs, const float *w, size_t ws, int n,
                       float *y, size_t ys, bool more) {
    switch (rows) {
    case 1: outer(1, x, xs, w, ws, n, y, ys, more); break;
    case 2: outer(2, x, xs, w, ws, n, y, ys, more); break;
    case 3: outer(3, x, xs, w, ws, n, y, ys, more); break;
    default: outer(4, x, xs, w, ws, n, y, ys, more);
    }
}

// Products of the queries with the keys of positions `begin` to `end`.
static void score(const Attention *a, int rows, int begin, int end, Scratch *s) {
    int d = a->head_dim;
    for (int block = begin / KEY_BLOCK; block * KEY_BLOCK < end; block++) {
        const float *keys = a->keys + (size_t)block * d * KEY_BLOCK;
        float *scores = s->scores + block * KEY_BLOCK - begin;
        for (int half = 0; half < KEY_BLOCK; half += PANEL)
            outer_rows(rows, s->queries, d, keys + half, KEY_BLOCK, d, scores + half, STRETCH,
                       false);
    }
}

// Turns the scores of row r into weights relative to the largest so far, and scales what was mixed.
static void weigh(const Attention *a, int r, int begin, int end, Scratch *s) {
    float *scores = s->scores + r * STRETCH;
    if (a->softcap > 0) softcap(scores, a->softcap, up_to(end - begin, KEY_BLOCK));
    int n = up_to(end - begin, KEY_BLOCK), first = s->seen[2 * r], last = s->seen[2 * r + 1];
    for (int i = 0; i < first - begin && i < n; i++) scores[i] = NEVER;
    for (int i = last > begin ? last - begin : 0; i < n; i++) scores[i] = NEVER;
    vf most = splat(s->largest[r]);
    for (int i = 0; i < n; i += LANES) most = larger(load(scores + i), most);
    float before = s->largest[r], now = greatest(most);
    if (now > before && s->total[r] > 0) {
        float shrink = exponential(splat(before - now))[0], *mixed = s->mixed + r * a->padded;
        s->total[r] *= shrink;
        for (int i = 0; i < a->padded; i++) mixed[i] *= shrink;
    }
    s->largest[r] = now;
    vf added = {0};
    for (int i = 0; i < n; i += LANES) {
        vf seen = load(scores + i);
        vf weight = choose(seen > splat(NEVER), exponential(seen - now), (vf){0});
        store(scores + i, weight);
        added += weight;
    }
    s->total[r] += total(added);
}

// Mixes the values of one part of the cache for some rows of a key head; leaves them in the scratch,
// not yet divided by the sums of their weights.
void attend(const Attention *a, int first_row, int rows, int part, int n_parts, Scratch *s) {
    int low = a->start + a->count, high = 0, d = a->head_dim;
    for (int r = 0; r < rows; r++) {
        int t = (first_row + r) / a->group,
            head = a->kv_head * a->group + (first_row + r) % a->group;
        memcpy(s->queries + r * d, a->queries + ((size_t)t * a->n_heads + head) * d, (size_t)d * 4);
        int last = a->start + t + 1, first = a->window && last > a->window ? last - a->window : 0;
        s->seen[2 * r] = first;
        s->seen[2 * r + 1] = last;
        s->largest[r] = NEVER;
        s->total[r] = 0;
        low = first < low ? first : low;
        high = last > high ? last : high;
    }
    memset(s->mixed, 0, (size_t)rows * a->padded * sizeof(float));
    int blocks = up_to(high, KEY_BLOCK) / KEY_BLOCK - low / KEY_BLOCK;
    int each = up_to(blocks, n_parts) / n_parts * KEY_BLOCK;
    int begin = low / KEY_BLOCK * KEY_BLOCK + part * each,
        stop = begin + each < high ? begin + each : high;
    for (; begin < stop; begin += STRETCH) {
        int end = begin + STRETCH < stop ? begin + STRETCH : stop;
        score(a, rows, begin, end, s);
        for (int r = 0; r < rows; r++) weigh(a, r, begin, end, s);
        for (int i = 0; i < a->padded; i += PANEL)
            outer_rows(rows, s->scores, STRETCH, a->values + (size_t)begin * a->padded + i,
                       a->padded, end - begin, s->mixed + i, a->padded, true);
    }
}
