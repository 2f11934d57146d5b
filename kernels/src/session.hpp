// One sequence: its length and its pages of the key-value cache. What computes is pass.cpp.
//
// Invariants: positions below the length are written and are never written again while the length stays above them; what
// a failed call left behind the length is overwritten before it is read. A page that two sessions share is never written:
// whoever must write to it takes a copy. A session has one writer or any number of readers (forks) at a time, others fail.
#pragma once
#include <memory>
#include <vector>

#include "cache.hpp"
#include "decoder.hpp"

namespace iso {

class Session {
   public:
    Session(Decoder& decoder, size_t capacity);
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    Decoder& decoder() const { return decoder_; }
    size_t length() const { return length_; }
    size_t capacity() const { return capacity_; }
    size_t bytes() const;  // of its pages, shared ones included
    void truncate(size_t length);
    // A session of its own that holds the first `length` positions of this one.
    std::unique_ptr<Session> fork(size_t capacity, size_t length) const;

    // Pages for positions length .. length + n - 1 that are this session's alone. Throws Failure or bad_alloc.
    void reserve(size_t n);
    const CachePage* pages() const { return table_.data(); }
    float* strip(size_t page, size_t i) { return pages_[page]->strip(i, head_dim_); }
    void set_length(size_t length) { length_ = length; }

    bool begin_writing();  // false: in use
    void end_writing() { users_.store(0, std::memory_order_release); }

    static size_t most_bytes(const Decoder& decoder, size_t capacity);

   private:
    std::shared_ptr<Page> new_page(size_t index) const;
    void adopt(size_t index, std::shared_ptr<Page> page);
    void copy_positions(const Page& from, Page& to, size_t count) const;

    Decoder& decoder_;
    const size_t capacity_, strips_, head_dim_;
    size_t length_ = 0;
    std::vector<std::shared_ptr<Page>> pages_;
    std::vector<CachePage> table_;  // of pages_, as attention wants it
    mutable std::atomic<int> users_{0};  // -1: one writer; else readers
};

// A session's writer for as long as the object lives.
class Writing {
   public:
    explicit Writing(Session& session);  // throws Failure
    ~Writing() { session_.end_writing(); }
    Writing(const Writing&) = delete;
    Writing& operator=(const Writing&) = delete;

   private:
    Session& session_;
};

}  // namespace iso
