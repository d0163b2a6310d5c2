// One step of a model, top to bottom, by all threads of a team at once (team.c).
//
// The arithmetic is that of model/llama.py and model/gpt.py; what a model does not have (a bias, a
// gate, a norm) is NULL. In the shapes, t = new tokens, w = d_model, h = n_heads, g = n_kv_heads,
// d = head_dim.

#include <math.h>

#include "context.h"

#define PART 256  // positions of a long text that are worth a piece of work of their own, at least

// A step, as one thread sees it: each has a copy. What comes last belongs to the current phase.
typedef struct {
    Context *c;
    const int32_t *ids;
    int count, start, parts;
    int wanted;     // of the last tokens: logits are computed for these
    float *logits;  // (wanted, vocab_size), the caller's
    const Layer *layer;
    float *keys, *values;  // of this layer
    const float *taps;     // of a Canon layer or a convolution
    const Norm *norm;
    const float *from, *residual;
    float scale;  // of what is added to the residual
    float *to;
    const Matrix *matrix, *gate;
    Operand operand;
    int rows;      // of a matrix that make a piece
    int stride;    // of `to`
    bool is_down;  // of the experts' matrices
} Step;

static inline Scratch *scratch_of(Step *s, int thread) { return &s->c->scratch[thread]; }

// ---- the residual stream begins: each token's row, and its position's where those are learned ----

static void embed(void *job, int thread, int t) {
    Step *s = job;
    const Model *m = s->c->model;
    const Matrix *e = &m->embedding;
    float *out = scratch_of(s, thread)->out;
    int n = m->d_model;
    size_t row = (size_t)s->ids[t];
    if (e->kind == PANELS) {
        const float *panel = (const float *)e->weights + row / PANEL * PANEL * n + row % PANEL;
        for (int i = 0; i < n; i++) out[i] = panel[(size_t)i * PANEL];
    } else if (e->kind >= Q8) {
        dequantise_row(e, s->ids[t], out);
    } else {
        for (int i = 0; i < n; i++) out[i] = widen_one(e->kind, e->weights, row * n + i);
    }
    if (m->embedding_scale != 1) scale(out, m->embedding_scale, n);
    if (m->positions)
        for (int i = 0; i < n; i++) out[i] += m->positions[(size_t)(s->start + t) * n + i];
}

static void put_row(void *job, int thread, int t) {
    Step *s = job;
    int n = s->c->model->d_model;
    memcpy(s->to + (size_t)t * n, scratch_of(s, thread)->out, (size_t)n * sizeof(float));
}

// ---- norms ----

static void normalise_row(void *job, int thread, int t) {
    Step *s = job;
    const Model *m = s->c->model;
    normalise(s->norm, m->norm_eps, s->from + (size_t)t * m->d_model, m->d_model,
              scratch_of(s, thread)->out);
}

// What attention or MLP add, normalised, scaled, and added to the residual stream.
static void add_row(void *job, int thread, int t) {
    Step *s = job;
    int n = s->c->model->d_model;
    normalise_row(job, thread, t);
    float *out = scratch_of(s, thread)->out;
    const float *before = s->residual + (size_t)t * n;
    for (int i = 0; i < n; i++) out[i] = before[i] + out[i] * s->scale;
}

static void mix_row(void *job, int thread, int t) {
    Step *s = job;
    int n = s->c->model->d_model;
    mix_recent(s->taps, s->from + (size_t)t * n, n, scratch_of(s, thread)->out);
}

// ---- products ----

// The digits of a token, or the parts of 16 tokens. They are computed in `out` first: a thread that is
// late may not write where the others read already.

static void round_row(void *job, int thread, int t) {
    Step *s = job;
    const Operand *x = &s->operand;
    int groups = groups_of(x->inputs);
    float *out = scratch_of(s, thread)->out;
    round_to_digits(x->x + (size_t)t * x->inputs, x->inputs, (int8_t *)(out + 7 * groups), out,
                    (int32_t *)(out + groups));
}

