// Sums of a row in the one order that NUMERICS.md section 3 gives them: 32 interleaved lanes, then a tree.
#pragma once
#include "simd.hpp"

namespace iso::ISO_NS {

static inline float tree(float* lane) {
    for (int h = 16; h >= 1; h /= 2)
        for (int i = 0; i < h; ++i) lane[i] = lane[i] + lane[i + h];
    return lane[0];
}

struct Plain {
    template <typename T>
    T operator()(T x) const {
        return x;
    }
};
struct Square {
    template <typename T>
    T operator()(T x) const {
        return x * x;
    }
};

template <typename Term>
static inline float row_sum_of(const float* x, size_t n, Term term) {
    constexpr int VECTORS = 32 / LANES;
    V lanes[VECTORS];
    for (int v = 0; v < VECTORS; ++v) lanes[v] = broadcast(0.0f);
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int v = 0; v < VECTORS; ++v) lanes[v] = lanes[v] + term(load(x + i + v * LANES));
    alignas(64) float lane[32];
    for (int v = 0; v < VECTORS; ++v) store(lane + v * LANES, lanes[v]);
    for (int j = 0; i + j < n; ++j) lane[j] = lane[j] + term(x[i + j]);
    return tree(lane);
}

// The lane rule in blocks of 256, block sums added ascending: denominators of softmax and attention.
static inline float block_sums(const float* x, size_t n) {
    float total = 0.0f;
    for (size_t i = 0; i < n; i += 256) total = total + row_sum_of(x + i, least(256, n - i), Plain{});
    return total;
}

static inline float maximum(const float* x, size_t n) {
    float lane[16];
    for (int j = 0; j < 16; ++j) lane[j] = x[0];
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; ++j) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
    float m = lane[0];
    for (int j = 1; j < 16; ++j) m = lane[j] > m ? lane[j] : m;
    for (; i < n; ++i) m = x[i] > m ? x[i] : m;
    return m;
}

}  // namespace iso::ISO_NS
