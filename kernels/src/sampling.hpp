// From logits to a token (NUMERICS.md, section 9).
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "isonomy.h"

namespace iso {

void check_sampling(const iso_sampling& parameters);  // throws Failure

struct SampleScratch {
    std::vector<float> values, e, survivors;
    std::vector<int32_t> admitted, ids;
    std::vector<uint64_t> keys, seen;
};

// `position` is the one the token will take; logits are finite; the mask has a bit a token (1: admitted), or is null.
void sample(const float* logits, size_t n, const iso_sampling& parameters, uint32_t position, const int32_t* history,
            size_t history_length, const uint32_t* mask, SampleScratch& scratch, int32_t* token, float* logprob);

// Of raw logits: (l - M) - log(Z).
class LogProbabilities {
   public:
    LogProbabilities(const float* logits, size_t n);
    float of(size_t id) const { return (logits_[id] - maximum_) - log_total_; }

   private:
    const float* logits_;
    float maximum_, log_total_;
};

// The first `count` ranks by (value descending, id ascending).
void top_ranks(const float* logits, size_t n, size_t count, int32_t* ids);

}  // namespace iso