static void put_digits(void *job, int thread, int t) {
    Step *s = job;
    const Operand *x = &s->operand;
    size_t groups = (size_t)groups_of(x->inputs), digits = groups * GROUP * DIGITS;
    const float *out = scratch_of(s, thread)->out;
    memcpy(x->steps + t * groups, out, groups * 4);
    memcpy(x->sums + t * groups * 2 * DIGITS, out + groups, groups * 2 * DIGITS * 4);
    memcpy(x->digits + t * digits, out + 7 * groups, digits);
}

#if defined(__AMX_BF16__)
static void split_block(void *job, int thread, int i) {
    Step *s = job;
    int per_block = up_to(s->operand.inputs, SPLIT) / SPLIT;
    amx_split(&s->operand, i / per_block, i % per_block * SPLIT,
              (uint16_t *)scratch_of(s, thread)->out);
}

static void put_parts(void *job, int thread, int i) {
    Step *s = job;
    int n = up_to(s->operand.inputs, GROUP), per_block = up_to(n, SPLIT) / SPLIT;
    int first = i % per_block * SPLIT;
    int some = n - first < SPLIT ? n - first : SPLIT;
    const uint16_t *out = (const uint16_t *)scratch_of(s, thread)->out;
    for (int part = 0; part < 3; part++)
        memcpy(s->operand.parts + (((size_t)(i / per_block) * 3 + part) * n + first) * 16,
               out + (size_t)part * SPLIT * 16, (size_t)some * 16 * sizeof *out);
}
#endif

// Rows of a matrix times x, in `out`; with a gate, activation(gate · x) ⊙ matrix · x.
static void multiply(Step *s, int thread, const Matrix *gate, const Matrix *matrix,
                     const Operand *x, int first, int last, bool activates) {
    Scratch *scratch = scratch_of(s, thread);
    if (gate) {
        matmul(gate, first, last, x, scratch->out, s->rows, scratch);
        matmul(matrix, first, last, x, scratch->out2, s->rows, scratch);
    } else {
        matmul(matrix, first, last, x, scratch->out, s->rows, scratch);
    }
    if (!activates) return;
    for (int t = 0; t < x->count; t++) {
        float *out = scratch->out + (size_t)t * s->rows, *up = scratch->out2 + (size_t)t * s->rows;
        activate(s->c->model->activation, out, last - first);
        if (gate)
            for (int o = 0; o < last - first; o++) out[o] *= up[o];
    }
}

static int last_row(const Step *s, int first, int rows) {
    return first + s->rows < rows ? first + s->rows : rows;
}

static void product_rows(void *job, int thread, int i) {
    Step *s = job;
    int first = i * s->rows;
    multiply(s, thread, s->gate, s->matrix, &s->operand, first, last_row(s, first, s->matrix->rows),
             s->to == s->c->hidden);
}

static void put_rows(void *job, int thread, int i) {
    Step *s = job;
    int rows = s->matrix->rows, first = i * s->rows,
        n = rows - first < s->rows ? rows - first : s->rows;
    for (int t = 0; t < s->operand.count; t++) {
        const float *out = scratch_of(s, thread)->out + (size_t)t * s->rows;
        float *to = s->to + (size_t)t * s->stride + first;
        if (s->residual) {
            const float *before = s->residual + (size_t)t * rows + first;
            for (int o = 0; o < n; o++) to[o] = before[o] + out[o] * s->scale;
        } else {
            memcpy(to, out, (size_t)n * sizeof(float));
        }
    }
}

// Makes the other forms of the operand of a matrix, as far as a product needs them.
static void prepare_operand(Member *member, int thread, Step *s, const float *x, int count,
                            int inputs, bool digits, bool parts) {
    s->operand = s->c->operand;
    s->operand.x = x;
    s->operand.count = count;
    s->operand.inputs = inputs;
    if (digits) team_phase(member, thread, s, (Work){round_row, put_digits}, count);
#if defined(__AMX_BF16__)
    if (parts)
        team_phase(member, thread, s, (Work){split_block, put_parts},
                   up_to(count, 16) / 16 * (up_to(inputs, SPLIT) / SPLIT));
#else
    (void)parts;
#endif
}

