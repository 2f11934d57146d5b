// linear: packed panels of 32 outputs, blocks of 256 along k (NUMERICS.md, section 2), with what follows it fused.
//
// Invariant: an output's bits depend on its row of x, its row of w and its bias only. The epilogues are elementwise and
// round exactly where the separate operations would.
//
// One tile of rows streams the panel from memory. More tiles take a block of the panel at a time, which stays in the
// nearest cache while all of them pass over it; a bf16 block is then widened once for all.
#include "elementwise.hpp"
#include "kernels.hpp"
#include "tile.hpp"

namespace iso::ISO_NS {

namespace {

enum : size_t {
    GROUP = 20,          // tiles that share a block; their totals stay near
    WORTH_WIDENING = 3,  // tiles from which on a widened copy is cheaper than widening at each load
};

void pack_rows(const float* x, size_t stride, size_t rows, size_t k, float* packed) { interleave(x, stride, rows, k, packed); }

// The block as `Used`, by way of `wide` where that is not its storage.
inline const float* as_used(const float* w, size_t, float*, const float*) { return w; }
inline const bf16* as_used(const bf16* w, size_t, float*, const bf16*) { return w; }
inline const float* as_used(const bf16* w, size_t n, float* wide, const float*) {
    for (size_t i = 0; i < n; i += LANES) store(wide + i, load(w + i));
    return wide;
}

// The outputs of one packed panel (of a pair of them: gate, up) for neighbouring rows.
template <typename W>
struct Panel {
    const LinearCall& call;
    const W* w;
    const float* bias;
    size_t column, valid;  // its first output, and how many of the 32 exist

    Panel(const LinearCall& c, size_t panel) : call(c), column(panel * PANEL), valid(least(PANEL, c.n - panel * PANEL)) {
        const size_t packed = c.epilogue == GATED ? 2 * panel : panel;
        w = static_cast<const W*>(c.w) + packed * PANEL * c.k;
        bias = c.bias ? c.bias + packed * PANEL : nullptr;
    }

    // Where the last block of rows m .. m + rows - 1 goes: straight to y where nothing is left to be done to it.
    Ending last(size_t m, const float* before, float* total, const float* b) const {
        if (call.epilogue == GATED || valid < PANEL) return Ending{before, PANEL, total, PANEL, b, nullptr};
        float* y = call.y + m * call.y_stride + column;
        return Ending{before, PANEL, y, call.y_stride, b, call.epilogue == ADD ? y : nullptr};
    }

    // What last() left to be done.
    void finish(size_t m, int rows, float* gate, float* total) const {
        if (call.epilogue == GATED) {
            activation(call.activation, gate, gate, size_t(rows) * PANEL);
            for (int i = 0; i < rows * PANEL; ++i) total[i] = gate[i] * total[i];
        } else if (valid == PANEL) {
            return;
        }
        for (int r = 0; r < rows; ++r) {
            float* y = call.y + (m + r) * call.y_stride + column;
            const float* t = total + r * PANEL;
            if (call.epilogue == ADD)
                for (size_t i = 0; i < valid; ++i) y[i] = y[i] + t[i];
            else
                memcpy(y, t, valid * sizeof(float));
        }
    }

    void one_tile() const {
        alignas(64) float total[2][TILE_ROWS * PANEL];
        const int rows = int(call.rows), parts = call.epilogue == GATED ? 2 : 1;
        for (int part = 0; part < parts; ++part) {
            const W* from = w + part * PANEL * call.k;
            const float* b = bias ? bias + part * PANEL : nullptr;
            for (size_t k = 0; k < call.k; k += BLOCK) {
                const float* before = k ? total[part] : nullptr;
                const Ending end = k + BLOCK >= call.k ? last(0, before, total[part], b)
                                                 : Ending{before, PANEL, total[part], PANEL, nullptr, nullptr};
                tile<W, true>(rows, call.x + k * rows, from + k * PANEL, least(BLOCK, call.k - k), end);
            }
        }
        finish(0, rows, total[0], total[1 % parts]);
    }

    // Rows begin .. end - 1, begin a multiple of TILE_ROWS.
    template <typename Used>
    void tiles_of_group(size_t begin, size_t end) const {
        alignas(64) float total[2][GROUP * TILE_ROWS * PANEL], wide[sizeof(Used) == sizeof(W) ? 1 : BLOCK * PANEL];
        const int parts = call.epilogue == GATED ? 2 : 1;
        for (int part = 0; part < parts; ++part) {
            const W* from = w + part * PANEL * call.k;
            const float* b = bias ? bias + part * PANEL : nullptr;
            for (size_t k = 0; k < call.k; k += BLOCK) {
                const size_t count = least(BLOCK, call.k - k);
                const bool is_last = k + BLOCK >= call.k;
                const Used* block = as_used(from + k * PANEL, count * PANEL, wide, static_cast<const Used*>(nullptr));
                for (size_t m = begin; m < end; m += TILE_ROWS) {
                    const int rows = int(least(TILE_ROWS, end - m));
                    float* t = total[part] + (m - begin) * PANEL;
                    const float* before = k ? t : nullptr;
                    const Ending ending = is_last ? last(m, before, t, b) : Ending{before, PANEL, t, PANEL, nullptr, nullptr};
                    tile<Used>(rows, call.x + m * call.k + k * rows, block, count, ending);
                    if (is_last && part + 1 == parts) finish(m, rows, total[0] + (m - begin) * PANEL, t);
                }
            }
        }
    }
};

template <typename W>
void panel_of(const LinearCall& call, size_t panel) {
    const Panel<W> p(call, panel);
    if (call.rows <= TILE_ROWS) return p.one_tile();
    for (size_t m = 0; m < call.rows; m += GROUP * TILE_ROWS) {
        const size_t end = least(m + GROUP * TILE_ROWS, call.rows);
        if (end - m > WORTH_WIDENING * TILE_ROWS)
            p.template tiles_of_group<float>(m, end);
        else
            p.template tiles_of_group<W>(m, end);
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
