// What a model needs to run: checked, allocated and freed.

#include "context.h"

#include <stdlib.h>

#if defined(__AMX_BF16__)
#define PANEL_FLOATS 48  // per input: 32 rows of three bfloat16 parts
#else
#define PANEL_FLOATS PANEL
#endif
#define PARTS 16  // of a long text, over all key heads, whatever the number of threads

int minillm_panel_rows(void) { return PANEL; }

// ---- the sizes of a model ----

static bool is_matrix(const Matrix *m, int rows, int inputs) {
    int whole = m->kind >= Q4_K ? 256 : m->kind >= Q8_0 ? GROUP : 1;  // inputs of a block
    return m->weights && m->kind >= F32 && m->kind <= Q6_K && m->rows == rows &&
           m->inputs == inputs && inputs % whole == 0 && (m->scales != NULL) == (m->kind >= Q8);
}

// Whether some matrices, one below the other, are one of this shape.
static bool are_matrix(const Matrix *parts, int n, int rows, int inputs) {
    for (; n && parts->weights; parts++, n--) {
        if (parts->rows < 1 || parts->rows > rows || !is_matrix(parts, parts->rows, inputs))
            return false;
        rows -= parts->rows;
    }
    return rows == 0;
}

// Whether a layer has the experts of a model, and those of each kind lie in memory in one way.
static bool are_experts(const Model *m, const Layer *l) {
    const Expert *one = l->experts;
    if (m->n_experts_per_tok < 1 || m->n_experts_per_tok > m->n_experts || m->d_expert < 1 ||
        m->parallel_residual || l->post_norm2.gain ||
        !is_matrix(&l->router, m->n_experts, m->d_model))
        return false;
    for (const Expert *e = one; e < one + m->n_experts; e++)
        if (!is_matrix(&e->gate, m->d_expert, m->d_model) || e->gate.kind != one->gate.kind ||
            !is_matrix(&e->up, m->d_expert, m->d_model) || e->up.kind != one->up.kind ||
            !is_matrix(&e->down, m->d_model, m->d_expert) || e->down.kind != one->down.kind)
            return false;
    return true;
}

static const char *check_layer(const Model *m, const Layer *l) {
    int d = m->head_dim;
    if (!l->norm1.gain && !l->post_norm1.gain) return "norms of attention";
    if (!l->norm2.gain && (m->parallel_residual || !l->post_norm2.gain)) return "norms of MLP";
    if (!l->canon1 != !m->layers->canon1 || !l->canon2 != !l->canon1) return "canon layers";
    if (l->canon1 && (m->parallel_residual || !l->norm1.gain || !l->norm2.gain)) return "canon";
    if (!l->q_norm.gain != !l->k_norm.gain) return "q_norm and k_norm";
    if (l->taps) {
        if (l->canon1 || m->parallel_residual || !l->norm1.gain) return "convolution";
        if (!is_matrix(&l->gates, 3 * m->d_model, m->d_model)) return "gates";
        if (!is_matrix(&l->proj, m->d_model, m->d_model)) return "proj";
    } else {
        if (!are_matrix(l->qkv, 3, (m->n_heads + 2 * m->n_kv_heads) * d, m->d_model)) return "qkv";
        if (!is_matrix(&l->proj, m->d_model, m->n_heads * d)) return "proj";
    }
    if (l->experts) {
        if (!are_experts(m, l)) return "experts";
    } else {
        if (l->gate.weights && !is_matrix(&l->gate, m->d_mlp, m->d_model)) return "gate";
        if (!is_matrix(&l->up, m->d_mlp, m->d_model)) return "up";
        if (!is_matrix(&l->down, m->d_model, m->d_mlp)) return "down";
    }
    if (l->rope < -1) return "rope";
    return l->window < 0 ? "window" : NULL;
}

const char *minillm_check(const Model *m) {
    if (m->n_layers < 1 || m->d_model < 1 || m->n_heads < 1 || m->n_kv_heads < 1 ||
        m->head_dim < 1 || m->d_mlp < 1 || m->vocab_size < 1 || m->context_length < 1 ||
        m->n_threads < 1)
        return "a size below 1";
    if (m->n_heads % m->n_kv_heads) return "n_heads and n_kv_heads";
    if (m->n_experts < 0 || m->d_expert < 0) return "experts";
    if (m->activation < GELU || m->activation > RELU) return "activation";
    if (!is_matrix(&m->embedding, m->vocab_size, m->d_model)) return "embedding";
    if (!is_matrix(&m->head, m->vocab_size, m->d_model)) return "head";
    if (!m->norm.gain) return "norm";
    for (int i = 0; i < m->n_layers; i++) {
        const char *wrong = check_layer(m, &m->layers[i]);
        if (wrong) return wrong;
    }
    return NULL;
}