// to (t, rows) = residual + matrix · x (t, inputs), or, with a gate, activation(gate · x) ⊙ matrix · x.
// The rows of `to` lie `stride` numbers apart.
static void product_into(Member *member, int thread, Step *s, const Matrix *gate,
                         const Matrix *matrix, const float *x, const float *residual, float *to,
                         int stride) {
    int count = s->count;
    s->gate = gate && gate->weights ? gate : NULL;
    s->matrix = matrix;
    s->residual = residual;
    s->scale = s->c->model->residual_scale;
    s->to = to;
    s->stride = stride;
    prepare_operand(member, thread, s, x, count, matrix->inputs,
                    needs_digits(matrix, count) || (s->gate && needs_digits(s->gate, count)),
                    needs_parts(matrix, count) || (s->gate && needs_parts(s->gate, count)));
    s->rows = rows_per_piece(matrix->rows, count);
    team_phase(member, thread, s, (Work){product_rows, put_rows},
               (matrix->rows + s->rows - 1) / s->rows);
}

static void product(Member *member, int thread, Step *s, const Matrix *gate, const Matrix *matrix,
                    const float *x, const float *residual, float *to) {
    product_into(member, thread, s, gate, matrix, x, residual, to, matrix->rows);
}

// ---- attention ----

// A head of the queries, the keys or the values: normalised where the model does that, rotated to
// its position; queries are scaled, so that their products with keys are scores.
static void finish_head(void *job, int thread, int head) {
    Step *s = job;
    const Context *c = s->c;
    const Model *m = c->model;
    int d = m->head_dim, row = (m->n_heads + 2 * m->n_kv_heads) * d;
    bool is_query = head < m->n_heads, is_value = head >= m->n_heads + m->n_kv_heads;
    const Norm *norm = is_query ? &s->layer->q_norm : &s->layer->k_norm;
    float *out = scratch_of(s, thread)->out;
    bool norms_head = norm->gain && m->qk_norm_per_head && !is_value;
    for (int t = 0; t < s->count; t++, out += d) {
        const float *x = c->qkv + (size_t)t * row + (size_t)head * d;
        if (norms_head)
            normalise(norm, m->norm_eps, x, d, out);
        else
            memcpy(out, x, (size_t)d * sizeof(float));
        if (m->qkv_clip > 0) clip(out, m->qkv_clip, d);
        if (!is_value && s->layer->rope >= 0) {
            size_t angles = ((size_t)s->layer->rope * c->angles + s->start + t) * (size_t)c->pairs;
            rotate(out, c->cos + angles, c->sin + angles, c->pairs);
        }
        if (is_query) scale(out, m->attention_scale, d);
    }
}

// The queries or the keys of a token, all heads together: normalised as one vector. Piece 2t is the
// queries of token t, piece 2t + 1 its keys.
static void normalise_heads(void *job, int thread, int i) {
    Step *s = job;
    const Context *c = s->c;
    const Model *m = c->model;
    int d = m->head_dim, row = (m->n_heads + 2 * m->n_kv_heads) * d;
    const float *x = c->qkv + (size_t)(i / 2) * row + (i % 2 ? m->n_heads * d : 0);
    normalise(i % 2 ? &s->layer->k_norm : &s->layer->q_norm, m->norm_eps, x,
              (i % 2 ? m->n_kv_heads : m->n_heads) * d, scratch_of(s, thread)->out);
}

static void put_heads(void *job, int thread, int i) {
    Step *s = job;
    const Context *c = s->c;
    const Model *m = c->model;
    int d = m->head_dim, row = (m->n_heads + 2 * m->n_kv_heads) * d;
    memcpy(c->qkv + (size_t)(i / 2) * row + (i % 2 ? m->n_heads * d : 0),
           scratch_of(s, thread)->out,
           (size_t)(i % 2 ? m->n_kv_heads : m->n_heads) * d * sizeof(float));
}

