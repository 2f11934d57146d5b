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

// The greatest noise: u <= 1 - 2^-24, so g <= -log(-log(1 - 2^-24)) < 16.64.
constexpr float GREATEST_NOISE = 16.64f;

// ids ascend (null: 0, 1, 2 ...). Candidates that could not win with the greatest noise are passed over: rounding is monotonic, so
// x + GREATEST_NOISE < best implies x + g < best.
size_t noisy_argmax(const float* x, const int32_t* ids, size_t count, const NoiseKey& key) {
    constexpr size_t CHUNK = 256;
    float u[CHUNK];
    size_t chosen[CHUNK], best = 0;
    bool any = false;
    float best_value = 0.0f;
    uint32_t group = 0, words[4] = {0, 0, 0, 0};
    bool have_group = false;
    size_t next = 0;
    const size_t start = argmax(x, count);  // a high value first makes the pruning effective
    bool started = false;
    while (next < count || !started) {
        size_t n = 0;
        if (!started) {
            chosen[n++] = start;
            started = true;
        } else {
            for (; next < count && n < CHUNK; ++next)
                if (!(x[next] + GREATEST_NOISE < best_value)) chosen[n++] = next;
        }
        for (size_t j = 0; j < n; ++j) {
            const uint32_t id = ids ? uint32_t(ids[chosen[j]]) : uint32_t(chosen[j]);
            if (!have_group || group != id >> 2) {
                group = id >> 2;
                have_group = true;
                words[0] = group, words[1] = key.position, words[2] = key.candidate, words[3] = 0;
                philox_rounds(key.seed, words);
            }
            u[j] = (float(words[id & 3] >> 9) + 0.5f) * 0x1p-23f;
        }
        log_array(u, u, n);
        for (size_t j = 0; j < n; ++j) u[j] = -u[j];
        log_array(u, u, n);
        for (size_t j = 0; j < n; ++j) {
            const float value = x[chosen[j]] + -u[j];
            if (!any || value > best_value || (value == best_value && chosen[j] < best)) {
                any = true;
                best_value = value;
                best = chosen[j];
            }
        }
    }
    return best;
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
