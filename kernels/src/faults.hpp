// A fault of one bit, put into a pass on purpose: for tests of what finds faults.
#pragma once
#include <stddef.h>

#include <atomic>

namespace iso {

struct Fault {
    int layer, stage;
    size_t position, element;
    int bit;
};

extern std::atomic<bool> fault_set;

void set_fault(const Fault& fault);
void clear_fault();
void flip(size_t layer, int stage, size_t position, float* x, size_t width);

inline bool faults_injected() { return fault_set.load(std::memory_order_relaxed); }

inline void inject(size_t layer, int stage, size_t position, float* x, size_t width) {
    if (faults_injected()) flip(layer, stage, position, x, width);
}

}  // namespace iso
