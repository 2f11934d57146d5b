// Norms and softmax over one row (NUMERICS.md, section 3). Elementwise loops vectorise freely; sums use reduce.hpp.
#include "elementwise.hpp"
#include "kernels.hpp"
#include "reduce.hpp"

namespace iso::ISO_NS {

namespace {

// One square root, by the instruction: never a call.
float root(float x) {
#if defined(__SSE2__)
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#else
    return __builtin_sqrtf(x);
#endif
}

float row_sum(const float* x, size_t n) { return row_sum_of(x, n, Plain{}); }

float inverse_root_of_mean(float sum, size_t n, float eps) { return 1.0f / root(sum / float(n) + eps); }

void rms_norm(const float* x, const float* w, float* y, size_t n, float eps, bool unit_offset) {
    const float r = inverse_root_of_mean(row_sum_of(x, n, Square{}), n, eps);
    if (unit_offset)
        for (size_t i = 0; i < n; ++i) y[i] = (x[i] * r) * (1.0f + w[i]);
    else
        for (size_t i = 0; i < n; ++i) y[i] = (x[i] * r) * w[i];
}

void layer_norm(const float* x, const float* w, const float* b, float* y, size_t n, float eps) {
    const float mean = row_sum(x, n) / float(n);
    for (size_t i = 0; i < n; ++i) y[i] = x[i] - mean;
    const float r = inverse_root_of_mean(row_sum_of(y, n, Square{}), n, eps);
    for (size_t i = 0; i < n; ++i) y[i] = ((y[i] * r) * w[i]) + b[i];
}

void softmax(const float* x, float* y, size_t n) {
    exp_of_difference(x, maximum(x, n), y, n);
    const float total = block_sums(y, n);
    for (size_t i = 0; i < n; ++i) y[i] = y[i] / total;
}

}  // namespace

void fill_norm(Kernels& table) {
    table.row_sum = row_sum;
    table.rms_norm = rms_norm;
    table.layer_norm = layer_norm;
    table.softmax = softmax;
}

}  // namespace iso::ISO_NS
