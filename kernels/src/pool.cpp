// See pool.hpp. Every thread has a lane: its share of the tasks, neighbours in the index, so that weights stream from front
// to back; who is done with his own lane takes from the others'. A lane is one atomic word, (generation, next task), and
// taking is a compare-exchange on it, so a worker that still holds the record of an earlier region takes nothing.
#include "pool.hpp"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "failure.hpp"

namespace iso {

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Spinning this long (about 100 microseconds) covers the gap between two regions of a forward pass, and nearly that
// between two steps; then a worker sleeps.
constexpr int WORKER_SPINS = 8000;
constexpr int CALLER_SPINS = 2000;
using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds LONG_WAIT{1};
constexpr int MOST_ALONE = 32;  // times the wait
constexpr uint64_t NEXT = 0xFFFFFFFFu;  // the part of a lane's word that is its next task

using Task = void (*)(void* context, size_t index, int slot);

std::atomic<int> wanted_threads{0};

class Pool {
   public:
    bool try_enter() { return !busy_.test_and_set(std::memory_order_acquire); }
    void leave() { busy_.clear(std::memory_order_release); }

    // By the one caller that entered; 0 < tasks < NEXT.
    void run(size_t tasks, size_t grain, int slots, Task task, void* context) {
        start_workers(slots);
        // Odd while the record is written. Nothing of the region before is left to take: its lanes are empty.
        const uint64_t generation = (generation_.load(std::memory_order_relaxed) + 2) & NEXT;
        generation_.store(generation - 1, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_release);  // pairs with the fence in work()
        task_.store(task, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        tasks_.store(tasks, std::memory_order_relaxed);
        grain_.store(grain, std::memory_order_relaxed);
        slots_.store(slots, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        for (int s = 0; s < slots; ++s)
            lanes_[s].word.store(generation << 32 | share(tasks, s, slots), std::memory_order_relaxed);
        generation_.store(generation, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst)) {
            { const std::lock_guard<std::mutex> lock(mutex_); }  // nobody is between his last look and his sleep
            wake_.notify_all();
        }
        const auto start = Clock::now();
        work(0);
        const auto mine = Clock::now();
        for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; ++spins)
            spins < CALLER_SPINS ? pause() : std::this_thread::yield();
        const auto end = Clock::now();
        if (end - mine > LONG_WAIT + 4 * (mine - start)) {
            alone_until_ = end + times_ * (end - mine);
            times_ = times_ < MOST_ALONE ? 2 * times_ : MOST_ALONE;
        } else if (times_ > 1 && end > alone_until_ + std::chrono::milliseconds(100)) {
            times_ = 1;  // all is well again
        }
    }

    // On a crowded machine a worker is put aside in the middle of its grain, and the caller waits for milliseconds. After
    // such a wait regions run on the caller alone for as long, and for longer each time it happens again.
    bool crowded() { return times_ > 1 && Clock::now() < alone_until_; }

