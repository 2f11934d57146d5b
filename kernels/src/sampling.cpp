// See sampling.hpp. The filters are integer work and the same on every path; functions and sums come from the table.
#include "sampling.hpp"

#include <string.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "failure.hpp"
#include "kernels.hpp"

namespace iso {

namespace {

// Rank as one integer: a greater key is a higher value, among equal values (-0 and +0 are equal) a lower id.
uint64_t rank_key(float value, uint32_t id) {
    const float without_negative_zero = value + 0.0f;
    uint32_t bits;
    memcpy(&bits, &without_negative_zero, sizeof bits);
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return uint64_t(ordered) << 32 | uint32_t(~id);
}

int32_t id_of(uint64_t key) { return int32_t(~uint32_t(key)); }

uint64_t mass_of(float e) {  // rint(e * 2^32), ties to even; see masses() in noise.cpp
    const double shifted = double(e) * 0x1p32 + 0x1p52;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4330000000000000u;
}

using Keys = std::vector<uint64_t>;

void keys_of(const float* values, size_t n, Keys& keys) {
    keys.resize(n);
    for (size_t i = 0; i < n; ++i) keys[i] = rank_key(values[i], uint32_t(i));
}

void keep_first_ranks(Keys& keys, size_t count) {
    if (count >= keys.size()) return;
    std::nth_element(keys.begin(), keys.begin() + ptrdiff_t(count), keys.end(), std::greater<uint64_t>());
    keys.resize(count);
}

// The shortest prefix of the ranks whose mass reaches top_p * Z, found by halving instead of sorting.
void keep_mass(Keys& keys, const std::vector<float>& e, double top_p) {
    const auto mass = [&](size_t from, size_t to) {
        uint64_t sum = 0;
        for (size_t i = from; i < to; ++i) sum += mass_of(e[size_t(id_of(keys[i]))]);
        return sum;
    };
    const double goal = top_p * double(mass(0, keys.size()));
    uint64_t before = 0;  // mass of ranks 0 .. low - 1; the prefix ends in low + 1 .. high
    size_t low = 0, high = keys.size();
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        std::nth_element(keys.begin() + ptrdiff_t(low), keys.begin() + ptrdiff_t(middle), keys.begin() + ptrdiff_t(high),
                         std::greater<uint64_t>());
        const uint64_t left = mass(low, middle);
        if (double(before + left) >= goal) {
            high = middle;
        } else {
            before += left;
            low = middle;
        }
    }
    keys.resize(high);
}

// Once for each distinct id: `seen` has a bit a token.
void penalise(std::vector<float>& l, float penalty, const int32_t* history, size_t history_length, std::vector<uint64_t>& seen) {
    seen.assign(l.size() / 64 + 1, 0);
    for (size_t i = 0; i < history_length; ++i) {
        const int32_t id = history[i];
        if (id < 0 || size_t(id) >= l.size()) bad_argument("history holds id " + std::to_string(id) + ", which is no token");
        uint64_t& word = seen[size_t(id) / 64];
        const uint64_t bit = uint64_t(1) << (id % 64);
        if (word & bit) continue;
        word |= bit;
        float& value = l[size_t(id)];
        value = value > 0.0f ? value / penalty : value * penalty;
    }
}

// Leaves the admitted values, in the order of their ids.
void apply_mask(const uint32_t* mask, std::vector<float>& l, std::vector<int32_t>& ids) {
    ids.clear();
    const size_t n = l.size();
    for (size_t first = 0; first < n; first += 32) {
        const size_t end = n - first < 32 ? n : first + 32;
        uint32_t bits = mask[first / 32];
        for (size_t id = first; bits && id < end; ++id, bits >>= 1)
            if (bits & 1) ids.push_back(int32_t(id));
    }
    require(!ids.empty(), "the mask admits no token");
    for (size_t i = 0; i < ids.size(); ++i) l[i] = l[size_t(ids[i])];
    l.resize(ids.size());
}

}  // namespace

