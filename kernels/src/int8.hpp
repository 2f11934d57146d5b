// The int8 linear over the pool: see int8.cpp.
#pragma once
#include "weights.hpp"

namespace iso {

void run_int8(const Packed& w, const float* x, size_t rows, size_t n, Buffer<float>& scratch, Epilogue epilogue,
              int activation, float* y, size_t y_stride);

}  // namespace iso
