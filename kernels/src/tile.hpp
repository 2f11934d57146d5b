// The micro-kernel that linear and attention share: one block's fma chains for a few rows and one panel of 32 outputs.
//
// Invariant: the chain of output (row, column) is c = +0; c = fma(x[row,k], w[k,column], c), k ascending; then it is added
// once to that output's total. Rows and vectors only decide how many chains run side by side.
#pragma once
#include "simd.hpp"

namespace iso::ISO_NS {

enum { PANEL = 32, BLOCK = 256 };
enum { DISTANCE = 4096 };  // bytes from the weights in use to those that are asked for

// Where a block's chains end: to = ((before or +0) + chain), then the bias, then the residual, each one rounding.
struct Ending {
    const float* before;    // totals so far; null before the first block
    size_t before_stride;   // floats between their rows
    float* to;              // may be `before`
    size_t stride;          // floats between the rows of `to`
    const float* bias;      // [PANEL] or null
    const float* residual;  // rows as those of `to`, or null
};

// x: [count][ROWS] (rows interleaved, so that a step reads ROWS neighbours), w: [count][PANEL].
// STREAMED: w comes from memory. What a processor fetches ahead by itself suffices for one row or two, which wait for
// nothing else; more rows take their time, and ask for themselves.
template <int ROWS, int VECTORS, bool STREAMED, typename W>
static inline void chains(const float* x, const W* w, size_t count, const Ending& end) {
    V c[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) c[r][v] = broadcast(0.0f);
    for (size_t k = 0; k < count; ++k, x += ROWS, w += PANEL) {
        V weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) weights[v] = load(w + v * LANES);
        if constexpr (STREAMED && ROWS > 2) {
#pragma GCC unroll 2
            for (size_t line = 0; line < VECTORS * LANES * sizeof(W); line += 64)
                __builtin_prefetch(reinterpret_cast<const char*>(w) + DISTANCE + line);
        }
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            const V row = broadcast(x[r]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) c[r][v] = fma(row, weights[v], c[r][v]);
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) {
            V t = (end.before ? load(end.before + r * end.before_stride + v * LANES) : broadcast(0.0f)) + c[r][v];
            if (end.bias) t = t + load(end.bias + v * LANES);
            if (end.residual) t = load(end.residual + r * end.stride + v * LANES) + t;
            store(end.to + r * end.stride + v * LANES, t);
        }
}

template <int ROWS, bool STREAMED, typename W>
static inline void tile_rows(const float* x, const W* w, size_t count, const Ending& end) {
    // As many vectors at a time as the registers hold beside the rows' chains; a single row takes the whole panel.
    constexpr int ALL = PANEL / LANES;
    constexpr int VECTORS = ALL <= 2 ? ALL : (ROWS == 1 ? 4 : 2);
    for (int v = 0; v < ALL; v += VECTORS) {
        const size_t i = size_t(v) * LANES;
        chains<ROWS, VECTORS, STREAMED, W>(x, w + i, count,
                                 Ending{end.before ? end.before + i : nullptr, end.before_stride, end.to + i, end.stride,
                                        end.bias ? end.bias + i : nullptr, end.residual ? end.residual + i : nullptr});
    }
}

// One block (count <= BLOCK) for any number of rows up to TILE_ROWS.
template <typename W, bool STREAMED = false>
static inline void tile(int rows, const float* x, const W* w, size_t count, const Ending& end) {
    switch (rows) {
        case 1: return tile_rows<1, STREAMED, W>(x, w, count, end);
        case 2: return tile_rows<2, STREAMED, W>(x, w, count, end);
        case 3: return tile_rows<3, STREAMED, W>(x, w, count, end);
        case 4: return tile_rows<4, STREAMED, W>(x, w, count, end);
    }
    if constexpr (TILE_ROWS > 4) switch (rows) {
        case 5: return tile_rows<5, STREAMED, W>(x, w, count, end);
        case 6: return tile_rows<6, STREAMED, W>(x, w, count, end);
    }
    if constexpr (TILE_ROWS > 6) switch (rows) {
        case 7: return tile_rows<7, STREAMED, W>(x, w, count, end);
        case 8: return tile_rows<8, STREAMED, W>(x, w, count, end);
        case 9: return tile_rows<9, STREAMED, W>(x, w, count, end);
        case 10: return tile_rows<10, STREAMED, W>(x, w, count, end);
        case 11: return tile_rows<11, STREAMED, W>(x, w, count, end);
        case 12: return tile_rows<12, STREAMED, W>(x, w, count, end);
    }
}

// Rows of up to TILE_ROWS as the tile wants them: interleaved[i * rows + r] = x[r * stride + i].
static inline void interleave(const float* x, size_t stride, size_t rows, size_t n, float* interleaved) {
    size_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const float* from = x + r * stride;
        float* to = interleaved + r;
        size_t i = 0;
        for (; i + 4 <= n; i += 4) transpose4(from + i, stride, to + i * rows, rows);
        for (; i < n; ++i)
            for (size_t j = 0; j < 4; ++j) to[i * rows + j] = from[j * stride + i];
    }
    for (; r < rows; ++r)
        for (size_t i = 0; i < n; ++i) interleaved[i * rows + r] = x[r * stride + i];
}

}  // namespace iso::ISO_NS