static void put_head(void *job, int thread, int head) {
    Step *s = job;
    Context *c = s->c;
    const Model *m = c->model;
    int d = m->head_dim, h = m->n_heads, g = m->n_kv_heads;
    const float *out = scratch_of(s, thread)->out;
    for (int t = 0; t < s->count; t++, out += d) {
        size_t position = (size_t)(s->start + t);
        if (head < h) {
            memcpy(c->queries + ((size_t)t * h + head) * d, out, (size_t)d * sizeof(float));
        } else if (head < h + g) {
            float *keys = s->keys + (size_t)(head - h) * c->capacity * d;
            float *to = keys + position / KEY_BLOCK * KEY_BLOCK * d + position % KEY_BLOCK;
            for (int i = 0; i < d; i++) to[i * KEY_BLOCK] = out[i];
        } else {
            float *values = s->values + (size_t)(head - h - g) * c->capacity * c->padded;
            memcpy(values + position * c->padded, out, (size_t)d * sizeof(float));
        }
    }
}

// Piece i: up to four queries of a key head, and a part of the cache.
static void attend_piece(void *job, int thread, int i) {
    Step *s = job;
    const Context *c = s->c;
    const Model *m = c->model;
    int group = m->n_heads / m->n_kv_heads, rows = s->count * group;
    int tiles = (rows + QUERIES - 1) / QUERIES, part = i % s->parts, tile = i / s->parts % tiles;
    int kv_head = i / (s->parts * tiles), first = tile * QUERIES;
    Attention a = {
        .queries = c->queries,
        .count = s->count,
        .start = s->start,
        .window = s->layer->window,
        .keys = s->keys + (size_t)kv_head * c->capacity * m->head_dim,
        .values = s->values + (size_t)kv_head * c->capacity * c->padded,
        .group = group,
        .head_dim = m->head_dim,
        .padded = c->padded,
        .kv_head = kv_head,
        .n_heads = m->n_heads,
        .softcap = m->attention_softcap,
    };
    attend(&a, first, rows - first < QUERIES ? rows - first : QUERIES, part, s->parts,
           scratch_of(s, thread));
}

static void put_mixed(void *job, int thread, int i) {
    Step *s = job;
    Context *c = s->c;
    const Scratch *scratch = scratch_of(s, thread);
    int h = c->model->n_heads, d = c->model->head_dim, group = h / c->model->n_kv_heads;
    int all = s->count * group, tiles = (all + QUERIES - 1) / QUERIES, part = i % s->parts;
    int kv_head = i / (s->parts * tiles), first = i / s->parts % tiles * QUERIES;
    for (int r = 0; r < QUERIES && first + r < all; r++) {
        int t = (first + r) / group, head = kv_head * group + (first + r) % group;
        const float *mixed = scratch->mixed + r * c->padded;
        if (s->parts == 1) {
            float whole = 1.0f / scratch->total[r], *z = c->z + ((size_t)t * h + head) * d;
            for (int k = 0; k < d; k++) z[k] = mixed[k] * whole;
        } else {  // of a single token
            size_t at = (size_t)part * h + head;
            c->part_largest[at] = scratch->largest[r];
            c->part_total[at] = scratch->total[r];
            memcpy(c->part_mixed + at * c->padded, mixed, (size_t)d * sizeof(float));
        }
    }
}

// The parts of a head, put together.
static void merge_head(void *job, int thread, int head) {
    Step *s = job;
    const Context *c = s->c;
    int h = c->model->n_heads, d = c->model->head_dim;
    float *out = scratch_of(s, thread)->out, most = c->part_largest[head], whole = 0;
    for (int part = 1; part < s->parts; part++)
        if (c->part_largest[part * h + head] > most) most = c->part_largest[part * h + head];
    memset(out, 0, (size_t)d * sizeof(float));
    for (int part = 0; part < s->parts; part++) {
        size_t at = (size_t)part * h + head;
        float share = exponential(splat(c->part_largest[at] - most))[0];
        whole += share * c->part_total[at];
        for (int i = 0; i < d; i++) out[i] += share * c->part_mixed[at * c->padded + i];
    }
    for (int i = 0; i < d; i++) out[i] /= whole;
}

