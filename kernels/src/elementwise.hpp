// Activations over arrays (NUMERICS.md, section 4), for elementwise.cpp and the kernels that fuse them. y may be x.
#pragma once
#include "functions.hpp"
#include "simd.hpp"

namespace iso::ISO_NS {

static inline void exp_of_difference(const float* x, float m, float* y, size_t n) {
#pragma GCC ivdep
    for (size_t i = 0; i < n; ++i) y[i] = cr_exp(x[i] - m);
}

static inline void silu(const float* x, float* y, size_t n) {
#pragma GCC ivdep
    for (size_t i = 0; i < n; ++i) y[i] = x[i] / (1.0f + cr_exp(-x[i]));
}

static inline void gelu_erf(const float* x, float* y, size_t n) {
    const float a = 0x1.6a09e6p-1f;  // sqrt(0.5)
#pragma GCC ivdep
    for (size_t i = 0; i < n; ++i) y[i] = (0.5f * x[i]) * (1.0f + cr_erf(x[i] * a));
}

static inline void gelu_tanh(const float* x, float* y, size_t n) {
    const float b = 0x1.988454p-1f, c = 0x1.6e4e26p-5f;  // sqrt(2/pi), 0.044715
#pragma GCC ivdep
    for (size_t i = 0; i < n; ++i)
        y[i] = (0.5f * x[i]) * (1.0f + cr_tanh(b * (x[i] + c * ((x[i] * x[i]) * x[i]))));
}

static inline void soft_cap(const float* x, float* y, float cap, size_t n) {
#pragma GCC ivdep
    for (size_t i = 0; i < n; ++i) y[i] = cr_tanh(x[i] / cap) * cap;
}

static inline void activation(int kind, const float* x, float* y, size_t n) {
    if (kind == 0)
        silu(x, y, n);
    else if (kind == 1)
        gelu_erf(x, y, n);
    else
        gelu_tanh(x, y, n);
}

}  // namespace iso::ISO_NS
