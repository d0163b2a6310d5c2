// Mixtures of experts: which experts each token goes to, and where the pairs of a token and an expert
// lie, so that an expert's matrices are read once for all its tokens. forward.c does the products.

#include <math.h>

#include "parts.h"

int tokens_at_once(const Model *m) {
    int most = m->n_experts_per_tok ? MAX_PAIRS / m->n_experts_per_tok : MAX_TOKENS;
    return most < 1 ? 1 : most < MAX_TOKENS ? most : MAX_TOKENS;
}

int groups_of_pairs(const Model *m, int count) {
    int pairs = count * m->n_experts_per_tok;
    return pairs < m->n_experts ? pairs : m->n_experts;
}

int rows_of_pairs(const Model *m, int count) {
    return count * m->n_experts_per_tok + (PAIR_ALIGN - 1) * groups_of_pairs(m, count);
}

size_t plan_numbers(const Model *m) {
    int count = tokens_at_once(m);
    return 3 * (size_t)groups_of_pairs(m, count) + rows_of_pairs(m, count) +
           (size_t)count * m->n_experts_per_tok;
}

Plan plan_in(const Model *m, int32_t *numbers) {
    int count = tokens_at_once(m), groups = groups_of_pairs(m, count);
    Plan plan = {.expert = numbers};
    plan.first = plan.expert + groups;
    plan.count = plan.first + groups;
    plan.token = plan.count + groups;
    plan.row = plan.token + rows_of_pairs(m, count);
    return plan;
}

void choose_experts(const Model *m, const float *logits, float *probs, int32_t *chosen,
                    float *weights) {
    float most = -INFINITY, all = 0, of_chosen = 0;
    for (int e = 0; e < m->n_experts; e++)
        if (logits[e] > most) most = logits[e];
    for (int e = 0; e < m->n_experts; e++) all += probs[e] = expf(logits[e] - most);
    for (int j = 0; j < m->n_experts_per_tok; j++) {
        int best = -1;  // even of NaN, each is chosen once at most
        for (int e = 0; e < m->n_experts; e++)
            if (!(probs[e] < 0) && (best < 0 || probs[e] > probs[best])) best = e;
        chosen[j] = best;
        of_chosen += weights[j] = probs[best];
        probs[best] = -1;
    }
    for (int j = 0; j < m->n_experts_per_tok; j++)
        weights[j] /= m->norm_topk_prob ? of_chosen : all;
}

void plan_pairs(const Model *m, const int32_t *chosen, int count, Plan plan) {
    int k = m->n_experts_per_tok, groups = groups_of_pairs(m, count), group = 0, at = 0;
    int rows = rows_of_pairs(m, count);
    for (int row = 0; row < rows; row++) plan.token[row] = -1;
    // A copy: another thread may be in a later step already, where others are chosen.
    memcpy(plan.row, chosen, (size_t)count * k * sizeof *chosen);
    for (int e = 0; e < m->n_experts && group < groups; e++) {
        int first = at;
        for (int i = 0; i < count * k; i++)
            if (plan.row[i] == e) plan.token[at++] = i;  // the pair, for now
        if (at == first) continue;
        plan.expert[group] = e;
        plan.first[group] = first;
        plan.count[group++] = at - first;
        at = up_to(at, PAIR_ALIGN);
    }
    for (; group < groups; group++) plan.expert[group] = plan.first[group] = plan.count[group] = 0;
    for (int row = 0; row < rows; row++) {
        if (plan.token[row] < 0) continue;
        plan.row[plan.token[row]] = row;
        plan.token[row] /= k;
    }
}

Operand operand_rows(const Operand *all, int first, int count) {
    Operand x = *all;
    size_t groups = (size_t)groups_of(x.inputs), row = (size_t)first;
    x.count = count;
    x.x += row * x.inputs;
    x.digits += row * groups * GROUP * DIGITS;
    x.steps += row * groups;
    x.sums += row * groups * 2 * DIGITS;
    x.parts += row / 16 * 3 * groups * GROUP * 16;
    return x;
}