static void put_merged(void *job, int thread, int head) {
    Step *s = job;
    int d = s->c->model->head_dim;
    memcpy(s->c->z + (size_t)head * d, scratch_of(s, thread)->out, (size_t)d * sizeof(float));
}

// z (t, h · d): what the heads mix, of what a layer reads.
static void attention(Member *member, int thread, Step *s, const float *read) {
    Context *c = s->c;
    const Model *m = c->model;
    const Layer *layer = s->layer;
    int h = m->n_heads, g = m->n_kv_heads;
    for (int part = 0, row = 0; part < 3 && layer->qkv[part].weights; part++) {
        product_into(member, thread, s, NULL, &layer->qkv[part], read, NULL, c->qkv + row,
                     (h + 2 * g) * m->head_dim);
        row += layer->qkv[part].rows;
    }
    if (layer->q_norm.gain && !m->qk_norm_per_head)
        team_phase(member, thread, s, (Work){normalise_heads, put_heads}, 2 * s->count);
    team_phase(member, thread, s, (Work){finish_head, put_head}, h + 2 * g);
    int group = h / g, tiles = (s->count * group + QUERIES - 1) / QUERIES;
    team_phase(member, thread, s, (Work){attend_piece, put_mixed}, g * tiles * s->parts);
    if (s->parts > 1) team_phase(member, thread, s, (Work){merge_head, put_merged}, h);
}

// ---- a mixture of experts (experts.c) ----

static void route_token(void *job, int thread, int t) {
    Step *s = job;
    const Model *m = s->c->model;
    Scratch *scratch = scratch_of(s, thread);
    choose_experts(m, s->c->scores + (size_t)t * m->n_experts, scratch->out, scratch->plan,
                   scratch->out2);
}

static void put_route(void *job, int thread, int t) {
    Step *s = job;
    int k = s->c->model->n_experts_per_tok;
    const Scratch *scratch = scratch_of(s, thread);
    memcpy(s->c->chosen + (size_t)t * k, scratch->plan, (size_t)k * sizeof(int32_t));
    memcpy(s->c->weights + (size_t)t * k, scratch->out2, (size_t)k * sizeof(float));
}

static void make_plan(void *job, int thread, int i) {
    (void)i;
    Step *s = job;
    const Model *m = s->c->model;
    plan_pairs(m, s->c->chosen, s->count, plan_in(m, scratch_of(s, thread)->plan));
}

static void put_plan(void *job, int thread, int i) {
    (void)i;
    Step *s = job;
    memcpy(s->c->plan, scratch_of(s, thread)->plan, plan_numbers(s->c->model) * sizeof(int32_t));
}

static void nothing(void *job, int thread, int i) { (void)job, (void)thread, (void)i; }

static void put_pair(void *job, int thread, int row) {
    (void)thread;
    Step *s = job;
    int n = s->c->model->d_model, t = plan_in(s->c->model, s->c->plan).token[row];
    float *to = s->c->pairs_in + (size_t)row * n;
    if (t < 0)
        memset(to, 0, (size_t)n * sizeof *to);
    else
        memcpy(to, s->from + (size_t)t * n, (size_t)n * sizeof *to);
}

static int pieces_of_expert(const Step *s) {
    const Model *m = s->c->model;
    return ((s->is_down ? m->d_model : m->d_expert) + s->rows - 1) / s->rows;
}

// Piece i: some rows of the matrices of an expert, times the tokens of a group.
static void expert_rows(void *job, int thread, int i) {
    Step *s = job;
    int per = pieces_of_expert(s), group = i / per, first = i % per * s->rows;
    Plan plan = plan_in(s->c->model, s->c->plan);
    if (!plan.count[group]) return;
    const Expert *e = &s->layer->experts[plan.expert[group]];
    const Matrix *matrix = s->is_down ? &e->down : &e->up;
    Operand x = operand_rows(&s->operand, plan.first[group], plan.count[group]);
    multiply(s, thread, s->is_down ? NULL : &e->gate, matrix, &x, first,
             last_row(s, first, matrix->rows), !s->is_down);
}

