// Packed weights: panels of 32 outputs, [panel][k][32], so that vector lanes run across outputs and a decode step reads
// them once from front to back. One layout for every path.
#pragma once
#include <stdint.h>

#include <string>

#include "kernels.hpp"
#include "memory.hpp"

namespace iso {

constexpr size_t PANEL = 32;

inline size_t panels_of(size_t n) { return (n + PANEL - 1) / PANEL; }

// Several matrices with the same input may share one Packed (q, k, v; gate and up): `place` says where each row goes.
class Packed {
   public:
    Packed() = default;
    // `outputs` packed outputs (rounded up to whole panels), all +0.
    Packed(size_t outputs, size_t k, int storage);

    // Copy rows 0 .. n-1 of w[n][k] to packed outputs first, first + 1 ...; `stride` 2 takes every other panel from the
    // one that holds `first`. `name` is for the refusal of non-finite weights.
    void put(const void* w, size_t n, size_t first, size_t stride, const std::string& name);
    void put_bias(const float* bias, size_t n, size_t first, size_t stride, const std::string& name);

    // Row `output`, widened to f32: embeddings tied to the output layer are read from its panels.
    void row(size_t output, float* y) const;

    const void* data() const { return storage_ == 0 ? static_cast<const void*>(f32_.data()) : bf16_.data(); }
    const float* bias() const { return bias_ ? bias_.data() : nullptr; }
    size_t k() const { return k_; }
    int storage() const { return storage_; }
    size_t bytes() const { return f32_.bytes() + bf16_.bytes() + bias_.bytes(); }
    explicit operator bool() const { return panels_ != 0; }

   private:
    size_t packed_output(size_t i, size_t first, size_t stride) const;
    size_t panels_ = 0, k_ = 0;
    int storage_ = 0;
    Buffer<float> f32_, bias_;
    Buffer<uint16_t> bf16_;
};

void require_finite(const void* data, size_t count, int storage, const std::string& name);

// Where a linear's input and its interleaved copy live.
void run_linear(const Packed& w, const float* x, size_t rows, size_t n, Buffer<float>& packed_rows, Epilogue epilogue,
                int activation, float* y, size_t y_stride);

}  // namespace iso
