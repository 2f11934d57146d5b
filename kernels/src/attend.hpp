// Attention calls cut into tasks for the pool.
#pragma once
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"

namespace iso {

// All calls at once: a task a key-value head and tile of rows, or, where those are too few for the threads and the
// contexts long, a task a block of 256 keys of each. `scratch` grows as needed.
void run_attention(const std::vector<AttentionCall>& calls, Buffer<float>& scratch);

}  // namespace iso
