// The vector parts of sampling (NUMERICS.md, section 9): maxima, integer masses, Philox noise and its argmax.
#include "elementwise.hpp"
#include "kernels.hpp"
#include "reduce.hpp"

namespace iso::ISO_NS {

namespace {

float maximum_of(const float* x, size_t n) { return maximum(x, n); }

size_t argmax(const float* x, size_t n) {
    const float m = maximum(x, n);
    for (size_t i = 0; i < n; ++i)
        if (x[i] == m) return i;
    return 0;  // only where x holds a NaN, which callers refuse
}

void divide(float* x, float divisor, size_t n) {
    for (size_t i = 0; i < n; ++i) x[i] = x[i] / divisor;
}

// exp(l - m) * 2^32 is exact in binary64; adding 2^52 rounds it to an integer that stands in the low bits.
uint64_t masses(const float* x, float m, float* e, size_t n) {
    constexpr size_t CHUNK = 512;
    float buffer[CHUNK];
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i += CHUNK) {
        const size_t count = least(CHUNK, n - i);
        float* out = e ? e + i : buffer;
        exp_of_difference(x + i, m, out, count);
        for (size_t j = 0; j < count; ++j)
            sum += bits_of(double(out[j]) * 0x1p32 + 0x1p52) - 0x4330000000000000u;
    }
    return sum;
}

float log_one(float x) { return cr_log(x); }

inline void philox_rounds(uint64_t key, uint32_t c[4]) {
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
        const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
        for (int i = 0; i < 4; ++i) c[i] = next[i];
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

void philox(uint64_t key, const uint32_t counter[4], uint32_t out[4]) {
    for (int i = 0; i < 4; ++i) out[i] = counter[i];
    philox_rounds(key, out);
}

// Words of CHUNK / 4 neighbouring counters: words[w][i] belongs to id 4 (group + i) + w.
enum : size_t { CHUNK = 256 };

void philox_chunk(const NoiseKey& key, uint32_t group, uint32_t words[4][CHUNK / 4]) {
    uint32_t* const c0 = words[0];
    uint32_t* const c1 = words[1];
    uint32_t* const c2 = words[2];
    uint32_t* const c3 = words[3];
    for (uint32_t i = 0; i < CHUNK / 4; ++i) c0[i] = group + i, c1[i] = key.position, c2[i] = key.candidate, c3[i] = 0;
    uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
        for (size_t i = 0; i < CHUNK / 4; ++i) {
            const uint64_t a = uint64_t(0xD2511F53u) * c0[i], b = uint64_t(0xCD9E8D57u) * c2[i];
            const uint32_t next0 = uint32_t(b >> 32) ^ c1[i] ^ k0, next2 = uint32_t(a >> 32) ^ c3[i] ^ k1;
            c0[i] = next0, c1[i] = uint32_t(b), c2[i] = next2, c3[i] = uint32_t(a);
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

constexpr uint32_t STEPS = 1u << 23;  // values of w >> 9

float uniform_of(uint32_t step) { return (float(step) + 0.5f) * 0x1p-23f; }
float noise_of(uint32_t step) { return -cr_log(-cr_log(uniform_of(step))); }

// Correctly rounded functions and sums are monotonic: where x <= top and step <= limit, x + noise <= top + noise_of(limit).
// The greatest limit for which that is less than `best`, or nearly; STEPS where no step reaches it, or -1 where any may.
int64_t harmless(float top, float best) {
    if (top + noise_of(STEPS - 1) < best) return STEPS;
    const float chance = cr_exp(-cr_exp(top - best)) * (1.0f - 0x1p-20f);  // of less noise than best - top
    const float scaled = chance * float(STEPS) - 1.0f;
    if (!(scaled > 0.0f)) return -1;
    const uint32_t limit = scaled < float(STEPS - 1) ? uint32_t(scaled) : STEPS - 1;
    return top + noise_of(limit) < best ? int64_t(limit) : -1;
}

struct Best {
    float value;
    size_t index;
    void offer(float v, size_t i) {
        if (v > value || (v == value && i < index)) value = v, index = i;
    }
};

// The step of one id; neighbours share a counter.
struct Steps {
    const NoiseKey& key;
    uint32_t group = 0, words[4] = {0, 0, 0, 0};
    bool any = false;
    uint32_t of(uint32_t id) {
        if (!any || group != id >> 2) {
            any = true;
            group = id >> 2;
            words[0] = group, words[1] = key.position, words[2] = key.candidate, words[3] = 0;
            philox_rounds(key.seed, words);
        }
        return words[id & 3] >> 9;
    }
};

// ids ascend (null: 0, 1, 2 ...). A high value first, so that most others are seen to be harmless.
size_t noisy_argmax(const float* x, const int32_t* ids, size_t count, const NoiseKey& key) {
    Steps steps{key};
    const size_t start = argmax(x, count);
    Best best{x[start] + noise_of(steps.of(ids ? uint32_t(ids[start]) : uint32_t(start))), start};
    for (size_t i = 0; i < count; i += CHUNK) {
        const size_t n = least(CHUNK, count - i);
        const int64_t limit = harmless(maximum(x + i, n), best.value);
        if (limit >= int64_t(STEPS)) continue;
        if (ids) {
            for (size_t j = i; j < i + n; ++j) {
                const uint32_t step = steps.of(uint32_t(ids[j]));
                if (int64_t(step) > limit) best.offer(x[j] + noise_of(step), j);
            }
            continue;
        }
        alignas(64) uint32_t words[4][CHUNK / 4];
        philox_chunk(key, uint32_t(i / 4), words);
        for (size_t w = 0; w < 4; ++w)
            for (size_t g = 0; g < CHUNK / 4; ++g) {
                const size_t j = 4 * g + w;
                if (int64_t(words[w][g] >> 9) > limit && j < n) best.offer(x[i + j] + noise_of(words[w][g] >> 9), i + j);
            }
    }
    return best.index;
}

}  // namespace

void fill_noise(Kernels& table) {
    table.maximum = maximum_of;
    table.argmax = argmax;
    table.divide = divide;
    table.masses = masses;
    table.log_one = log_one;
    table.philox = philox;
    table.noisy_argmax = noisy_argmax;
}

}  // namespace iso::ISO_NS
