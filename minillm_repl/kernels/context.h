// What a model needs to run: the memory of a step, and the KV cache (context.c).

#ifndef MINILLM_CONTEXT_H
#define MINILLM_CONTEXT_H

#include "parts.h"
#include "team.h"

struct Context {
    const Model *model;
    Team *team;
    Scratch *scratch;         // of each thread
    void *memory;             // of all arrays below but the cache
    float *x, *x2;            // (t, w): the residual stream, before and after attention
    float *normed, *normed2;  // (t, w)
    float *qkv;               // (t, (h + 2g) · d)
    float *queries;           // (t, h · d): rotated and scaled
    float *z;                 // (t, h · d): what the heads have mixed
    float *hidden;            // (t, d_mlp)
    float *part_mixed;        // (parts, h, padded), and the two below (parts, h): see attention.c
    float *part_largest, *part_total;
    // Of mixtures of experts: the router's logits (t, n_experts), the weights of the chosen experts
    // (t, n_experts_per_tok), and what goes in and out of the experts, a row for each pair
    float *scores, *weights, *pairs_in, *pairs_hidden, *pairs_out;
    int32_t *chosen, *plan;  // (t, n_experts_per_tok), and the numbers of a Plan
    Operand operand;         // the memory of the other forms of a product's operand
    // The KV cache: keys (layers, g, blocks, d, 32), values (layers, g, positions, padded).
    float *keys, *values;
    // What Canon layers read, and convolutions as the first of two: (layers, 2, CANON − 1 + positions,
    // w), zeros, then every position.
    float *canon;
    int capacity, padded, most_parts;
    const float *cos, *sin;  // (ropes, angles, pairs)
    int angles, pairs;       // positions that have angles, and pairs of a head
};

// Whether a layer has a short convolution in the place of attention.
static inline bool has_convolution(const Model *m) {
    for (int i = 0; m->layers && i < m->n_layers; i++)  // one matrix, for a test, has none
        if (m->layers[i].taps) return true;
    return false;
}

// Numbers in the cache that a Canon layer or a convolution reads, with room for `capacity` positions.
static inline size_t canon_numbers(const Model *m, int capacity) {
    return ((size_t)CANON - 1 + capacity) * m->d_model;
}

// Rows of a matrix that make a piece of work: enough for about a hundred pieces in all.
static inline int rows_per_piece(int rows, int count) {
    return count > 1 ? PIECE_ROWS : PIECE_ROWS * (1 + rows / (PIECE_ROWS * 96));
}

// forward.c: goes through a step as one thread of the team.
void run_step(Member *member, int thread, void *job);

#endif
