// See memory.hpp. Lasting arrays are cut one after the other from regions of huge pages; a region is returned to the
// system when the last array in it is gone. What an array leaves free is not used again: weights are freed together.
#include "memory.hpp"

#include <sys/mman.h>

#include <mutex>

namespace iso {

namespace {

constexpr size_t REGION = size_t(32) << 20;  // and aligned to as much, so that an array finds its region's head

struct Head {
    size_t used, arrays;
};
constexpr size_t HEAD_BYTES = 4096;  // arrays begin on a page
static_assert(HEAD_BYTES + LARGEST_SHARED <= REGION, "an array must fit");

std::mutex mutex;
Head* present = nullptr;  // the region that arrays are cut from; counts as one of its arrays

// Fresh zeroed pages at a multiple of `alignment`.
void* map_aligned(size_t bytes, size_t alignment) {
    if (bytes > SIZE_MAX - alignment) throw std::bad_alloc();
    const size_t room = bytes + alignment - PAGE;
    void* const p = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    char* const begin = static_cast<char*>(p);
    char* const aligned = begin + (alignment - reinterpret_cast<uintptr_t>(begin) % alignment) % alignment;
    if (aligned > begin) munmap(begin, size_t(aligned - begin));
    const size_t behind = room - size_t(aligned - begin) - bytes;
    if (behind) munmap(aligned + bytes, behind);
#if defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_PAGE) madvise(aligned, bytes, MADV_HUGEPAGE);
#endif
    return aligned;
}

void leave(Head* head) {
    if (!--head->arrays) munmap(head, REGION);
}

}  // namespace

void* map_pages(size_t bytes) { return map_aligned(bytes, bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE); }

void unmap_pages(void* p, size_t bytes) { munmap(p, bytes); }

void* take_lasting(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!present || present->used + bytes > REGION) {
        Head* const fresh = static_cast<Head*>(map_aligned(REGION, REGION));
        *fresh = Head{HEAD_BYTES, 1};
        if (present) leave(present);
        present = fresh;
    }
    char* const p = reinterpret_cast<char*>(present) + present->used;
    present->used += bytes;
    ++present->arrays;
    return p;
}

void give_lasting(void* p) {
    const std::lock_guard<std::mutex> lock(mutex);
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    leave(reinterpret_cast<Head*>(at - at % REGION));
}

}  // namespace iso
