// linear: packed panels of 32 outputs, blocks of 256 along k (NUMERICS.md, section 2), with what follows it fused.
//
// Invariant: an output's bits depend on its row of x, its row of w and its bias only. The epilogues are elementwise and
// round exactly where the separate operations would.
#include "elementwise.hpp"
#include "kernels.hpp"
#include "tile.hpp"

namespace iso::ISO_NS {

namespace {

// Interleave up to TILE_ROWS rows: packed[k * rows + r] = x[r][k].
void pack_rows(const float* x, size_t stride, size_t rows, size_t k, float* packed) {
    for (size_t i = 0; i < k; ++i)
        for (size_t r = 0; r < rows; ++r) packed[i * rows + r] = x[r * stride + i];
}

template <typename W>
void totals_of(const float* x, int rows, const W* w, size_t k, const float* bias, float* total) {
    for (int i = 0; i < rows * PANEL; ++i) total[i] = 0.0f;
    for (size_t k0 = 0; k0 < k; k0 += BLOCK)
        tile<W>(rows, x + k0 * rows, w + k0 * PANEL, least(BLOCK, k - k0), total);
    if (bias)
        for (int r = 0; r < rows; ++r)
            for (int i = 0; i < PANEL; ++i) total[r * PANEL + i] += bias[i];
}

template <typename W>
void panel_of(const LinearCall& call, size_t panel) {
    alignas(64) float total[TILE_ROWS * PANEL], gate[TILE_ROWS * PANEL];
    const size_t valid = least(PANEL, call.n - panel * PANEL);
    const bool gated = call.epilogue == GATED;
    const size_t packed = gated ? 2 * panel : panel;  // its first packed panel
    const W* w = static_cast<const W*>(call.w) + packed * PANEL * call.k;
    const float* bias = call.bias ? call.bias + packed * PANEL : nullptr;
    for (size_t m = 0; m < call.rows; m += TILE_ROWS) {
        const int rows = int(least(TILE_ROWS, call.rows - m));
        const float* x = call.x + m * call.k;
        if (gated) {
            totals_of<W>(x, rows, w, call.k, bias, gate);
            activation(call.activation, gate, gate, size_t(rows) * PANEL);
            totals_of<W>(x, rows, w + PANEL * call.k, call.k, bias ? bias + PANEL : nullptr, total);
            for (int i = 0; i < rows * PANEL; ++i) total[i] = gate[i] * total[i];
        } else {
            totals_of<W>(x, rows, w, call.k, bias, total);
        }
        for (int r = 0; r < rows; ++r) {
            float* y = call.y + (m + r) * call.y_stride + panel * PANEL;
            const float* t = total + r * PANEL;
            if (call.epilogue == ADD)
                for (size_t i = 0; i < valid; ++i) y[i] = y[i] + t[i];
            else
                memcpy(y, t, valid * sizeof(float));
        }
    }
}

void linear_panel(const LinearCall& call, size_t panel) {
    if (call.storage == 0)
        panel_of<float>(call, panel);
    else
        panel_of<bf16>(call, panel);
}

}  // namespace

void fill_linear(Kernels& table) {
    table.tile_rows = TILE_ROWS;
    table.pack_rows = pack_rows;
    table.linear_panel = linear_panel;
}

}  // namespace iso::ISO_NS