static void put_expert_rows(void *job, int thread, int i) {
    Step *s = job;
    int per = pieces_of_expert(s), group = i / per, first = i % per * s->rows;
    Plan plan = plan_in(s->c->model, s->c->plan);
    int n = last_row(s, first, s->stride) - first;
    for (int t = 0; t < plan.count[group]; t++)
        memcpy(s->to + ((size_t)plan.first[group] + t) * s->stride + first,
               scratch_of(s, thread)->out + (size_t)t * s->rows, (size_t)n * sizeof(float));
}

// What the experts of a token have made, summed and added to the residual stream.
static void sum_experts(void *job, int thread, int t) {
    Step *s = job;
    const Context *c = s->c;
    int w = c->model->d_model, k = c->model->n_experts_per_tok;
    const int32_t *rows = plan_in(c->model, c->plan).row + (size_t)t * k;
    float *out = scratch_of(s, thread)->out;
    memcpy(out, s->residual + (size_t)t * w, (size_t)w * sizeof(float));
    for (int j = 0; j < k; j++) {
        const float *one = c->pairs_out + (size_t)rows[j] * w;
        float by = c->weights[(size_t)t * k + j] * c->model->residual_scale;
        for (int i = 0; i < w; i++) out[i] += by * one[i];
    }
}

// One product of all experts with the rows of their pairs, whose numbers of inputs and rows are given.
static void expert_product(Member *member, int thread, Step *s, const float *x, int inputs,
                           float *to, int rows) {
    const Model *m = s->c->model;
    const Expert *e = s->layer->experts;
    s->is_down = to == s->c->pairs_out;
    s->to = to;
    s->stride = rows;
    const Matrix *one = s->is_down ? &e->down : &e->up;
    // An expert may have one token, whatever the number of all.
    prepare_operand(member, thread, s, x, rows_of_pairs(m, s->count), inputs,
                    needs_digits(one, 1) || (!s->is_down && needs_digits(&e->gate, 1)),
                    needs_parts(one, s->count) || needs_parts(&e->gate, s->count));
    s->rows = PIECE_ROWS;
    team_phase(member, thread, s, (Work){expert_rows, put_expert_rows},
               groups_of_pairs(m, s->count) * pieces_of_expert(s));
}

// to = residual + scale · Σ weight · expert(x), over the experts that are chosen for each token.
static void mixture(Member *member, int thread, Step *s, const float *x, const float *residual,
                    float *to) {
    Context *c = s->c;
    const Model *m = c->model;
    int count = s->count, w = m->d_model, some = tokens_at_once(m);
    for (int first = 0; first < count; first += some) {
        const float *from = x + (size_t)first * w;
        s->count = count - first < some ? count - first : some;
        product(member, thread, s, NULL, &s->layer->router, from, NULL, c->scores);
        team_phase(member, thread, s, (Work){route_token, put_route}, s->count);
        team_phase(member, thread, s, (Work){make_plan, put_plan}, 1);
        s->from = from;
        team_phase(member, thread, s, (Work){nothing, put_pair}, rows_of_pairs(m, s->count));
        expert_product(member, thread, s, c->pairs_in, w, c->pairs_hidden, m->d_expert);
        expert_product(member, thread, s, c->pairs_hidden, m->d_expert, c->pairs_out, w);
        s->residual = residual + (size_t)first * w;
        s->to = to + (size_t)first * w;
        team_phase(member, thread, s, (Work){sum_experts, put_row}, s->count);
    }
    s->count = count;
}

// ---- a short convolution in the place of attention ----