// ---- memory ----

// Hands out parts of one block, each at the beginning of a cache line; without a block, it counts.
typedef struct {
    char *block;
    size_t used;
} Pool;

static void *take(Pool *pool, size_t count, size_t size) {
    void *at = pool->block ? pool->block + pool->used : NULL;
    pool->used += (count * size + 63) / 64 * 64;
    return at;
}

static float *floats(Pool *pool, size_t count) { return take(pool, count, sizeof(float)); }

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

static void lay_out(Context *c, Pool *pool) {
    const Model *m = c->model;
    size_t w = m->d_model, d = m->head_dim, h = m->n_heads, g = m->n_kv_heads, t = MAX_TOKENS;
    size_t padded = c->padded, inputs = most(most(w, most(m->d_mlp, m->d_expert)), h * d),
           groups = groups_of((int)inputs);
    bool mixes = has_convolution(m);  // which uses the memory of queries, keys and values
    size_t qkv = most((h + 2 * g) * d, mixes ? 3 * w : 0);
    // A thread that is late may read the first row of one plan and the count of another.
    size_t pairs = m->n_experts ? rows_of_pairs(m, tokens_at_once(m)) + MAX_TOKENS : 0;
    size_t tokens = up_to((int)most(MAX_TOKENS, pairs), 16), parts = c->most_parts;
    c->x = floats(pool, t * w);
    c->x2 = floats(pool, t * w);
    c->normed = floats(pool, t * w);
    c->normed2 = floats(pool, t * w);
    c->qkv = floats(pool, t * qkv);
    c->queries = floats(pool, t * h * d);
    c->z = floats(pool, t * most(h * d, mixes ? w : 0));
    c->hidden = floats(pool, t * m->d_mlp);
    c->scores = floats(pool, t * m->n_experts);
    c->weights = floats(pool, t * m->n_experts_per_tok);
    c->pairs_in = floats(pool, pairs * w);
    c->pairs_hidden = floats(pool, pairs * m->d_expert);
    c->pairs_out = floats(pool, pairs * w);
    c->chosen = take(pool, t * m->n_experts_per_tok, sizeof(int32_t));
    c->plan = take(pool, plan_numbers(m), sizeof(int32_t));
    c->part_mixed = floats(pool, parts * h * padded);
    c->part_largest = floats(pool, parts * h);
    c->part_total = floats(pool, parts * h);
    c->operand.digits = take(pool, tokens * groups * GROUP, DIGITS);
    c->operand.steps = floats(pool, tokens * groups);
    c->operand.sums = take(pool, tokens * groups, 2 * DIGITS * sizeof(int32_t));
    c->operand.parts = take(pool, tokens * groups * GROUP * 3, sizeof(uint16_t));
    size_t widest = most(most(m->vocab_size, m->n_experts), most(m->d_mlp, qkv));
    size_t rows = rows_per_piece((int)widest, 1);
    size_t out = most(most(t * PIECE_ROWS, rows), most(t * d, most(w, 31 * groups)));
    out = most(most(out, 3 * SPLIT * 8), h * d);
    c->scratch = take(pool, m->n_threads, sizeof(Scratch));
    for (int i = 0; i < m->n_threads; i++) {
        Scratch s = {
            .panel = floats(pool, groups * GROUP * PANEL_FLOATS),
            .out = floats(pool, out),
            .out2 = floats(pool, most(t * PIECE_ROWS, rows)),
            .tiles = floats(pool, 4 * 256),
            .queries = floats(pool, QUERIES * d),
            .scores = floats(pool, QUERIES * STRETCH),
            .mixed = floats(pool, QUERIES * padded),
            .largest = floats(pool, QUERIES),
            .total = floats(pool, QUERIES),
            .seen = take(pool, QUERIES * 2, sizeof(int32_t)),
            .plan = take(pool, plan_numbers(m), sizeof(int32_t)),
        };
        if (pool->block) c->scratch[i] = s;
    }
}

static void *zeros(size_t bytes) {
    void *at = NULL;
#if defined(_WIN32)
    at = _aligned_malloc(bytes, 64);
#else
    if (posix_memalign(&at, 64, bytes)) at = NULL;
#endif
    return at ? memset(at, 0, bytes) : NULL;
}

static void give_back(void *at) {
#if defined(_WIN32)
    _aligned_free(at);
#else
    free(at);
#endif
}

