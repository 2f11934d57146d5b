// The layers, for a chunk of rows of any number of sessions (NUMERICS.md, section 7).
//
// Invariant: a row's hidden state depends on its own session's tokens up to it and on nothing else. A row that is not
// finite after a layer fails its item; the item's rows become zero, so that they cannot disturb what runs beside them.
#pragma once
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "decoder.hpp"
#include "failure.hpp"
#include "pass.hpp"
#include "pool.hpp"

namespace iso {

// What a pass knows of an item: how far it has come, and where it failed.
struct Run {
    iso_item* item;
    Session* session;
    size_t first, count, draws, history;  // position of the first token; the last `draws` of `count` rows get logits
    size_t done = 0;
    bool failed = false;
    std::vector<std::pair<size_t, Failure>> failures;  // of drawn rows
};

struct Row {
    Run* run;
    size_t index;     // within the item
    size_t position;  // within the session

    bool wanted() const { return index + run->draws >= run->count; }           // its logits are
    size_t drawn() const { return index + run->draws - run->count; }  // its place among those
};

// Consecutive rows of one item within a chunk.
struct Segment {
    Run* run;
    size_t row, rows, begin;  // the first one's place in the chunk; how many; its index within the item
};

struct Chunk {
    std::vector<Row> rows;
    std::vector<Segment> segments;
    std::vector<int32_t> positions;

    void clear() { rows.clear(), segments.clear(), positions.clear(); }
};

void settle(iso_item& item, const Failure& failure);
void fail(Run& run, const Failure& failure);
// `corruption`: what a checksum found in this pass; its rows were made NaN (checksum.hpp).
Failure non_finite(int layer, size_t position, const std::string& corruption);

template <typename Body>
void in_rows(size_t rows, const Body& body) {
    parallel(rows, grain_of(rows), MAX_THREADS, [&](size_t m, int) { body(m); });
}

inline size_t size(int32_t x) { return size_t(x); }

class Forward {
   public:
    Forward(Decoder& decoder, Workspace& workspace)
        : decoder_(decoder), c_(decoder.config()), w_(workspace), k_(kernels()), eps_(float(c_.eps)) {}

    void prepare(size_t positions);  // tables for so many
    // Take the chunk through all layers; hidden states are then in the workspace, keys and values in the cache.
    void run(const Chunk& chunk);
    void norm(const float* x, const Norm& norm, float* y, size_t n) const;  // one row

   private:
    size_t rows() const { return chunk_->rows.size(); }
    size_t hidden() const { return size(c_.hidden); }
    size_t queries() const { return size(c_.heads) * size(c_.head_dim); }
    size_t keys() const { return size(c_.kv_heads) * size(c_.head_dim); }

    void layer(size_t index);
    float* before(const Norm& norm);
    void after(const Packed& w, const float* x, const Norm& norm);
    void add_branch(const Norm& norm);
    void enter_cache(const Layer& layer, size_t index);
    void attend(const Layer& layer, size_t index);
    void mlp(const Mlp& mlp, const float* x, size_t rows, size_t inner);
    void experts(const Layer& layer, const float* x);
    void stage(size_t index, int which, float* x, size_t width, size_t stride);
    void check(size_t index);

    Decoder& decoder_;
    const iso_decoder_config& c_;
    Workspace& w_;
    const Kernels& k_;
    const float eps_;
    const Chunk* chunk_ = nullptr;
    bool traced_ = false;
    std::vector<AttentionCall> calls_;
    std::vector<uint8_t> finite_;
};

}  // namespace iso
