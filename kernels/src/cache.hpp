// The key-value cache in pages of up to 256 positions: the blocks of attention's sums (NUMERICS.md, section 6).
//
// A page holds all layers of its positions, as strips, one a layer and key-value head; kernels.hpp fixes a strip's layout.
// Only a short session's page and a session's last one hold fewer than 256 positions; pages that are full may be shared.
#pragma once
#include <atomic>
#include <memory>

#include "kernels.hpp"
#include "memory.hpp"
#include "weights.hpp"

namespace iso {

constexpr size_t PAGE_POSITIONS = 256;

// Positions of a page where so many of the session's lie from its start on.
inline size_t page_positions(size_t rest) { return rest < PAGE_POSITIONS ? panels_of(rest) * PANEL : PAGE_POSITIONS; }

inline size_t strip_floats(size_t positions, size_t head_dim) { return positions * (head_dim + panels_of(head_dim) * PANEL); }

// Write one position's key and value into a strip; `position` counts from the page's start.
inline void enter(float* strip, size_t positions, size_t position, size_t head_dim, const float* key, const float* value) {
    float* keys = strip + position / PANEL * PANEL * head_dim + position % PANEL;
    float* values = strip + positions * head_dim + position * PANEL;
    for (size_t d = 0; d < head_dim; ++d) keys[d * PANEL] = key[d];
    for (size_t d = 0; d < head_dim; ++d) values[d / PANEL * positions * PANEL + d % PANEL] = value[d];
}

// Bytes of all pages that live, of one decoder; outlives it together with the last page.
using PageCount = std::shared_ptr<std::atomic<size_t>>;

class Page {
   public:
    Page(size_t strips, size_t positions_, size_t head_dim, PageCount count)
        : positions(positions_), data_(strips * strip_floats(positions_, head_dim)), count_(std::move(count)) {
        count_->fetch_add(data_.bytes(), std::memory_order_relaxed);
    }
    ~Page() { count_->fetch_sub(data_.bytes(), std::memory_order_relaxed); }
    Page(const Page&) = delete;
    Page& operator=(const Page&) = delete;

    float* strip(size_t i, size_t head_dim) { return data_.data() + i * strip_floats(positions, head_dim); }
    const float* data() const { return data_.data(); }
    size_t bytes() const { return data_.bytes(); }
    static size_t bytes_of(size_t strips, size_t positions, size_t head_dim) {
        return Buffer<float>::bytes_of(strips * strip_floats(positions, head_dim));
    }

    const size_t positions;

   private:
    Buffer<float> data_;
    PageCount count_;
};

}  // namespace iso
