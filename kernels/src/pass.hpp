// One pass over all layers for any number of sessions together (NUMERICS.md, section 7), and the drawing that ends it.
//
// Invariants: a row's bits depend on its own session's tokens up to it and on nothing else. An item fails alone: its
// session is then as before the call, and its rows are set to zero, so that they can't disturb the neighbours they are
// computed beside. Only a lack of memory for the pass itself fails the call, before any session has changed.
#pragma once
#include <vector>

#include "decoder.hpp"
#include "isonomy.h"
#include "sampling.hpp"

namespace iso {

// The scratch memory of a pass; a decoder keeps one for the next.
struct Workspace {
    Buffer<float> hidden, normed, branch, qkv, attended, inner, packed_rows, attention, logits;
    Buffer<float> routes, shares, gathered, expert_out;  // of a mixture of experts
    Buffer<int32_t> chosen;
    Buffer<uint64_t> ranks;
    std::vector<std::vector<const float*>> rope_pages;  // of each rope
    std::vector<SampleScratch> sampling;  // one a slot of the thread pool
};

class Session;
Session& session_of(iso_session* handle);  // generate.cpp

void take_step(Decoder& decoder, iso_item* items, size_t count);

}  // namespace iso