LogProbabilities::LogProbabilities(const float* logits, size_t n) : logits_(logits) {
    const Kernels& k = kernels();
    maximum_ = k.maximum(logits, n);
    log_total_ = k.log_one(float(int64_t(k.masses(logits, maximum_, nullptr, n))) * 0x1p-32f);
}

void check_sampling(const iso_sampling& p) {
    constexpr double MAX = 3.0e38;
    require(p.temperature >= 0 && p.temperature <= MAX, "temperature must be finite and not negative");
    require(p.top_k >= 0, "top_k must not be negative (0 is off)");
    require(p.top_p > 0 && p.top_p <= 1, "top_p must be in (0, 1] (1 is off)");
    require(p.min_p >= 0 && p.min_p <= 1, "min_p must be in [0, 1] (0 is off)");
    require(p.repetition_penalty <= MAX && float(p.repetition_penalty) > 0, "repetition_penalty must be positive and finite");
}

void sample(const float* logits, size_t vocab, const iso_sampling& p, uint32_t position, const int32_t* history,
            size_t history_length, const uint32_t* mask, SampleScratch& s, int32_t* token, float* logprob) {
    const Kernels& k = kernels();
    const LogProbabilities raw(logits, vocab);
    const float penalty = float(p.repetition_penalty), temperature = float(p.temperature);

    // Values of the admitted ids; value i is that of id i where there is no mask, else of id admitted[i].
    std::vector<float>& l = s.values;
    l.assign(logits, logits + vocab);
    if (penalty != 1.0f) penalise(l, penalty, history, history_length, s.seen);
    if (mask) apply_mask(mask, l, s.admitted);
    const size_t n = l.size();
    const auto id_at = [&](size_t i) { return mask ? s.admitted[i] : int32_t(i); };

    const auto drawn = [&]() -> int32_t {
        if (temperature == 0.0f) return id_at(k.argmax(l.data(), n));
        if (temperature != 1.0f) k.divide(l.data(), temperature, n);
        require(k.all_finite(l.data(), n), "the temperature or the penalty makes a logit overflow: use a larger temperature");
        const NoiseKey key{p.seed, position, p.candidate};
        const bool top_k = p.top_k > 0 && uint64_t(p.top_k) < n, top_p = p.top_p < 1.0, min_p = p.min_p > 0.0;
        if (!top_k && !top_p && !min_p) return id_at(k.noisy_argmax(l.data(), mask ? s.admitted.data() : nullptr, n, key));

        Keys& keys = s.keys;
        keys_of(l.data(), n, keys);
        if (top_k) keep_first_ranks(keys, size_t(p.top_k));
        if (top_p || min_p) {
            s.e.resize(n);
            k.masses(l.data(), k.maximum(l.data(), n), s.e.data(), n);
        }
        if (top_p) keep_mass(keys, s.e, p.top_p);
        s.ids.clear();
        for (const uint64_t rank : keys)
            if (!min_p || s.e[size_t(id_of(rank))] >= float(p.min_p)) s.ids.push_back(id_of(rank));
        std::sort(s.ids.begin(), s.ids.end());
        s.survivors.resize(s.ids.size());
        for (size_t i = 0; i < s.ids.size(); ++i) s.survivors[i] = l[size_t(s.ids[i])];
        for (int32_t& id : s.ids) id = id_at(size_t(id));
        return s.ids[k.noisy_argmax(s.survivors.data(), s.ids.data(), s.ids.size(), key)];
    };
    *token = drawn();
    *logprob = raw.of(size_t(*token));
}

void top_ranks(const float* logits, size_t n, size_t count, int32_t* ids) {
    Keys keys;
    keys_of(logits, n, keys);
    std::partial_sort(keys.begin(), keys.begin() + ptrdiff_t(count), keys.end(), std::greater<uint64_t>());
    for (size_t i = 0; i < count; ++i) ids[i] = id_of(keys[i]);
}

}  // namespace iso
