// Zeroed memory for weights, caches and scratch, straight from the system; throws std::bad_alloc.
//
// Streaming at the speed of memory takes huge pages: with small ones every 4 KiB begin with an address translation and
// a prefetcher that starts anew. A huge page is 2 MiB and aligned so; single matrices are often smaller, so lasting
// arrays share regions of many huge pages.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <new>
#include <utility>

namespace iso {

constexpr size_t PAGE = 4096, HUGE_PAGE = size_t(2) << 20;

// See memory.cpp. A whole mapping of its own, aligned to huge pages where it is that large; a piece of a shared region.
void* map_pages(size_t bytes);
void unmap_pages(void* p, size_t bytes);
void* take_lasting(size_t bytes);  // multiples of LASTING_STEP
void give_lasting(void* p);
constexpr size_t LASTING_STEP = 64, LARGEST_SHARED = size_t(8) << 20;

enum class Life { ITS_OWN, LASTING };  // LASTING: weights, which come and go together

// Fresh pages from the system read as +0, so a large cache costs memory only as it fills.
template <typename T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t count, Life life = Life::ITS_OWN) : count_(count) {
        if (!count) return;
        if (life == Life::LASTING && count <= LARGEST_SHARED / sizeof(T)) {
            shared_ = true;
            bytes_ = (count * sizeof(T) + LASTING_STEP - 1) / LASTING_STEP * LASTING_STEP;
            data_ = static_cast<T*>(take_lasting(bytes_));
        } else {
            bytes_ = bytes_of(count);
            data_ = static_cast<T*>(map_pages(bytes_));
        }
    }
    ~Buffer() {
        if (data_) shared_ ? give_lasting(data_) : unmap_pages(data_, bytes_);
    }
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }

    // What a buffer of so many elements takes from the system.
    static size_t bytes_of(size_t count) {
        if (count > SIZE_MAX / sizeof(T) - PAGE) throw std::bad_alloc();
        return (count * sizeof(T) + PAGE - 1) / PAGE * PAGE;
    }

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return count_; }
    size_t bytes() const { return bytes_; }
    explicit operator bool() const { return data_ != nullptr; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }

   private:
    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        std::swap(bytes_, other.bytes_);
        std::swap(shared_, other.shared_);
    }
    T* data_ = nullptr;
    size_t count_ = 0, bytes_ = 0;
    bool shared_ = false;
};

// Make a scratch buffer hold at least `count`; its old content is not kept.
template <typename T>
void at_least(Buffer<T>& buffer, size_t count) {
    if (buffer.size() < count) buffer = Buffer<T>(count);
}

}  // namespace iso
