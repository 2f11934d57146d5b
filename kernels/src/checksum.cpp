// See checksum.hpp.
#include "checksum.hpp"

#include <string.h>

#include <atomic>
#include <mutex>

#include "failure.hpp"
#include "kernels.hpp"
#include "pool.hpp"
#include "weights.hpp"

namespace iso {

namespace {

// Growing replaces the table; the old ones stay, because somebody may be reading them. Each is twice its predecessor.
struct Table {
    Buffer<uint32_t> r;
    Table* before;
};
std::atomic<Table*> table{nullptr};
std::mutex table_mutex;

constexpr size_t MOST_KEPT = 4096;  // of a thread that never asks for them
thread_local std::vector<Corruption> found;
thread_local std::string corrupt;

std::atomic<bool> armed{false};
std::mutex injection_mutex;
Injection present;
int hits = 0;

}  // namespace

const uint32_t* checksum_weights(size_t outputs) {
    Table* here = table.load(std::memory_order_acquire);
    if (here && here->r.size() >= outputs) return here->r.data();
    const std::lock_guard<std::mutex> lock(table_mutex);
    here = table.load(std::memory_order_acquire);
    if (here && here->r.size() >= outputs) return here->r.data();
    size_t size = here ? 2 * here->r.size() : 4096;
    while (size < outputs) size *= 2;
    auto* grown = new Table{Buffer<uint32_t>(size), here};
    for (size_t i = 0; i < size; i += 4) {
        const uint32_t counter[4] = {uint32_t(i / 4), 0, 0, 1};
        uint32_t words[4];
        kernels().philox(0, counter, words);
        for (size_t j = 0; j < 4; ++j) grown->r[i + j] = words[j] >> 1 | 1;
    }
    table.store(grown, std::memory_order_release);
    return grown->r.data();
}

Checksum checksum_of(const Packed& packed) {
    constexpr size_t GROUPS = 64;  // of four, a task
    const size_t panels = packed.panels(), groups = packed.groups(), bytes = groups * PANEL * 4;
    const uint32_t* const r = checksum_weights(panels * PANEL);
    const int8_t* const w = packed.int8();
    Checksum result;
    result.c = Buffer<int64_t>(groups * 4, Life::LASTING);
    parallel((groups + GROUPS - 1) / GROUPS, [&](size_t task) {
        const size_t begin = task * GROUPS, end = begin + GROUPS < groups ? begin + GROUPS : groups;
        for (size_t p = 0; p < panels; ++p)
            for (size_t g = begin; g < end; ++g)
                for (size_t i = 0; i < PANEL; ++i)
                    for (size_t j = 0; j < 4; ++j)
                        result.c[g * 4 + j] = int64_t(uint64_t(result.c[g * 4 + j]) +
                                                      uint64_t(int64_t(r[p * PANEL + i]) * w[p * bytes + (g * PANEL + i) * 4 + j]));
    });
    result.digests = Buffer<uint8_t>(panels * 32, Life::LASTING);
    parallel(panels, grain_of(panels), MAX_THREADS, [&](size_t p, int) {
        kernels().blake3(reinterpret_cast<const uint8_t*>(w) + p * bytes, bytes, &result.digests[p * 32]);
    });
    return result;
}

std::vector<size_t> damaged_panels(const Packed& packed, const Checksum& checksum) {
    const size_t bytes = packed.groups() * PANEL * 4;
    std::vector<size_t> damaged;
    for (size_t p = 0; p < packed.panels(); ++p) {
        uint8_t digest[32];
        kernels().blake3(reinterpret_cast<const uint8_t*>(packed.int8()) + p * bytes, bytes, digest);
        if (memcmp(digest, &checksum.digests[p * 32], 32)) damaged.push_back(p);
    }
    return damaged;
}

void remember_corruption(const Corruption& fault) {
    if (found.size() < MOST_KEPT) found.push_back(fault);
    if (fault.recomputed || !corrupt.empty()) return;
    corrupt = fault.linear + ": silent data corruption in row " + std::to_string(fault.row) +
              ", and again when it was computed a second time; ";
    corrupt += fault.damaged_panels ? "its weights in memory were damaged: load the model again"
                                    : "its weights in memory are sound: the processor is to be distrusted";
}

std::vector<Corruption> take_corruptions() {
    std::vector<Corruption> taken;
    taken.swap(found);
    return taken;
}

size_t corruptions_waiting() { return found.size(); }

const std::string& corruption() { return corrupt; }
void forget_corruption() { corrupt.clear(); }

bool injecting_linears() { return armed.load(std::memory_order_relaxed); }

void inject_linear(const Injection& injection) {
    require(injection.kind == FAULT_SUM || injection.kind == FAULT_WEIGHT, "unknown kind of fault");
    require(injection.bit >= 0 && injection.bit < (injection.kind == FAULT_SUM ? 32 : 8), "no such bit");
    require(injection.times > 0, "a fault must hit at least once");
    const std::lock_guard<std::mutex> lock(injection_mutex);
    present = injection;
    hits = 0;
    armed.store(true);
}

int end_linear_injection() {
    const std::lock_guard<std::mutex> lock(injection_mutex);
    armed.store(false);
    return hits;
}

void corrupt_sums(const Packed& packed, size_t panel, size_t first_row, size_t rows, int32_t* sums) {
    const std::lock_guard<std::mutex> lock(injection_mutex);
    if (present.kind != FAULT_SUM || hits >= present.times || packed.name() != present.linear) return;
    if (present.element / PANEL != panel || present.row < first_row || present.row - first_row >= rows) return;
    uint32_t word;
    int32_t* const at = sums + (present.row - first_row) * PANEL + present.element % PANEL;
    memcpy(&word, at, 4);
    word ^= uint32_t(1) << present.bit;
    memcpy(at, &word, 4);
    ++hits;
}

void corrupt_weights(const Packed& packed) {
    const std::lock_guard<std::mutex> lock(injection_mutex);
    if (present.kind != FAULT_WEIGHT || hits >= present.times || packed.name() != present.linear) return;
    if (present.element >= packed.panels() * packed.groups() * PANEL * 4) return;
    const_cast<int8_t*>(packed.int8())[present.element] ^= int8_t(1 << present.bit);
    ++hits;
}

}  // namespace iso
