// A thread pool for short parallel regions: `tasks` independent tasks, neighbours to the same thread, a grain at a time.
//
// Invariant: what a task computes depends on its index only; who runs it, and when, is left open. The caller works too,
// and a region ends when its tasks are done, not when every worker has looked at it, so a worker that the system has
// put aside delays nobody; where one was put aside in mid-task, the next regions do without workers. A second caller at
// the same time, and a region inside a region, run on the calling thread alone. After fork the child starts with a fresh pool of its own.
#pragma once
#include <stddef.h>

namespace iso {

constexpr int MAX_THREADS = 1024;

int pool_threads();              // the caller included
void pool_set_threads(int threads);

// task(context, index, slot): slot < slots tells concurrent tasks apart, for scratch memory.
void pool_run(size_t tasks, size_t grain, int slots, void (*task)(void* context, size_t index, int slot), void* context);

// body(index, slot) for index in 0 .. tasks - 1.
template <typename Body>
void parallel(size_t tasks, size_t grain, int slots, const Body& body) {
    pool_run(
        tasks, grain, slots,
        [](void* context, size_t index, int slot) { (*static_cast<const Body*>(context))(index, slot); },
        const_cast<Body*>(&body));
}

template <typename Body>
void parallel(size_t tasks, const Body& body) {
    parallel(tasks, 1, MAX_THREADS, [&](size_t index, int) { body(index); });
}

// A grain that leaves every thread a few turns.
inline size_t grain_of(size_t tasks) {
    const size_t turns = size_t(pool_threads()) * 4;
    return tasks / turns ? tasks / turns : 1;
}

}  // namespace iso
