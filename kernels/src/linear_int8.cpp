// linear, int8 (NUMERICS.md, section 2): rows quantised and interleaved, exact int32 sums over packed panels, epilogues.
//
// Invariant: the sums are exact integers, so tiles, unrolling and instructions are free; everything that rounds (the
// scale of a row, q, float(acc) * (sx * sw), the bias, the epilogues) is one elementwise operation after another, the same
// on every path.
#include "elementwise.hpp"
#include "int8_lanes.hpp"
#include "kernels.hpp"

namespace iso::ISO_NS {

namespace {

enum { PANEL = 32, PIECE = 256 };
constexpr float MOST = 127.0f;
constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: adding it rounds |t| < 2^22 to an integer, ties to even
constexpr uint32_t NO_NUMBER = 0x7FC00000;

// The magnitude's bit pattern grows with the magnitude, infinity and NaN on top.
float scale_of(const float* x, size_t k) {
    int32_t top = 0;
    for (size_t i = 0; i < k; ++i) {
        const int32_t magnitude = int32_t(bits_of(x[i]) & 0x7FFFFFFF);
        top = top > magnitude ? top : magnitude;
    }
    return top >= int32_t(kInfinity) ? float_of(NO_NUMBER) : float_of(uint32_t(top)) / MOST;
}

// `scale` is a finite number: 0 gives 0.
void quantise_piece(const float* x, size_t n, float scale, int8_t* q) {
    if (!(scale > 0.0f)) {
        memset(q, 0, n);
        return;
    }
    for (size_t i = 0; i < n; ++i) {
        // |x / scale| < 191, even where the scale is subnormal: it is never below two thirds of absmax / 127.
        int32_t t = int32_t(bits_of(x[i] / scale + TO_INTEGER)) - int32_t(0x4B400000);
        t = t > 127 ? 127 : t;
        t = t < -127 ? -127 : t;
        q[i] = int8_t(t);
    }
}

float quantise(const float* x, size_t k, int8_t* q) {
    const float scale = scale_of(x, k);
    quantise_piece(x, k, scale, q);
    return scale;
}

uint64_t weigh_row(const int8_t* q, const int64_t* c, size_t k) {
    uint64_t sum = 0;
    for (size_t i = 0; i < k; ++i) sum += uint64_t(q[i]) * uint64_t(c[i]);
    return sum;
}

// Rows of one tile: packed[group * rows + r] holds four neighbours of row r, xor FLIP; the last group is filled with 0.
void pack_rows(const float* x, size_t stride, size_t rows, size_t k, uint8_t* packed, float* scales, const int64_t* c,
               uint64_t* expected) {
    alignas(64) int8_t q[PIECE];
    constexpr uint32_t flip = FLIP * 0x01010101u;
    for (size_t r = 0; r < rows; ++r) {
        const float* row = x + r * stride;
        const float scale = scale_of(row, k);
        uint64_t sum = 0;
        for (size_t i = 0; i < k; i += PIECE) {
            const size_t n = least(PIECE, k - i);
            quantise_piece(row + i, n, scale, q);
            if (c) sum += weigh_row(q, c + i, n);
            size_t whole = n;
            while (whole % 4) q[whole++] = 0;
            uint8_t* to = packed + (i / 4 * rows + r) * 4;
            for (size_t g = 0; g < whole; g += 4, to += rows * 4) {
                uint32_t word;
                memcpy(&word, q + g, 4);
                word ^= flip;
                memcpy(to, &word, 4);
            }
        }
        scales[r] = scale;
        if (c) expected[r] = sum;
    }
}

// One group of four along k: every row with every vector of weights.
#define ISO_GROUP(s)                                                                                          \
    Sums weights[VECTORS];                                                                                    \
    _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; ++v) weights[v] = load_sums(w + v * INT8_LANES * 4); \
    _Pragma("GCC unroll 14") for (int r = 0; r < ROWS; ++r) {                                                 \
        const Spread row = spread(x + r * 4);                                                                 \
        _Pragma("GCC unroll 8") for (int v = 0; v < VECTORS; ++v) c[s][r][v] = dot(c[s][r][v], row, weights[v]); \
    }

// STEPS independent sets of sums hide the latency where rows are few. The sums stay in registers: so no function takes them.
template <int ROWS, int VECTORS>
static inline void columns(const uint8_t* x, const int8_t* w, size_t groups, const int32_t* offsets, int32_t* acc) {
    constexpr int WANTED = 8 / (ROWS * VECTORS);
    constexpr int STEPS = WANTED > 1 ? WANTED : 1;
    Sums c[STEPS][ROWS][VECTORS];
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; ++s)
#pragma GCC unroll 14
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) c[s][r][v] = no_sums();
    for (size_t g = groups / STEPS; g; --g)
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; ++s, x += ROWS * 4, w += PANEL * 4) {
            ISO_GROUP(s)
        }
    if constexpr (STEPS > 1)
        for (size_t g = groups % STEPS; g; --g, x += ROWS * 4, w += PANEL * 4) {
            ISO_GROUP(0)
        }
#pragma GCC unroll 14
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            Sums sum = c[0][r][v];
#pragma GCC unroll 8
            for (int s = 1; s < STEPS; ++s) sum = add_sums(sum, c[s][r][v]);
            if (FLIP != 0) sum = add_sums(sum, load_sums(offsets + v * INT8_LANES));  // -128 * the sum of w
            store_sums(acc + r * PANEL + v * INT8_LANES, sum);
        }
}
#undef ISO_GROUP

