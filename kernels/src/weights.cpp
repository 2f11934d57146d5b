// See weights.hpp.
#include "weights.hpp"

#include <string.h>

#include "failure.hpp"
#include "pool.hpp"

namespace iso {

void require_finite(const void* data, size_t count, int storage, const std::string& name) {
    constexpr size_t PIECE = size_t(1) << 16;
    const Kernels& k = kernels();
    for (size_t i = 0; i < count; i += PIECE) {
        const size_t n = count - i < PIECE ? count - i : PIECE;
        const bool finite = storage == ISO_F32 ? k.all_finite(static_cast<const float*>(data) + i, n)
                                               : k.all_finite_bf16(static_cast<const uint16_t*>(data) + i, n);
        if (!finite) throw Failure{ISO_NON_FINITE, name + " holds NaN or infinity: such weights are refused"};
    }
}

Packed::Packed(size_t outputs, size_t k, int storage) : panels_(panels_of(outputs)), k_(k), storage_(storage) {
    if (panels_ > SIZE_MAX / PANEL / (k ? k : 1)) throw std::bad_alloc();
    if (storage == ISO_F32)
        f32_ = Buffer<float>(panels_ * PANEL * k, Life::LASTING);
    else
        bf16_ = Buffer<uint16_t>(panels_ * PANEL * k, Life::LASTING);
}

size_t Packed::packed_output(size_t i, size_t first, size_t stride) const {
    if (stride == 1) return first + i;
    return first + i / PANEL * PANEL * stride + i % PANEL;
}

namespace {

// One panel at a time, reading rows in turn: 32 rows of k are read along k together.
template <typename T>
void scatter(const T* w, size_t k, size_t rows, const size_t* outputs, T* packed) {
    for (size_t i = 0; i < k; ++i)
        for (size_t r = 0; r < rows; ++r) {
            const size_t o = outputs[r];
            packed[(o / PANEL * k + i) * PANEL + o % PANEL] = w[r * k + i];
        }
}

}  // namespace

void Packed::put(const void* w, size_t n, size_t first, size_t stride, const std::string& name) {
    require_finite(w, n * k_, storage_, name);
    parallel(panels_of(n), [&](size_t panel) {
        const size_t begin = panel * PANEL, rows = n - begin < PANEL ? n - begin : PANEL;
        size_t outputs[PANEL];
        for (size_t r = 0; r < rows; ++r) outputs[r] = packed_output(begin + r, first, stride);
        if (storage_ == ISO_F32)
            scatter(static_cast<const float*>(w) + begin * k_, k_, rows, outputs, f32_.data());
        else
            scatter(static_cast<const uint16_t*>(w) + begin * k_, k_, rows, outputs, bf16_.data());
    });
}

void Packed::put_bias(const float* bias, size_t n, size_t first, size_t stride, const std::string& name) {
    require_finite(bias, n, ISO_F32, name);
    if (!bias_) bias_ = Buffer<float>(panels_ * PANEL);
    for (size_t i = 0; i < n; ++i) bias_[packed_output(i, first, stride)] = bias[i];
}

void Packed::row(size_t output, float* y) const {
    const size_t start = output / PANEL * k_ * PANEL + output % PANEL;
    for (size_t i = 0; i < k_; ++i) {
        const size_t at = start + i * PANEL;
        const uint32_t half = storage_ == ISO_F32 ? 0 : uint32_t(bf16_[at]) << 16;
        memcpy(y + i, storage_ == ISO_F32 ? static_cast<const void*>(&f32_[at]) : &half, sizeof *y);
    }
}

void run_linear(const Packed& w, const float* x, size_t rows, size_t n, Buffer<float>& packed_rows, Epilogue epilogue,
                int activation, float* y, size_t y_stride) {
    const Kernels& k = kernels();
    LinearCall call{x, rows, w.k(), n, w.data(), w.storage(), w.bias(), y, y_stride, epilogue, activation};
    if (rows > 1) {
        at_least(packed_rows, rows * w.k());
        const size_t tile = k.tile_rows;
        parallel((rows + tile - 1) / tile, [&](size_t i) {
            const size_t m = i * tile;
            k.pack_rows(x + m * w.k(), w.k(), rows - m < tile ? rows - m : tile, w.k(), packed_rows.data() + m * w.k());
        });
        call.x = packed_rows.data();
    }
    const size_t panels = panels_of(n), panel_bytes = PANEL * w.k() * (w.storage() == ISO_F32 ? 4 : 2);
    const size_t grain = 1 + (size_t(1) << 15) / (panel_bytes * rows);  // microseconds of work
    parallel(panels, grain, MAX_THREADS, [&](size_t panel, int) { k.linear_panel(call, panel); });
}

}  // namespace iso
