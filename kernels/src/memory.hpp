// Zeroed memory for weights, caches and scratch, straight from the system; throws std::bad_alloc.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <new>
#include <utility>

namespace iso {

// Fresh pages from the system read as +0, so a large cache costs memory only as it fills.
template <typename T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t count) : count_(count) {
        if (!count) return;
        bytes_ = bytes_of(count);
        void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        if (bytes_ >= HUGE_PAGE) madvise(p, bytes_, MADV_HUGEPAGE);  // fewer address translations while streaming
#endif
        data_ = static_cast<T*>(p);
    }
    ~Buffer() {
        if (data_) munmap(data_, bytes_);
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
    static constexpr size_t PAGE = 4096, HUGE_PAGE = size_t(2) << 20;
    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(count_, other.count_);
        std::swap(bytes_, other.bytes_);
    }
    T* data_ = nullptr;
    size_t count_ = 0, bytes_ = 0;
};

// Make a scratch buffer hold at least `count`; its old content is not kept.
template <typename T>
void at_least(Buffer<T>& buffer, size_t count) {
    if (buffer.size() < count) buffer = Buffer<T>(count);
}

}  // namespace iso
