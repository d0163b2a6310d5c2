// What forward.c puts together: each function works on memory that the caller owns.

#ifndef MINILLM_PARTS_H
#define MINILLM_PARTS_H

#include "kernels.h"
#include "vector.h"

#define DIGITS 3       // of an activation, where weights are whole numbers
#define KEY_BLOCK 32   // positions whose keys lie together, transposed: (head_dim, 32)
#define STRETCH 256    // positions whose scores are kept at once
#define QUERIES 4      // that attention works on together
#define MANY 3         // tokens: from here on transposing rows takes less time than it saves
#define PIECE_ROWS 32  // rows of a matrix that make a piece of work, or a multiple

// Activations (count, inputs) that a matrix is multiplied with, and other forms of the same numbers:
// `product` in forward.c makes those that the kind of matrix needs.
typedef struct {
    const float *x;
    int count, inputs;
    // Of quantised matrices: x = step · (digit 0 + 128 · digit 1 + 128² · digit 2), group by group.
    int8_t *digits;  // (count, DIGITS, groups · 32)
    float *steps;    // (count, groups), powers of two
    int32_t *sums;   // (count, groups, 2, DIGITS), of the digits of 16 inputs
    // For the tile unit: x = part 0 + part 1 + part 2, each in bfloat16; inputs to a multiple of 32.
    uint16_t *parts;  // (blocks of 16 tokens, 3, inputs/32, 16, 32)
} Operand;

// What one thread works in.
typedef struct {
    float *panel;  // (inputs, PANEL): rows of a matrix, transposed; or the tiles of 32 rows
    float *out;    // what a piece of work has computed
    float *out2;   // as large: the gates of an MLP
    float *tiles;  // (4, 256): what the tile unit leaves
    // Attention's, of QUERIES queries each:
    float *queries, *scores, *mixed;  // (d), (STRETCH), (padded d)
    float *largest, *total;  // the largest score so far, and the sum of e^(score − largest)
    int32_t *seen;           // (2): the first position, and the one after the last
    int32_t *plan;           // as large as that of the context
} Scratch;

static inline int groups_of(int inputs) { return (inputs + GROUP - 1) / GROUP; }
static inline int up_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// matmul.c: rows `first` to `last` of a matrix, times all tokens of x: out[t·stride + row − first].
void matmul(const Matrix *m, int first, int last, const Operand *x, float *out, int stride,
            Scratch *s);
// Returns whether a product needs digits, or parts, of its operand.
bool needs_digits(const Matrix *m, int count);
bool needs_parts(const Matrix *m, int count);

// quantised.c: the same of one token t; and what the weights are in float32: 32 inputs of LANES rows,
// from row `lane` of a panel of 16 on, whose group is the one that comes after `at` others in memory,
// into out (32, stride); a row; and a panel (groups · 32, PANEL) with 0 for missing rows.
void quantised_matmul(const Matrix *m, int first, int last, const Operand *x, int t, float *y);
void dequantise_group(const Matrix *m, size_t at, int lane, float *out, int stride);
void dequantise_row(const Matrix *m, int row, float *out);
void dequantise_panel(const Matrix *m, int first, float *panel);

// amx.c: the same as matmul, of 32 rows at most. Defined where the tile unit is.
void amx_matmul(const Matrix *m, int first, int last, const Operand *x, float *out, int stride,
                Scratch *s);
// Splits SPLIT inputs from `first` on, or fewer, of 16 tokens: parts (3, SPLIT/32, 16, 32).
#define SPLIT 512
void amx_split(const Operand *x, int block, int first, uint16_t *parts);

// pointwise.c
void normalise(const Norm *norm, float eps, const float *x, int n, float *y);
void mix_recent(const float *taps, const float *recent, int n, float *y);
void activate(int activation, float *x, int n);
void scale(float *x, float by, int n);
void softcap(float *x, float cap, int n);
void clip(float *x, float most, int n);
void rotate(float *x, const float *cos, const float *sin, int pairs);
void round_to_digits(const float *x, int n, int8_t *digits, float *steps, int32_t *sums);

// experts.c: a pair is a token and an expert that it goes to. The pairs of an expert lie together,
// in rows of their own, from a multiple of PAIR_ALIGN on.
#if defined(__AMX_BF16__)
#define PAIR_ALIGN 16  // tokens that the tile unit takes at once
#else
#define PAIR_ALIGN 1
#endif
#define MAX_PAIRS (8 * MAX_TOKENS)  // that are worked on at once, or those of one token

// Where the pairs are: how many tokens each group of pairs has, of which expert, from which row on.
typedef struct {
    int32_t *expert, *first, *count;  // (groups), of which the last may be empty
    int32_t *token;                   // (rows): the token of a pair; −1: none
    int32_t *row;                     // (tokens, n_experts_per_tok): the row of a pair
} Plan;

int tokens_at_once(const Model *m);
int groups_of_pairs(const Model *m, int count);  // that `count` tokens need
int rows_of_pairs(const Model *m, int count);
size_t plan_numbers(const Model *m);
Plan plan_in(const Model *m, int32_t *numbers);
// The experts with the largest logits, and their weights; `probs` (n_experts) is for its own use.
void choose_experts(const Model *m, const float *logits, float *probs, int32_t *chosen,
                    float *weights);
// The plan of `count` tokens and their chosen experts.
void plan_pairs(const Model *m, const int32_t *chosen, int count, Plan plan);
// Rows `first` to `first + count` of the activations of pairs.
Operand operand_rows(const Operand *all, int first, int count);

// attention.c
typedef struct {
    const float *queries;        // (count, n_heads · head_dim), scaled and rotated
    const float *keys, *values;  // of one key head: (blocks, head_dim, 32) and (positions, padded)
    int count, start, window, group, head_dim, padded;
    int kv_head, n_heads;
    float softcap;  // of scores, or 0
} Attention;
void attend(const Attention *a, int first_row, int rows, int part, int n_parts, Scratch *s);

#endif