template <int ROWS>
static inline void tile_rows(const uint8_t* x, const int8_t* w, size_t groups, const int32_t* offsets, int32_t* acc) {
    constexpr int ALL = PANEL / INT8_LANES;
    constexpr int VECTORS = ROWS == 1 && ALL <= 4 ? ALL : INT8_VECTORS;
    for (int v = 0; v < ALL; v += VECTORS)
        columns<ROWS, VECTORS>(x, w + v * INT8_LANES * 4, groups, offsets + v * INT8_LANES, acc + v * INT8_LANES);
}

// acc[rows][PANEL] of one tile and one packed panel.
void sums_of(size_t rows, const uint8_t* x, const int8_t* w, size_t groups, const int32_t* offsets, int32_t* acc) {
#define ISO_TILE(n) \
    case n: return tile_rows<n>(x, w, groups, offsets, acc);
    switch (rows) {
        ISO_TILE(1) ISO_TILE(2) ISO_TILE(3) ISO_TILE(4)
    }
    if constexpr (INT8_ROWS > 4) switch (rows) {
        ISO_TILE(5) ISO_TILE(6) ISO_TILE(7) ISO_TILE(8)
    }
    if constexpr (INT8_ROWS > 8) switch (rows) {
        ISO_TILE(9) ISO_TILE(10) ISO_TILE(11) ISO_TILE(12)
    }
#undef ISO_TILE
}

void value_of(const Int8Call& call, size_t packed, size_t m, size_t rows, const int32_t* acc, float* y) {
    const float* scales = call.scales + packed * PANEL;
    const float* bias = call.bias ? call.bias + packed * PANEL : nullptr;
    for (size_t r = 0; r < rows; ++r, acc += PANEL, y += PANEL) {
        const float scale = call.row_scales[m + r];
        for (int i = 0; i < PANEL; ++i) y[i] = float(acc[i]) * (scale * scales[i]);
        if (bias)
            for (int i = 0; i < PANEL; ++i) y[i] = y[i] + bias[i];
    }
}

// What follows the sums of one tile; GATED: `gate` holds the sums of the packed panel before.
void finish(const Int8Call& call, size_t panel, size_t m, size_t rows, const int32_t* gate, const int32_t* acc) {
    alignas(64) float value[INT8_ROWS * PANEL], gates[INT8_ROWS * PANEL];
    const size_t valid = least(PANEL, call.n - panel * PANEL);
    if (call.epilogue == GATED) {
        value_of(call, 2 * panel, m, rows, gate, gates);
        activation(call.activation, gates, gates, rows * PANEL);
        value_of(call, 2 * panel + 1, m, rows, acc, value);
        for (size_t i = 0; i < rows * PANEL; ++i) value[i] = gates[i] * value[i];
    } else {
        value_of(call, panel, m, rows, acc, value);
    }
    for (size_t r = 0; r < rows; ++r) {
        float* y = call.y + (m + r) * call.y_stride + panel * PANEL;
        const float* t = value + r * PANEL;
        if (call.epilogue == ADD)
            for (size_t i = 0; i < valid; ++i) y[i] = y[i] + t[i];
        else
            memcpy(y, t, valid * sizeof(float));
    }
}

void tile_of(const Int8Call& call, size_t packed, size_t m, size_t rows, int32_t* acc) {
    sums_of(rows, call.x + m * call.groups * 4, call.w + packed * PANEL * call.groups * 4, call.groups,
            call.offsets + packed * PANEL, acc);
}

void linear_int8_panel(const Int8Call& call, size_t panel) {
    alignas(64) int32_t acc[INT8_ROWS * PANEL], gate[INT8_ROWS * PANEL];
    for (size_t m = 0; m < call.rows; m += INT8_ROWS) {
        const size_t rows = least(INT8_ROWS, call.rows - m);
        if (call.epilogue == GATED) tile_of(call, 2 * panel, m, rows, gate);
        tile_of(call, call.epilogue == GATED ? 2 * panel + 1 : panel, m, rows, acc);
        finish(call, panel, m, rows, gate, acc);
    }
}

void linear_int8_sums(const Int8Call& call, size_t packed, int32_t* acc) {
    for (size_t m = 0; m < call.rows; m += INT8_ROWS)
        tile_of(call, packed, m, least(INT8_ROWS, call.rows - m), acc + m * PANEL);
}

void linear_int8_finish(const Int8Call& call, size_t panel, const int32_t* gate, const int32_t* acc) {
    for (size_t m = 0; m < call.rows; m += INT8_ROWS)
        finish(call, panel, m, least(INT8_ROWS, call.rows - m), gate + m * PANEL, acc + m * PANEL);
}

// sums[m] = sum of r[i] * acc[m][i] over one panel.
void weigh_sums(const int32_t* acc, size_t rows, const uint32_t* r, uint64_t* sums) {
    for (size_t m = 0; m < rows; ++m, acc += PANEL) {
        uint64_t sum = 0;
        for (int i = 0; i < PANEL; ++i) sum += uint64_t(int64_t(acc[i]) * int64_t(r[i]));
        sums[m] = sum;
    }
}

}  // namespace

void fill_linear_int8(Kernels& table) {
    table.int8_rows = INT8_ROWS;
    table.quantise = quantise;
    table.pack_int8_rows = pack_rows;
    table.linear_int8_panel = linear_int8_panel;
    table.linear_int8_sums = linear_int8_sums;
    table.linear_int8_finish = linear_int8_finish;
    table.weigh_sums = weigh_sums;
}

}  // namespace iso::ISO_NS
