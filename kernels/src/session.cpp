// See session.hpp.
#include "session.hpp"

#include <string.h>

#include <string>

#include "failure.hpp"
#include "pool.hpp"

namespace iso {

namespace {

size_t strips_of(const Decoder& decoder) {
    return size_t(decoder.config().layers) * size_t(decoder.config().kv_heads);
}

constexpr const char* IN_USE = "this session is in use by another thread, or twice in one step: give each sequence its own session";

class Reading {
   public:
    explicit Reading(std::atomic<int>& users) : users_(users) {
        int readers = users.load(std::memory_order_relaxed);
        do {
            if (readers < 0) throw Failure{ISO_IN_USE, IN_USE};
        } while (!users.compare_exchange_weak(readers, readers + 1, std::memory_order_acquire));
    }
    ~Reading() { users_.fetch_sub(1, std::memory_order_release); }

   private:
    std::atomic<int>& users_;
};

}  // namespace

Session::Session(Decoder& decoder, size_t capacity)
    : decoder_(decoder), capacity_(capacity), strips_(strips_of(decoder)), head_dim_(size_t(decoder.config().head_dim)) {
    require(decoder.is_ready(), "the decoder is not ready: its tensors are not all loaded");
    require(capacity > 0 && capacity <= size_t(decoder.config().max_positions),
            "a session's capacity must be between 1 and the model's maximal number of positions");
}

bool Session::begin_writing() {
    int nobody = 0;
    return users_.compare_exchange_strong(nobody, -1, std::memory_order_acquire);
}

Writing::Writing(Session& session) : session_(session) {
    if (!session.begin_writing()) throw Failure{ISO_IN_USE, IN_USE};
}

size_t Session::bytes() const {
    size_t total = 0;
    for (const auto& page : pages_) total += page->bytes();
    return total;
}

size_t Session::most_bytes(const Decoder& decoder, size_t capacity) {
    const size_t full = capacity / PAGE_POSITIONS, rest = capacity % PAGE_POSITIONS, dim = size_t(decoder.config().head_dim);
    const size_t last = rest ? Page::bytes_of(strips_of(decoder), page_positions(rest), dim) : 0;
    return full * Page::bytes_of(strips_of(decoder), PAGE_POSITIONS, dim) + last;
}

void Session::truncate(size_t length) {
    const Writing writing(*this);
    require(length <= length_, "truncate can only shorten a session");
    length_ = length;
}

std::shared_ptr<Page> Session::new_page(size_t index) const {
    return std::make_shared<Page>(strips_, page_positions(capacity_ - index * PAGE_POSITIONS), head_dim_, decoder_.page_count());
}

void Session::adopt(size_t index, std::shared_ptr<Page> page) {
    const CachePage entry{page->data(), page->positions};
    if (index == pages_.size()) {
        pages_.reserve(index + 1);  // so that neither vector grows without the other
        table_.push_back(entry);
        pages_.push_back(std::move(page));
    } else {
        table_[index] = entry;
        pages_[index] = std::move(page);
    }
}

void Session::copy_positions(const Page& from, Page& to, size_t count) const {
    const size_t panels = panels_of(head_dim_);
    parallel(strips_, [&](size_t i) {
        const float* a = from.data() + i * strip_floats(from.positions, head_dim_);
        float* b = to.strip(i, head_dim_);
        memcpy(b, a, panels_of(count) * PANEL * head_dim_ * sizeof(float));
        for (size_t p = 0; p < panels; ++p)
            memcpy(b + to.positions * head_dim_ + p * to.positions * PANEL,
                   a + from.positions * head_dim_ + p * from.positions * PANEL, count * PANEL * sizeof(float));
    });
}

std::unique_ptr<Session> Session::fork(size_t capacity, size_t length) const {
    auto child = std::make_unique<Session>(decoder_, capacity);
    const Reading reading(users_);
    require(length <= length_, "a fork cannot hold more positions than its session");
    require(length <= capacity, "a fork's capacity must hold the positions that it starts with");
    for (size_t start = 0; start < length; start += PAGE_POSITIONS) {
        const size_t index = start / PAGE_POSITIONS, count = length - start < PAGE_POSITIONS ? length - start : PAGE_POSITIONS;
        if (count == PAGE_POSITIONS) {
            child->adopt(index, pages_[index]);
            continue;
        }
        auto page = child->new_page(index);
        copy_positions(*pages_[index], *page, count);
        child->adopt(index, std::move(page));
    }
    child->length_ = length;
    return child;
}

void Session::reserve(size_t n) {
    if (n > capacity_ - length_)
        throw Failure{ISO_CAPACITY, "the session holds " + std::to_string(length_) + " of " + std::to_string(capacity_) +
                                        " positions; " + std::to_string(n) + " more do not fit: open a larger session"};
    for (size_t start = length_ / PAGE_POSITIONS * PAGE_POSITIONS; start < length_ + n; start += PAGE_POSITIONS) {
        const size_t index = start / PAGE_POSITIONS;
        if (index == pages_.size()) {
            adopt(index, new_page(index));
        } else if (pages_[index].use_count() > 1) {
            auto copy = new_page(index);
            if (start < length_) copy_positions(*pages_[index], *copy, length_ - start);
            adopt(index, std::move(copy));
        }
    }
}

}  // namespace iso