// The most pieces that a phase has.
static int most_pieces(const Context *c) {
    const Model *m = c->model;
    int h = m->n_heads, g = m->n_kv_heads, group = h / g;
    size_t inputs = most(most(m->d_model, m->d_mlp), (size_t)(h + 2 * g) * m->head_dim);
    if (has_convolution(m)) inputs = most(inputs, 3 * (size_t)m->d_model);
    inputs = most(inputs, m->d_expert);
    size_t rows = most(inputs, most(m->vocab_size, m->n_experts));
    size_t tiles = (size_t)g * ((MAX_TOKENS * (size_t)group + QUERIES - 1) / QUERIES);
    size_t queries = (size_t)g * ((group + QUERIES - 1) / QUERIES) * c->most_parts;
    size_t split = 9 * (inputs / SPLIT + 1);
    size_t pieces = most(most(rows / PIECE_ROWS + 1, tiles), most(queries, split));
    if (m->n_experts) {
        size_t some = tokens_at_once(m), all = rows_of_pairs(m, (int)some);
        pieces = most(pieces, groups_of_pairs(m, (int)some) * (inputs / PIECE_ROWS + 1));
        pieces = most(pieces, most(all, (all / 16 + 1) * (inputs / SPLIT + 1)));
    }
    return (int)most(most(pieces, h + 2 * g), 2 * MAX_TOKENS);
}

Context *minillm_new(const Model *model) {
    Context *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->model = model;
    c->padded = up_to(model->head_dim, PANEL);
    c->most_parts = (PARTS + model->n_kv_heads - 1) / model->n_kv_heads;
    Pool pool = {0};
    lay_out(c, &pool);
    pool.block = c->memory = zeros(pool.used);
    pool.used = 0;
    c->team = team_new(model->n_threads, most_pieces(c));
    if (!c->memory || !c->team) {
        minillm_free(c);
        return NULL;
    }
    lay_out(c, &pool);
    return c;
}

void minillm_free(Context *c) {
    if (c->team) team_free(c->team);
    give_back(c->memory);
    give_back(c->keys);
    give_back(c->values);
    give_back(c->canon);
    free(c);
}

// KV heads of all layers.
static size_t cache_heads(const Model *m) { return (size_t)m->n_layers * m->n_kv_heads; }

size_t minillm_cache_bytes(const Context *c, int positions) {
    size_t numbers = c->model->head_dim + c->padded;  // of a key, and of a value
    return cache_heads(c->model) * up_to(positions, KEY_BLOCK) * numbers * sizeof(float);
}

int minillm_reserve(Context *c, int positions, const float *cos, const float *sin, int pairs) {
    const Model *m = c->model;
    size_t heads = cache_heads(m), before = c->capacity;
    size_t capacity = up_to(positions, KEY_BLOCK), d = m->head_dim, padded = c->padded;
    if (positions < c->capacity || 2 * pairs > m->head_dim) return 1;
    float *keys = zeros(heads * capacity * d * sizeof(float));
    float *values = zeros(heads * capacity * padded * sizeof(float));
    // Of Canon layers and convolutions.
    size_t inputs = m->layers->canon1 || has_convolution(m) ? 2 * (size_t)m->n_layers : 0;
    float *canon = inputs ? zeros(inputs * canon_numbers(m, (int)capacity) * sizeof(float)) : NULL;
    if (!keys || !values || (inputs && !canon)) {
        give_back(keys);
        give_back(values);
        give_back(canon);
        return 1;
    }
    team_rest(c->team);
    for (size_t i = 0; i < heads && before; i++) {
        memcpy(keys + i * capacity * d, c->keys + i * before * d, before * d * sizeof(float));
        memcpy(values + i * capacity * padded, c->values + i * before * padded,
               before * padded * sizeof(float));
    }
    for (size_t i = 0; i < inputs && before; i++)
        memcpy(canon + i * canon_numbers(m, (int)capacity),
               c->canon + i * canon_numbers(m, (int)before),
               canon_numbers(m, (int)before) * sizeof(float));
    give_back(c->keys);
    give_back(c->values);
    give_back(c->canon);
    c->keys = keys;
    c->values = values;
    c->canon = canon;
    c->capacity = (int)capacity;
    c->cos = cos;
    c->sin = sin;
    c->angles = positions;
    c->pairs = pairs;
    return 0;
}

void minillm_work(Context *c, int thread) { team_work(c->team, thread, run_step); }
void minillm_stop(Context *c) { team_stop(c->team); }