// What it mixes: a third of what `gates` gives, times another.
static void gate_row(void *job, int thread, int t) {
    Step *s = job;
    int w = s->c->model->d_model;
    const float *gate = s->from + (size_t)t * 3 * w, *value = gate + 2 * w;
    float *out = scratch_of(s, thread)->out;
    for (int i = 0; i < w; i++) out[i] = gate[i] * value[i];
}

// The mix of a token with those before it, times the second gate.
static void convolve_row(void *job, int thread, int t) {
    Step *s = job;
    int w = s->c->model->d_model;
    const float *gate = s->c->qkv + (size_t)t * 3 * w + w, *recent = s->from + (size_t)t * w;
    const float *taps = s->taps;
    float *out = scratch_of(s, thread)->out;
    memset(out, 0, (size_t)w * sizeof(float));
    for (int k = 0; k < CANON; k++, taps += w, recent += w)
        for (int i = 0; i < w; i++) out[i] += taps[i] * recent[i];
    for (int i = 0; i < w; i++) out[i] *= gate[i];
}

// z (t, w): near tokens mixed, of what a layer reads. The cache of the `place`-th Canon layer keeps it.
static void convolution(Member *member, int thread, Step *s, const float *read, int place) {
    Context *c = s->c;
    const Model *m = c->model;
    int w = m->d_model;
    float *recent = c->canon + place * canon_numbers(m, c->capacity) + (size_t)s->start * w;
    product(member, thread, s, NULL, &s->layer->gates, read, NULL, c->qkv);
    s->from = c->qkv;
    s->to = recent + (CANON - 1) * w;
    team_phase(member, thread, s, (Work){gate_row, put_row}, s->count);
    s->taps = s->layer->taps;
    s->from = recent;
    s->to = c->z;
    team_phase(member, thread, s, (Work){convolve_row, put_row}, s->count);
}

// ---- a step ----

static void norm(Member *member, int thread, Step *s, const Norm *norm, const float *from,
                 float *to) {
    s->norm = norm;
    s->from = from;
    s->to = to;
    team_phase(member, thread, s, (Work){normalise_row, put_row}, s->count);
}

// Returns what attention or MLP read: the residual stream, or a normalised copy of it in `to`, which a
// Canon layer, the `place`-th of the model, mixes with what is cached of the three tokens before.
static const float *pre_norm(Member *member, int thread, Step *s, const Norm *before,
                             const float *taps, int place, const float *x, float *to) {
    if (!before->gain) return x;
    if (!taps) {
        norm(member, thread, s, before, x, to);
        return to;
    }
    const Model *m = s->c->model;
    int w = m->d_model;
    float *recent = s->c->canon + place * canon_numbers(m, s->c->capacity) + (size_t)s->start * w;
    norm(member, thread, s, before, x, recent + (CANON - 1) * w);
    s->taps = taps;
    s->from = recent;
    s->to = to;
    team_phase(member, thread, s, (Work){mix_row, put_row}, s->count);
    return to;
}

// to = x + scale · (matrix · from), where the product goes through a norm if the model has one.
static void add_product(Member *member, int thread, Step *s, const Matrix *matrix,
                        const Norm *after, const float *from, const float *x, float *to) {
    if (!after->gain) {
        product(member, thread, s, NULL, matrix, from, x, to);
        return;
    }
    product(member, thread, s, NULL, matrix, from, NULL, s->c->normed);
    s->norm = after;
    s->from = s->c->normed;
    s->residual = x;
    s->to = to;
    team_phase(member, thread, s, (Work){add_row, put_row}, s->count);
}

