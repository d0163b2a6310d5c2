// What is done to each token by itself, without a matrix.

#include <float.h>
#include <math.h>

#include "parts.h"

// LayerNorm, or without a bias RMSNorm, of n numbers.
void normalise(const Norm *norm, float eps, const float *x, int n, float *y) {
    int whole = n - n % LANES;
    float mean = 0;
    if (norm->bias) {
        vf sum = {0};
        for (int i = 0; i < whole; i += LANES) sum += load(x + i);
        mean = total(sum);
        for (int i = whole; i < n; i++) mean += x[i];
        mean /= (float)n;
    }
    vf squares = {0};
    for (int i = 0; i < whole; i += LANES) {
        vf away = load(x + i) - mean;
        squares += away * away;
    }
    float variance = total(squares);
    for (int i = whole; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(variance / (float)n + eps);
    if (norm->bias)
        for (int i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * norm->gain[i] + norm->bias[i];
    else
        for (int i = 0; i < n; i++) y[i] = x[i] * scale * norm->gain[i];
}

// A Canon layer: y = a token's n numbers, plus a mix of them and those of the tokens before it, each
// number by itself. `taps` and `recent` are (CANON, n); the token is the last row.
void mix_recent(const float *taps, const float *recent, int n, float *y) {
    const float *x = recent + (size_t)(CANON - 1) * n;
    for (int i = 0; i < n; i++) y[i] = x[i];
    for (int k = 0; k < CANON; k++, taps += n, recent += n)
        for (int i = 0; i < n; i++) y[i] += taps[i] * recent[i];
}

// Returns erf(z) within 7e-7, by the rational approximation that Eigen uses.
static vf error_function(vf z) {
    z = larger(splat(-3.8325f), choose(z < splat(3.8325f), z, splat(3.8325f)));
    vf s = z * z;
    vf p = s * 0.00022905065861350646f + 0.0034082910107109506f;
    p = s * p + 0.050955695062380861f;
    p = s * p + 0.18520832239976145f;
    p = s * p + 1.128379143519084f;
    vf q = s * -1.1791602954361697e-7f + 0.000023547966471313185f;
    q = s * q + 0.0010179625278914885f;
    q = s * q + 0.014070470171167667f;
    q = s * q + 0.11098505178285362f;
    q = s * q + 0.49746925110067538f;
    q = s * q + 1.0f;
    return z * p / q;
}

static vf activated(int activation, vf x) {
    switch (activation) {
    case GELU: return 0.5f * x * (1.0f + error_function(x * 0.7071067811865476f));
    case GELU_TANH: {  // ½(1 + tanh u) = 1 / (1 + e^(−2u))
        vf u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return x / (1.0f + exponential(-2.0f * u));
    }
    case SILU: return x / (1.0f + exponential(-x));
    default: return choose(x < (vf){0}, (vf){0}, x);  // ReLU; NaN stays NaN
    }
}

void activate(int activation, float *x, int n) {
    int whole = n - n % LANES;
    for (int i = 0; i < whole; i += LANES) store(x + i, activated(activation, load(x + i)));
    if (whole < n) {
        float rest[LANES] = {0};
        memcpy(rest, x + whole, (size_t)(n - whole) * sizeof *x);
        store(rest, activated(activation, load(rest)));
        memcpy(x + whole, rest, (size_t)(n - whole) * sizeof *x);
    }
}

void scale(float *x, float by, int n) {
    for (int i = 0; i < n; i++) x[i] *= by;
}

// cap · tanh(x / cap), where tanh u = 1 − 2 / (e^2u + 1); `exponential` stays finite for a large u.
void softcap(float *x, float cap, int n) {
    for (int i = 0; i < n; i += LANES) {
        float numbers[LANES] = {0};
        int some = n - i < LANES ? n - i : LANES;
        memcpy(numbers, x + i, (size_t)some * sizeof *x);
        vf u = load(numbers) * (1.0f / cap);
        store(numbers, cap * (1.0f - 2.0f / (exponential(2.0f * u) + 1.0f)));
        memcpy(x + i, numbers, (size_t)some * sizeof *x);
    }
}

// Keeps numbers within ± most; NaN stays NaN.
void clip(float *x, float most, int n) {
    for (int i = 0; i < n; i++) x[i] = x[i] > most ? most : x[i] < -most ? -most : x[i];
}

// Rotates a query or key: number i with number i + pairs, by the angle of its position (Su et al.
// 2021); what is left stays.
void rotate(float *x, const float *cos, const float *sin, int pairs) {
    for (int i = 0; i < pairs; i++) {
        float a = x[i], b = x[pairs + i];
        x[i] = a * cos[i] - b * sin[i];
        x[pairs + i] = b * cos[i] + a * sin[i];
    }
}

// Writes n numbers as three digits from −64 to 63 each, so that whole-number products with them are
// exact: x = step · (digit 0 + 128 · digit 1 + 128² · digit 2). A group of 32 shares a step, a power
// of two; the error is at most 2^-20 of the largest number in the group. See parts.h for the shapes.
#define LARGEST 1040319  // 63 · 128² + 63 · 128 + 63, the largest number of three digits

typedef int8_t vb __attribute__((vector_size(LANES)));

INLINE vi lowest_digit(vi whole) { return ((whole + 64) & 127) - 64; }

void round_to_digits(const float *x, int n, int8_t *digits, float *steps, int32_t *sums) {
    int groups = groups_of(n), padded = groups * GROUP;
    for (int g = 0; g < groups; g++) {
        float numbers[GROUP] = {0};
        memcpy(numbers, x + g * GROUP, (size_t)(n - g * GROUP < GROUP ? n - g * GROUP : GROUP) * 4);
        vf most = {0}, nothing = {0};
        for (int i = 0; i < GROUP; i += LANES) {
            vf v = load(numbers + i);
            most = larger((vf)((vi)v & 0x7fffffff), most);
            nothing += v * 0.0f;  // NaN if a number is none
        }
        float share = greatest(most) / LARGEST, step = 0, inverse = 0;
        if (share >= FLT_MIN) {
            uint32_t bits;
            memcpy(&bits, &share, 4);
            step = float_of((bits + 0x7fffff) & 0xff800000);  // the next power of two
            inverse = 1.0f / step;
        }
        for (int i = 0; i < GROUP; i += LANES) {
            vi whole = __builtin_convertvector(
                (load(numbers + i) * inverse + 12582912.0f) - 12582912.0f, vi);
            for (int d = 0; d < DIGITS; d++) {
                vi digit = d < DIGITS - 1 ? lowest_digit(whole) : whole;
                vb narrow = __builtin_convertvector(digit, vb);
                memcpy(digits + d * padded + g * GROUP + i, &narrow, sizeof narrow);
                whole = (whole - digit) >> 7;
            }
        }
        for (int half = 0; half < 2; half++)
            for (int d = 0; d < DIGITS; d++) {
                int32_t sum = 0;
                const int8_t *some = digits + d * padded + g * GROUP + half * GROUP / 2;
                for (int i = 0; i < GROUP / 2; i++) sum += some[i];
                sums[(g * 2 + half) * DIGITS + d] = sum;
            }
        steps[g] = step + total(nothing);
    }
}