   private:
    void start_workers(int slots) {
        if (workers_ + 1 >= slots) return;
        sigset_t everything, before;  // signals are for the application's own threads
        sigfillset(&everything);
        pthread_sigmask(SIG_SETMASK, &everything, &before);
        try {
            for (; workers_ + 1 < slots; ++workers_) std::thread([this, slot = workers_ + 1] { serve(slot); }).detach();
        } catch (...) {
            // The system gives no more threads: slower, same bits.
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    static size_t share(size_t tasks, int slot, int slots) { return tasks * size_t(slot) / size_t(slots); }

    // Take and run grains of the present region until none is left.
    void work(int slot) {
        const uint64_t generation = generation_.load(std::memory_order_acquire);
        const Task task = task_.load(std::memory_order_relaxed);
        void* const context = context_.load(std::memory_order_relaxed);
        const size_t tasks = tasks_.load(std::memory_order_relaxed), grain = grain_.load(std::memory_order_relaxed);
        const int slots = slots_.load(std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_acquire);
        // A record that is being replaced may be mixed: whoever replaced it announces the new one.
        if (generation % 2 || generation_.load(std::memory_order_relaxed) != generation || slot >= slots) return;
        for (int i = 0; i < slots; ++i) {
            const int from = slot + i < slots ? slot + i : slot + i - slots;
            const size_t end = share(tasks, from + 1, slots);
            std::atomic<uint64_t>& lane = lanes_[from].word;
            uint64_t word = lane.load(std::memory_order_acquire);
            for (;;) {
                if (word >> 32 != generation) return;  // the region is over
                const size_t next = word & NEXT, past = next + grain < end ? next + grain : end;
                if (next >= end) break;
                // Success proves that tasks were left, hence that the region was alive and its record is the one read.
                if (!lane.compare_exchange_strong(word, generation << 32 | past, std::memory_order_acq_rel)) continue;
                for (size_t t = next; t < past; ++t) task(context, t, slot);
                done_.fetch_add(past - next, std::memory_order_release);
                word = lane.load(std::memory_order_acquire);
            }
        }
    }

    void serve(int slot) {
        const CanonicalFloats canonical;
        uint64_t seen = 0;
        const auto generation = [this] { return generation_.load(std::memory_order_seq_cst); };
        for (;;) {
            const int spins = slot < wanted_threads.load(std::memory_order_relaxed) ? WORKER_SPINS : 0;
            for (int i = 0; generation() == seen && i < spins; ++i) pause();
            if (generation() == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_.fetch_add(1, std::memory_order_seq_cst);
                wake_.wait(lock, [&] { return generation() != seen; });
                sleepers_.fetch_sub(1, std::memory_order_seq_cst);
            }
            seen = generation();
            work(slot);
        }
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    int workers_ = 0, times_ = 1;
    Clock::time_point alone_until_{};
    struct alignas(64) Lane {
        std::atomic<uint64_t> word{0};  // generation << 32 | next task
    };
    Lane lanes_[MAX_THREADS];
    alignas(64) std::atomic<uint64_t> generation_{0};  // 32 bits; even: a region's record can be read
    std::atomic<Task> task_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<size_t> tasks_{0}, grain_{1};
    std::atomic<int> slots_{0};
    alignas(64) std::atomic<size_t> done_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Never freed: its workers sleep on it until the process ends.
std::atomic<Pool*> the_pool{nullptr};

Pool* pool() {
    Pool* present = the_pool.load(std::memory_order_acquire);
    if (present) return present;
    Pool* fresh = new (std::nothrow) Pool();
    if (!fresh) return nullptr;
    if (the_pool.compare_exchange_strong(present, fresh, std::memory_order_acq_rel)) {
        // A forked child has none of these threads: it leaves the pool behind, locks and all, and makes its own.
        static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
        (void)registered;
        return fresh;
    }
    delete fresh;
    return present;
}

}  // namespace

int pool_threads() {
    const int threads = wanted_threads.load(std::memory_order_relaxed);
    if (threads) return threads;
    const unsigned cores = std::thread::hardware_concurrency();
    return cores ? int(cores < unsigned(MAX_THREADS) ? cores : unsigned(MAX_THREADS)) : 1;
}

void pool_set_threads(int threads) { wanted_threads.store(threads, std::memory_order_relaxed); }

void pool_run(size_t tasks, size_t grain, int slots, Task task, void* context) {
    const int threads = pool_threads();
    if (slots > threads) slots = threads;
    Pool* const workers = tasks > grain && slots > 1 && tasks < NEXT ? pool() : nullptr;
    if (!workers || !workers->try_enter()) {
        for (size_t i = 0; i < tasks; ++i) task(context, i, 0);
        return;
    }
    if (workers->crowded())
        for (size_t i = 0; i < tasks; ++i) task(context, i, 0);
    else
        workers->run(tasks, grain, slots, task, context);
    workers->leave();
}

}  // namespace iso