void run_step(Member *member, int thread, void *job) {
    Step *s = job;
    Context *c = s->c;
    const Model *m = c->model;
    int w = m->d_model, g = m->n_kv_heads, d = m->head_dim;
    s->to = c->x;
    team_phase(member, thread, s, (Work){embed, put_row}, s->count);
    for (int i = 0; i < m->n_layers; i++) {
        const Layer *layer = s->layer = &m->layers[i];
        s->keys = c->keys + (size_t)i * g * c->capacity * d;
        s->values = c->values + (size_t)i * g * c->capacity * c->padded;
        const float *read =
            pre_norm(member, thread, s, &layer->norm1, layer->canon1, 2 * i, c->x, c->normed);
        if (m->parallel_residual) norm(member, thread, s, &layer->norm2, c->x, c->normed2);
        if (layer->taps)
            convolution(member, thread, s, read, 2 * i);
        else
            attention(member, thread, s, read);
        // In the last layer, tokens whose logits nobody wants are skipped, once attention has their
        // keys and values, and the second Canon layer what it reads of them.
        bool is_last = i == m->n_layers - 1;
        size_t skipped = is_last && !layer->canon2 ? (size_t)(s->count - s->wanted) : 0;
        s->count -= (int)skipped;
        add_product(member, thread, s, &layer->proj, &layer->post_norm1,
                    c->z + skipped * layer->proj.inputs, c->x + skipped * w, c->x2);
        read = m->parallel_residual ? c->normed2 + skipped * w
                                    : pre_norm(member, thread, s, &layer->norm2, layer->canon2,
                                               2 * i + 1, c->x2, c->normed2);
        const float *residual = c->x2;
        if (is_last) {
            read += (size_t)(s->count - s->wanted) * w;
            residual += (size_t)(s->count - s->wanted) * w;
            s->count = s->wanted;
        }
        if (layer->experts) {
            mixture(member, thread, s, read, residual, c->x);
            continue;
        }
        product(member, thread, s, &layer->gate, &layer->up, read, NULL, c->hidden);
        add_product(member, thread, s, &layer->down, &layer->post_norm2, c->hidden, residual, c->x);
    }
    norm(member, thread, s, &m->norm, c->x, c->normed);
    product(member, thread, s, NULL, &m->head, c->normed, NULL, s->logits);
}

int minillm_forward(Context *c, const int32_t *ids, int count, int start, int wanted,
                    float *logits) {
    const Model *m = c->model;
    if (count < 1 || count > MAX_TOKENS || start < 0 || start > c->capacity - count) return 1;
    if (wanted < 1 || wanted > count) return 1;
    for (int t = 0; t < count; t++)
        if (ids[t] < 0 || ids[t] >= m->vocab_size) return 1;
    int parts = count > 1 ? 1 : (start + PART) / PART;
    Step s = {.c = c,
              .ids = ids,
              .count = count,
              .start = start,
              .wanted = wanted,
              .logits = logits,
              .parts = parts < c->most_parts ? parts : c->most_parts};
    _Static_assert(sizeof(Step) <= 256, "a job of the team");
    Member member = team_begin(c->team, &s, sizeof s);
    run_step(&member, 0, &s);
    for (int t = 0; t < wanted; t++, logits += m->vocab_size) {
        if (m->logit_scale != 1) scale(logits, m->logit_scale, m->vocab_size);
        if (m->logit_softcap > 0) softcap(logits, m->logit_softcap, m->vocab_size);
    }
    return 0;
}

// ---- one matrix, for tests ----

int minillm_matmul(const Matrix *m, const float *x, int count, float *y) {
    Model model = {.n_layers = 1,
                   .d_model = m->inputs,
                   .n_heads = 1,
                   .n_kv_heads = 1,
                   .head_dim = (m->rows + 2) / 3,
                   .d_mlp = m->rows,
                   .vocab_size = 1,
                   .context_length = 1,
                   .residual_scale = 1,
                   .n_threads = 1};
    if (count < 1 || count > MAX_TOKENS || m->inputs < 1 || m->rows < 1) return 1;
    Context *c = minillm_new(&model);
    if (!c) return 1;
    memcpy(c->normed, x, (size_t)count * m->inputs * sizeof(float));
    Step s = {.c = c, .count = count};
    Member member = team_begin(c->team, &s, sizeof s);
    product(&member, 0, &s, NULL, m, c->normed, NULL, c->qkv);
    memcpy(y, c->qkv, (size_t)count * m->rows * sizeof(float));
    minillm_free(c);
    return 0;
}
