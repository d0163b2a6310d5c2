// The models of minillm-repl on the CPU: what Python fills in, and what it may call.
//
// One step reads some new tokens and leaves the logits after the last ones. Everything is float32
// arithmetic on the weights as the file stores them; model/llama.py and model/gpt.py define what is
// computed. These files are compiled once for each kind of processor (see vector.h), each time into
// a library of its own. Nothing here allocates in a step, and there is no global state.
//
//   vector.h     short arrays of floats that fit a register
//   team.c       threads that share the pieces of a step
//   matmul.c     weights times activations;  amx.c  the same on Intel's tile unit
//   quantised.c  weights of 8 bits or fewer times a token, and what they are in float32
//   attention.c  attention with online softmax over the KV cache
//   pointwise.c  norms, Canon layers, activations, rotary positions, rounding of activations
//   experts.c    mixtures of experts: which experts each token goes to
//   forward.c    a step of a model, top to bottom: begin to read here

#ifndef MINILLM_KERNELS_H
#define MINILLM_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

// How the numbers of a matrix (rows, inputs) lie in memory.
enum Kind {
    F32,     // row by row, float32
    BF16,    // row by row, bfloat16
    F16,     // row by row, float16
    PANELS,  // float32, PANEL rows side by side: (panels, inputs, PANEL); missing rows are 0
    Q8,      // 8 and 4 bits with scales in bfloat16: model/panels.py says how these lie
    Q4,
    Q8_0,  // the block formats of GGUF, each with the scales that it has there
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
};

enum Activation { GELU, GELU_TANH, SILU, RELU };  // the order of model/config.py's ACTIVATIONS

#define GROUP 32   // inputs of a quantised row that share a scale
#define Q_ROWS 16  // rows of a quantised matrix that lie side by side
#define MAX_TOKENS \
    132  // that are read in one step: a multiple of the 12 that matmul.c takes at once

typedef struct {
    const void *weights;  // NULL: there is no such matrix
    const void *scales;   // of Q8 and all below it
    const float *bias;    // (rows,), or NULL
    int32_t kind, rows, inputs;
} Matrix;

typedef struct {
    const float *gain, *bias;  // with a bias it is a LayerNorm, else an RMSNorm; NULL: none
} Norm;

#define CANON 4  // tokens that a Canon layer mixes: a token and the three before it

typedef struct {
    Matrix gate, up, down;
} Expert;

typedef struct {
    Norm norm1, norm2;            // of what attention and MLP read, if the model has them
    Norm post_norm1, post_norm2;  // of what they add
    Norm q_norm, k_norm;          // of each head, or of all heads of a token together
    // (CANON, d_model): of the Canon layers after norm1 and norm2, or NULL
    const float *canon1, *canon2;
    // Of a short convolution in the place of attention, or NULL: (CANON, d_model), and the matrix
    // (3 · d_model, d_model) of what it mixes and its two gates
    const float *taps;
    Matrix gates;
    Matrix qkv[3];  // queries, keys and values, in this order, in one matrix or more
    Matrix proj;
    Matrix gate, up, down;  // the gate is missing in a plain MLP
    // Of a mixture of experts, which has no MLP of its own: what chooses them, and n_experts of them
    Matrix router;
    const Expert *experts;
    int32_t window;  // positions that a query sees, its own included; 0 for all
    int32_t rope;    // which of the rotary angles; -1: queries and keys are not rotated
} Layer;

typedef struct {
    int32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_mlp, vocab_size, context_length;
    int32_t activation, parallel_residual;
    int32_t qk_norm_per_head;
    // Of mixtures of experts, or 0: norm_topk_prob divides the weights of the chosen ones by their sum.
    int32_t n_experts, n_experts_per_tok, d_expert, norm_topk_prob;
    float norm_eps;
    // Multipliers of the embedding, of what attention and MLP add, of scores and of logits; caps of
    // scores and logits, or 0.
    float embedding_scale, residual_scale, attention_scale, logit_scale;
    float attention_softcap, logit_softcap;
    float qkv_clip;  // queries, keys and values stay within ± this; 0: they stay as they are
    int32_t n_threads;
    Matrix embedding, head;
    const float *positions;  // (context_length, d_model): learned ones, or NULL
    Norm norm;               // before the head
    const Layer *layers;
} Model;

typedef struct Context Context;

// Returns the version of what is declared above, so that Python never calls another.
EXPORT int minillm_abi(void);
// Returns 1 if this processor and operating system run this library.
EXPORT int minillm_supported(void);
// Returns how many rows lie side by side in a matrix of kind PANELS.
EXPORT int minillm_panel_rows(void);
// Returns NULL if the sizes of a model fit together, else which do not.
EXPORT const char *minillm_check(const Model *model);
// Returns what a model needs to run, or NULL without memory. The model's arrays must outlive it.
EXPORT Context *minillm_new(const Model *model);
// Frees it. All threads in minillm_work must have returned.
EXPORT void minillm_free(Context *context);
// Makes room for `positions` tokens in the KV cache, and keeps what is in it. `cos` and `sin`
// (ropes, positions, pairs) are of the rotary angles and must outlive the next call. Returns 0, or 1
// without memory.
EXPORT int minillm_reserve(Context *context, int positions, const float *cos, const float *sin,
                           int pairs);
// Returns the bytes of a KV cache with room for `positions` tokens.
EXPORT size_t minillm_cache_bytes(const Context *context, int positions);
// Reads `count` tokens at the positions from `start`, and writes the logits (wanted, vocab_size)
// after each of the last `wanted`. Returns 0, or 1 if a token, a position or a number is out of range.
EXPORT int minillm_forward(Context *context, const int32_t *ids, int count, int start, int wanted,
                           float *logits);
// Takes part in every step as thread 1, 2, … of the team, until minillm_stop.
EXPORT void minillm_work(Context *context, int thread);
EXPORT void minillm_stop(Context *context);
// y (count, rows) = x (count, inputs) times the matrix and its bias; for tests of one matrix.
EXPORT int minillm_matmul(const Matrix *matrix, const float *x, int count, float *y);

#endif
