// See attend.hpp.
#include "attend.hpp"

#include <algorithm>

#include "pool.hpp"

namespace iso {

namespace {

constexpr size_t LONG = 2;       // blocks of keys from which on a tile is worth three regions instead of one
constexpr size_t ENOUGH = 4;     // tiles a thread that level out by themselves

struct Unit {
    const AttentionCall* call;
    size_t kv_head, tile, first, past;  // past - first blocks of keys
    size_t task;                        // its first, where a task is a block
    float* state;
};

struct Block {
    const Unit* unit;
    size_t block;
};

size_t positions_seen(const AttentionCall& call) {
    return size_t(*std::max_element(call.positions, call.positions + call.rows)) + 1;
}

void run_by_block(const std::vector<AttentionCall>& calls, size_t count, Buffer<float>& scratch) {
    const Kernels& k = kernels();
    std::vector<Unit> units;
    units.reserve(count);
    size_t tasks = 0, room = 0;
    for (const AttentionCall& call : calls) {
        const size_t each = k.attention_scratch(positions_seen(call), call.head_dim);
        for (size_t head = 0; head < call.kv_heads; ++head)
            for (size_t tile = 0; tile < k.attention_tiles(call.rows, call.heads / call.kv_heads); ++tile) {
                Unit unit{&call, head, tile, 0, 0, tasks, nullptr};
                k.attention_blocks(call, tile, &unit.first, &unit.past);
                tasks += unit.past - unit.first;
                room += each;
                units.push_back(unit);
            }
    }
    at_least(scratch, room);
    float* state = scratch.data();
    std::vector<Block> blocks;
    blocks.reserve(tasks);
    for (Unit& unit : units) {
        unit.state = state;
        state += k.attention_scratch(positions_seen(*unit.call), unit.call->head_dim);
        k.attention_begin(*unit.call, unit.kv_head, unit.tile, unit.state);
        for (size_t block = unit.first; block < unit.past; ++block) blocks.push_back({&unit, block});
    }
    parallel(tasks, [&](size_t task) {
        const Unit& u = *blocks[task].unit;
        k.attention_scores(*u.call, u.kv_head, u.tile, blocks[task].block, u.state);
    });
    parallel(tasks, [&](size_t task) {
        const Unit& u = *blocks[task].unit;
        k.attention_values(*u.call, u.kv_head, u.tile, blocks[task].block, u.state);
    });
    for (const Unit& u : units) k.attention_finish(*u.call, u.kv_head, u.tile, u.state);
}

}  // namespace

void run_attention(const std::vector<AttentionCall>& calls, Buffer<float>& scratch) {
    const Kernels& k = kernels();
    size_t tasks = 0, each = 0, positions = 0;
    std::vector<size_t> begins;
    for (const AttentionCall& call : calls) {
        begins.push_back(tasks);
        tasks += call.kv_heads * k.attention_tiles(call.rows, call.heads / call.kv_heads);
        const size_t seen = positions_seen(call);
        each = std::max(each, k.attention_scratch(seen, call.head_dim));
        positions = std::max(positions, seen);
    }
    const int slots = pool_threads();
    if (slots > 1 && tasks < ENOUGH * size_t(slots) && positions > LONG * 256) return run_by_block(calls, tasks, scratch);
    at_least(scratch, each * size_t(slots));
    parallel(tasks, 1, slots, [&](size_t task, int slot) {
        const size_t c = size_t(std::upper_bound(begins.begin(), begins.end(), task) - begins.begin()) - 1;
        const AttentionCall& call = calls[c];
        const size_t tiles = k.attention_tiles(call.rows, call.heads / call.kv_heads), own = task - begins[c];
        k.attention_tile(call, own / tiles, own % tiles, scratch.data() + each * size_t(slot));
    });
}

}  // namespace iso
