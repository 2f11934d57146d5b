// See faults.hpp.
#include "faults.hpp"

#include <stdint.h>
#include <string.h>

#include <mutex>

namespace iso {

std::atomic<bool> fault_set{false};

namespace {

std::mutex fault_mutex;
Fault fault_now{};

}  // namespace

void set_fault(const Fault& fault) {
    const std::lock_guard<std::mutex> lock(fault_mutex);
    fault_now = fault;
    fault_set.store(true);
}

void clear_fault() { fault_set.store(false); }

void flip(size_t layer, int stage, size_t position, float* x, size_t width) {
    const std::lock_guard<std::mutex> lock(fault_mutex);
    const Fault& f = fault_now;
    if (f.layer < 0 || size_t(f.layer) != layer || f.stage != stage || f.position != position || f.element >= width) return;
    uint32_t bits;
    memcpy(&bits, x + f.element, sizeof bits);
    bits ^= uint32_t(1) << f.bit;
    memcpy(x + f.element, &bits, sizeof bits);
}

}  // namespace iso
