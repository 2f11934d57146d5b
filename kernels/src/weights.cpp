// See weights.hpp.
#include "weights.hpp"

#include <string.h>

#include "failure.hpp"
#include "int8.hpp"
#include "pool.hpp"

namespace iso {

namespace {
constexpr size_t MOST_INT8_INPUTS = 131072;  // 127 * 127 of them fit into an int32
}  // namespace

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

Packed::Packed(size_t outputs, size_t k, int storage, bool checksums)
    : panels_(panels_of(outputs)), k_(k), storage_(storage), checksums_(checksums) {
    if (panels_ > SIZE_MAX / PANEL / (k + 4)) throw std::bad_alloc();
    require(!checksums || storage == ISO_INT8, "checksums are for int8 weights only: float sums are not exact");
    if (storage == ISO_F32) {
        f32_ = Buffer<float>(panels_ * PANEL * k, Life::LASTING);
    } else if (storage == ISO_BF16) {
        bf16_ = Buffer<uint16_t>(panels_ * PANEL * k, Life::LASTING);
    } else {
        if (k > MOST_INT8_INPUTS)
            throw Failure{ISO_UNSUPPORTED, "int8: a linear with " + std::to_string(k) + " inputs: sums of more than " +
                                               std::to_string(MOST_INT8_INPUTS) + " products may not fit into 32 bits"};
        int8_ = Buffer<int8_t>(panels_ * PANEL * groups() * 4, Life::LASTING);
        scales_ = Buffer<float>(panels_ * PANEL, Life::LASTING);
        offsets_ = Buffer<int32_t>(panels_ * PANEL, Life::LASTING);
    }
}

size_t Packed::bytes() const {
    return f32_.bytes() + bf16_.bytes() + int8_.bytes() + scales_.bytes() + offsets_.bytes() + bias_.bytes() +
           checksum_.c.bytes() + checksum_.digests.bytes();
}

size_t Packed::packed_output(size_t i, size_t first, size_t stride) const {
    if (stride == 1) return first + i;
    return first + i / PANEL * PANEL * stride + i % PANEL;
}

namespace {

void require_quantised(const int8_t* q, const float* scales, size_t n, size_t k, const std::string& name) {
    require(scales, "int8 weights need a scale for each row");
    for (size_t i = 0; i < n; ++i) {
        if (!(scales[i] >= 0 && scales[i] <= __FLT_MAX__))
            bad_argument(name + ": the scale of row " + std::to_string(i) + " is negative or not finite");
        int8_t least = 0, most = 0;
        for (size_t j = 0; j < k; ++j) {
            least = q[i * k + j] < least ? q[i * k + j] : least;
            most = q[i * k + j] > most ? q[i * k + j] : most;
        }
        if (least == -128) bad_argument(name + ": row " + std::to_string(i) + " holds -128, which quantising never gives");
        if (!(scales[i] > 0) && (least || most))
            bad_argument(name + ": row " + std::to_string(i) + " has scale 0 but weights that are not 0");
    }
}

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

void Packed::put(const Stored& w, size_t n, size_t first, size_t stride, const std::string& name) {
    name_ += (name_.empty() ? "" : " + ") + name;
    if (storage_ == ISO_INT8) return put_int8(w, n, first, stride, name);
    require(w.storage == storage_, "int8 weights can't be packed as floats");
    require_finite(w.data, n * k_, storage_, name);
    parallel(panels_of(n), [&](size_t panel) {
        const size_t begin = panel * PANEL, rows = n - begin < PANEL ? n - begin : PANEL;
        size_t outputs[PANEL];
        for (size_t r = 0; r < rows; ++r) outputs[r] = packed_output(begin + r, first, stride);
        if (storage_ == ISO_F32)
            scatter(static_cast<const float*>(w.data) + begin * k_, k_, rows, outputs, f32_.data());
        else
            scatter(static_cast<const uint16_t*>(w.data) + begin * k_, k_, rows, outputs, bf16_.data());
    });
}

void Packed::put_int8(const Stored& w, size_t n, size_t first, size_t stride, const std::string& name) {
    if (w.storage == ISO_INT8)
        require_quantised(static_cast<const int8_t*>(w.data), w.scales, n, k_, name);
    else
        require_finite(w.data, n * k_, w.storage, name);
    const Kernels& kernel = kernels();
    const size_t width = groups() * 4;
    const int slots = pool_threads();
    Buffer<int8_t> rows_q(size_t(slots) * width);
    Buffer<float> rows_f(w.storage == ISO_BF16 ? size_t(slots) * k_ : 0);
    parallel(n, PANEL, slots, [&](size_t i, int slot) {
        int8_t* const q = rows_q.data() + size_t(slot) * width;
        const size_t o = packed_output(i, first, stride);
        if (w.storage == ISO_INT8) {
            memcpy(q, static_cast<const int8_t*>(w.data) + i * k_, k_);
            scales_[o] = w.scales[i];
        } else if (w.storage == ISO_F32) {
            scales_[o] = kernel.quantise(static_cast<const float*>(w.data) + i * k_, k_, q);
        } else {
            float* const x = rows_f.data() + size_t(slot) * k_;
            kernel.widen(static_cast<const uint16_t*>(w.data) + i * k_, x, k_);
            scales_[o] = kernel.quantise(x, k_, q);
        }
        int32_t sum = 0;
        for (size_t j = 0; j < k_; ++j) sum += q[j];
        offsets_[o] = -128 * sum;
        int8_t* const to = int8_.data() + o / PANEL * PANEL * width + o % PANEL * 4;
        for (size_t j = 0; j < width; j += 4) memcpy(to + j * PANEL, q + j, 4);
    });
}

void Packed::seal() {
    if (checksums_) checksum_ = checksum_of(*this);
}

void Packed::put_bias(const float* bias, size_t n, size_t first, size_t stride, const std::string& name) {
    require_finite(bias, n, ISO_F32, name);
    if (!bias_) bias_ = Buffer<float>(panels_ * PANEL);
    for (size_t i = 0; i < n; ++i) bias_[packed_output(i, first, stride)] = bias[i];
}

void Packed::row(size_t output, float* y) const {
    if (storage_ == ISO_INT8) {
        const int8_t* const from = int8_.data() + output / PANEL * PANEL * groups() * 4 + output % PANEL * 4;
        for (size_t i = 0; i < k_; ++i) y[i] = float(from[i / 4 * PANEL * 4 + i % 4]) * scales_[output];
        return;
    }
    const size_t start = output / PANEL * k_ * PANEL + output % PANEL;
    for (size_t i = 0; i < k_; ++i) {
        const size_t at = start + i * PANEL;
        const uint32_t half = storage_ == ISO_F32 ? 0 : uint32_t(bf16_[at]) << 16;
        memcpy(y + i, storage_ == ISO_F32 ? static_cast<const void*>(&f32_[at]) : &half, sizeof *y);
    }
}

void run_linear(const Packed& w, const float* x, size_t rows, size_t n, Buffer<float>& scratch, Epilogue epilogue,
                int activation, float* y, size_t y_stride) {
    if (w.storage() == ISO_INT8) return run_int8(w, x, rows, n, scratch, epilogue, activation, y, y_stride);
    const Kernels& k = kernels();
    LinearCall call{x, rows, w.k(), n, w.data(), w.storage(), w.bias(), y, y_stride, epilogue, activation};
    const size_t tile = k.tile_rows, tiles = (rows + tile - 1) / tile;
    if (rows > 1) {
        at_least(scratch, rows * w.k());
        parallel(tiles, [&](size_t i) {
            const size_t m = i * tile;
            k.pack_rows(x + m * w.k(), w.k(), rows - m < tile ? rows - m : tile, w.k(), scratch.data() + m * w.k());
        });
        call.x = scratch.data();
    }
    const size_t panels = panels_of(n), panel_bytes = PANEL * w.k() * (w.storage() == ISO_F32 ? 4 : 2);
    const size_t turns = size_t(pool_threads()) * 4, most_parts = tiles / 4 ? tiles / 4 : 1;
    const size_t wanted_parts = (turns + panels - 1) / panels, parts = wanted_parts < most_parts ? wanted_parts : most_parts;
    if (parts == 1) {
        const size_t grain = 1 + (size_t(1) << 15) / (panel_bytes * rows);  // microseconds of work
        return parallel(panels, grain, MAX_THREADS, [&](size_t panel, int) { k.linear_panel(call, panel); });
    }
    // Fewer panels than busy threads: the rows are cut, too.
    const size_t part_rows = (tiles + parts - 1) / parts * tile;
    parallel(panels * parts, [&](size_t task) {
        const size_t m = task % parts * part_rows;
        if (m >= rows) return;
        LinearCall part = call;
        part.x = call.x + m * w.k();
        part.y = call.y + m * y_stride;
        part.rows = rows - m < part_rows ? rows - m : part_rows;
        k.linear_panel(part, task / parts);
    });
}

}  // namespace iso
