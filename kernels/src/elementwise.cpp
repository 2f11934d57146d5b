// Elementwise operations and rope (NUMERICS.md, sections 4 and 5). Plain loops: the compiler vectorises them, which
// cannot change a bit, because every operator is one rounding of its own element.
#include "elementwise.hpp"

#include "kernels.hpp"
#include "rope_table.hpp"

namespace iso::ISO_NS {

namespace {

void function(int which, const float* x, float* y, size_t n) {
    switch (which) {
        case 0: return exp_array(x, y, n);
        case 1: return log_array(x, y, n);
        case 2: return tanh_array(x, y, n);
        case 3: return erf_array(x, y, n);
        default: return activation(which - 4, x, y, n);
    }
}

void add(const float* a, const float* b, float* y, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}

void mul(const float* a, const float* b, float* y, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] = a[i] * b[i];
}

void widen(const uint16_t* x, float* y, size_t n) {
    for (size_t i = 0; i < n; ++i) y[i] = float_of(uint32_t(x[i]) << 16);
}

bool all_finite(const float* x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; ++i) bad |= uint32_t((bits_of(x[i]) & kInfinity) == kInfinity);
    return !bad;
}

bool all_finite_bf16(const uint16_t* x, size_t n) {
    uint16_t bad = 0;
    for (size_t i = 0; i < n; ++i) bad = uint16_t(bad | uint16_t((x[i] & 0x7F80) == 0x7F80));
    return !bad;
}

void rope(const float* x, const float* cosines, const float* sines, size_t half, size_t head_dim, float* y) {
    for (size_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        y[i] = (a * cosines[i]) + ((-b) * sines[i]);
        y[i + half] = (b * cosines[i]) + (a * sines[i]);
    }
    if (y != x)
        for (size_t i = 2 * half; i < head_dim; ++i) y[i] = x[i];
}

void rope_table(const double* frequencies, size_t half, int64_t position, float factor, float* cosines, float* sines) {
    for (size_t i = 0; i < half; ++i) {
        float sine, cosine;
        cr_sincos(double(position) * frequencies[i], &sine, &cosine);
        cosines[i] = cosine * factor;
        sines[i] = sine * factor;
    }
}

}  // namespace

void fill_elementwise(Kernels& table) {
    table.function = function;
    table.add = add;
    table.mul = mul;
    table.widen = widen;
    table.all_finite = all_finite;
    table.all_finite_bf16 = all_finite_bf16;
    table.rope = rope;
    table.rope_table = rope_table;
}

}  // namespace iso::ISO_NS
