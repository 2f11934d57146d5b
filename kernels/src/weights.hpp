// Packed weights: panels of 32 outputs, so that vector lanes run across outputs and a decode step reads them once from
// front to back. One layout for every path: [panel][k][32] of f32 or bf16, [panel][k / 4][32][4] of int8.
#pragma once
#include <stdint.h>

#include <string>

#include "checksum.hpp"
#include "isonomy.h"
#include "kernels.hpp"
#include "memory.hpp"

namespace iso {

constexpr size_t PANEL = 32;

inline size_t panels_of(size_t n) { return (n + PANEL - 1) / PANEL; }

// Rows of a matrix as a checkpoint has them; int8 has a scale a row.
struct Stored {
    const void* data;
    int storage;  // ISO_F32, ISO_BF16, ISO_INT8
    const float* scales = nullptr;
};

// Several matrices with the same input may share one Packed (q, k, v; gate and up): `place` says where each row goes.
class Packed {
   public:
    Packed() = default;
    // `outputs` packed outputs (rounded up to whole panels), all +0. `checksums`: of int8 weights only.
    Packed(size_t outputs, size_t k, int storage, bool checksums = false);

    // Put rows 0 .. n-1 of w[n][k] at packed outputs first, first + 1 ...; `stride` 2 takes every other panel from the one
    // that holds `first`. Floats are quantised where this storage is int8; otherwise the storages are the same. `name` is
    // for refusals (weights that are not finite, -128, a scale that is no scale) and part of name().
    void put(const Stored& w, size_t n, size_t first, size_t stride, const std::string& name);
    void put_bias(const float* bias, size_t n, size_t first, size_t stride, const std::string& name);
    // After the last put: takes the checksums, where there are to be any.
    void seal();

    // Row `output`, widened to f32: embeddings tied to the output layer are read from its panels.
    void row(size_t output, float* y) const;

    const void* data() const { return storage_ == ISO_F32 ? static_cast<const void*>(f32_.data()) : bf16_.data(); }
    const int8_t* int8() const { return int8_.data(); }
    const float* scales() const { return scales_.data(); }
    const int32_t* offsets() const { return offsets_.data(); }
    const float* bias() const { return bias_ ? bias_.data() : nullptr; }
    const Checksum& checksum() const { return checksum_; }
    const std::string& name() const { return name_; }  // of the matrices put here, "a + b"
    size_t panels() const { return panels_; }
    size_t groups() const { return (k_ + 3) / 4; }
    size_t k() const { return k_; }
    int storage() const { return storage_; }
    size_t bytes() const;
    explicit operator bool() const { return panels_ != 0; }

   private:
    size_t packed_output(size_t i, size_t first, size_t stride) const;
    void put_int8(const Stored& w, size_t n, size_t first, size_t stride, const std::string& name);
    size_t panels_ = 0, k_ = 0;
    int storage_ = ISO_F32;
    bool checksums_ = false;
    Buffer<float> f32_, bias_, scales_;
    Buffer<uint16_t> bf16_;
    Buffer<int8_t> int8_;
    Buffer<int32_t> offsets_;
    Checksum checksum_;
    std::string name_;
};

void require_finite(const void* data, size_t count, int storage, const std::string& name);

// y = the linear of `rows` rows of x, with its epilogue; `scratch` is for this function's own use.
void run_linear(const Packed& w, const float* x, size_t rows, size_t n, Buffer<float>& scratch, Epilogue epilogue,
                int activation, float* y, size_t y_stride);

}  // namespace iso
