// The C ABI of the single operations: arguments are checked, work is cut into tasks, leaf kernels of the table do it.
#include <stdio.h>
#include <string.h>

#include <memory>
#include <string>
#include <vector>

#include "attend.hpp"
#include "cache.hpp"
#include "checksum.hpp"
#include "failure.hpp"
#include "isonomy.h"
#include "kernels.hpp"
#include "memory.hpp"
#include "pool.hpp"
#include "weights.hpp"

namespace {

using namespace iso;

// Elementwise work in pieces worth a task each.
constexpr size_t PIECE = 8192;

template <typename Body>
void in_pieces(size_t n, const Body& body) {
    parallel((n + PIECE - 1) / PIECE, [&](size_t i) {
        const size_t begin = i * PIECE;
        body(begin, n - begin < PIECE ? n - begin : PIECE);
    });
}

template <typename Body>
void in_rows(size_t rows, const Body& body) {
    parallel(rows, grain_of(rows), MAX_THREADS, [&](size_t m, int) { body(m); });
}

void require_array(const void* p, size_t n) { require(p || !n, "an array is missing"); }

}  // namespace

struct iso_linear {
    iso::Packed packed;
    size_t n;
};

extern "C" {

int iso_abi(void) { return ISO_ABI; }
int iso_numerics_version(void) { return ISO_NUMERICS_VERSION; }
int iso_threads(void) { return pool_threads(); }

const char* iso_compiler(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

int iso_set_threads(int threads) {
    return guarded([&] {
        require(threads >= 1 && threads <= MAX_THREADS, "threads must be between 1 and 1024");
        pool_set_threads(threads);
    });
}

int iso_function(int function, const float* x, float* y, size_t n) {
    return guarded([&] {
        require(function >= ISO_EXP && function <= ISO_FN_GELU_TANH, "unknown function");
        require_array(x, n), require_array(y, n);
        const Kernels& k = kernels();
        in_pieces(n, [&](size_t i, size_t count) { k.function(function, x + i, y + i, count); });
    });
}

int iso_binary(int operation, const float* a, const float* b, float* y, size_t n) {
    return guarded([&] {
        require(operation == ISO_ADD || operation == ISO_MUL, "unknown operation");
        require_array(a, n), require_array(b, n), require_array(y, n);
        const Kernels& k = kernels();
        const auto apply = operation == ISO_ADD ? k.add : k.mul;
        in_pieces(n, [&](size_t i, size_t count) { apply(a + i, b + i, y + i, count); });
    });
}

int iso_softmax(const float* x, float* y, size_t rows, size_t n) {
    return guarded([&] {
        require(n > 0, "softmax needs at least one column");
        const Kernels& k = kernels();
        in_rows(rows, [&](size_t m) { k.softmax(x + m * n, y + m * n, n); });
    });
}

int iso_row_sum(const float* x, float* y, size_t rows, size_t n) {
    return guarded([&] {
        const Kernels& k = kernels();
        in_rows(rows, [&](size_t m) { y[m] = k.row_sum(x + m * n, n); });
    });
}

int iso_rms_norm(const float* x, const float* w, float* y, size_t rows, size_t n, double eps, int unit_offset) {
    return guarded([&] {
        require(n > 0, "a norm needs at least one column");
        const Kernels& k = kernels();
        in_rows(rows, [&](size_t m) { k.rms_norm(x + m * n, w, y + m * n, n, float(eps), unit_offset != 0); });
    });
}

int iso_layer_norm(const float* x, const float* w, const float* b, float* y, size_t rows, size_t n, double eps) {
    return guarded([&] {
        require(n > 0, "a norm needs at least one column");
        const Kernels& k = kernels();
        in_rows(rows, [&](size_t m) { k.layer_norm(x + m * n, w, b, y + m * n, n, float(eps)); });
    });
}

int iso_embedding(const int32_t* ids, size_t rows, const void* table, int storage, size_t vocab, size_t n, float* y) {
    return guarded([&] {
        require(storage == ISO_F32 || storage == ISO_BF16, "weights must be float32 or bfloat16");
        for (size_t m = 0; m < rows; ++m)
            if (ids[m] < 0 || size_t(ids[m]) >= vocab)
                bad_argument("id " + std::to_string(ids[m]) + " is outside the table of " + std::to_string(vocab) + " rows");
        for (size_t m = 0; m < rows; ++m) {
            const size_t start = size_t(ids[m]) * n;
            if (storage == ISO_F32)
                memcpy(y + m * n, static_cast<const float*>(table) + start, n * sizeof(float));
            else
                kernels().widen(static_cast<const uint16_t*>(table) + start, y + m * n, n);
        }
    });
}

int iso_rope_tables(const double* frequencies, size_t half, size_t positions, double attention_factor, float* cosines,
                    float* sines) {
    return guarded([&] {
        for (size_t i = 0; i < half; ++i)
            require(frequencies[i] >= 0 && frequencies[i] <= 1e298, "frequencies must be between 0 and 1e298");
        const Kernels& k = kernels();
        in_rows(positions, [&](size_t p) {
            k.rope_table(frequencies, half, int64_t(p), float(attention_factor), cosines + p * half, sines + p * half);
        });
    });
}

int iso_rope(const float* x, const float* cosines, const float* sines, size_t half, size_t table_positions,
             const int32_t* positions, size_t rows, size_t heads, size_t head_dim, float* y) {
    return guarded([&] {
        require(2 * half <= head_dim, "the tables rotate more dimensions than a head has");
        for (size_t m = 0; m < rows; ++m)
            if (positions[m] < 0 || size_t(positions[m]) >= table_positions)
                bad_argument("position " + std::to_string(positions[m]) + " is outside the tables of " +
                             std::to_string(table_positions) + " positions");
        const Kernels& k = kernels();
        in_rows(rows, [&](size_t m) {
            const size_t at = size_t(positions[m]) * half;
            for (size_t h = 0; h < heads; ++h) {
                const size_t i = (m * heads + h) * head_dim;
                k.rope(x + i, cosines + at, sines + at, half, head_dim, y + i);
            }
        });
    });
}

int iso_attention(const float* q, const float* k, const float* v, const int32_t* positions, size_t rows, size_t keys,
                  size_t heads, size_t kv_heads, size_t head_dim, double scale, int64_t window, double softcap, float* y) {
    return guarded([&] {
        require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "heads must be a positive multiple of kv_heads");
        require(head_dim > 0 && keys > 0, "there must be at least one key, of at least one dimension");
        require(window >= 0, "a window must not be negative (0: none)");
        require(softcap >= 0, "a soft cap must not be negative (0: none)");
        for (size_t m = 0; m < rows; ++m)
            if (positions[m] < 0 || size_t(positions[m]) >= keys)
                bad_argument("position " + std::to_string(positions[m]) + " is outside the " + std::to_string(keys) + " keys");
        if (!rows) return;
        const Kernels& table = kernels();
        // Rows of a tile meet each other's invisible keys as +0 * v (attention.cpp), which needs finite values.
        if (!table.all_finite(v, keys * kv_heads * head_dim))
            throw Failure{ISO_NON_FINITE, "attention: values hold NaN or infinity"};
        Buffer<float> cached(kv_heads * strip_floats(panels_of(keys) * PANEL, head_dim));
        std::vector<CachePage> pages;
        std::vector<float*> strips;
        for (size_t t = 0, at = 0; t < keys; t += PAGE_POSITIONS) {
            const size_t room = page_positions(keys - t);
            strips.push_back(cached.data() + at);
            pages.push_back({cached.data() + at, room});
            at += kv_heads * strip_floats(room, head_dim);
        }
        for (size_t t = 0; t < keys; ++t)
            for (size_t h = 0; h < kv_heads; ++h) {
                const size_t page = t / PAGE_POSITIONS, room = pages[page].positions, from = (t * kv_heads + h) * head_dim;
                float* strip = strips[page] + h * strip_floats(room, head_dim);
                enter(strip, room, t % PAGE_POSITIONS, head_dim, k + from, v + from);
            }
        AttentionCall call{};
        call.q = q, call.pages = pages.data(), call.out = y;
        call.q_stride = call.out_stride = heads * head_dim;
        call.positions = positions;
        call.rows = rows, call.heads = heads, call.kv_heads = kv_heads, call.head_dim = head_dim;
        call.scale = float(scale), call.softcap = float(softcap), call.window = window;
        Buffer<float> scratch;
        run_attention({call}, scratch);
    });
}

int iso_linear_new(const void* w, int storage, const float* scales, size_t n, size_t k, const float* bias, int packed,
                   int checksums, iso_linear** out) {
    return guarded([&] {
        require(storage >= ISO_F32 && storage <= ISO_INT8, "weights must be float32, bfloat16 or int8");
        require(packed == storage || packed == ISO_INT8, "weights are packed as they are, or as int8");
        require(w && n > 0 && k > 0, "weights must have at least one row and one column");
        auto linear = std::make_unique<iso_linear>(iso_linear{Packed(n, k, packed, checksums != 0), n});
        linear->packed.put({w, storage, scales}, n, 0, 1, "the weight matrix");
        if (bias) linear->packed.put_bias(bias, n, 0, 1, "the bias");
        linear->packed.seal();
        *out = linear.release();
    });
}

void iso_linear_free(iso_linear* linear) { delete linear; }

int iso_linear_apply(const iso_linear* linear, const float* x, size_t rows, float* y) {
    return guarded([&] {
        require(linear, "no packed weights");
        if (!rows) return;
        static thread_local Buffer<float> scratch;  // fresh pages would cost a tenth of a product of some hundred rows
        forget_corruption();
        run_linear(linear->packed, x, rows, linear->n, scratch, STORE, 0, y, linear->n);
        if (!corruption().empty()) throw Failure{ISO_CORRUPTION, corruption()};
    });
}

int iso_quantise(const void* x, int storage, size_t rows, size_t k, int8_t* q, float* scales) {
    return guarded([&] {
        require(storage == ISO_F32 || storage == ISO_BF16, "only float32 and bfloat16 can be quantised");
        require(k > 0, "a row must have at least one element");
        const Kernels& table = kernels();
        const int slots = pool_threads();
        Buffer<float> widened(storage == ISO_BF16 ? size_t(slots) * k : 0);
        parallel(rows, grain_of(rows), slots, [&](size_t m, int slot) {
            const float* row = static_cast<const float*>(x) + m * k;
            if (storage == ISO_BF16) {
                float* const wide = widened.data() + size_t(slot) * k;
                table.widen(static_cast<const uint16_t*>(x) + m * k, wide, k);
                row = wide;
            }
            scales[m] = table.quantise(row, k, q + m * k);
        });
    });
}

size_t iso_faults(iso_fault* out, size_t room) {
    const std::vector<Corruption> taken = take_corruptions();
    for (size_t i = 0; i < taken.size() && i < room; ++i) {
        const Corruption& fault = taken[i];
        snprintf(out[i].linear, sizeof out[i].linear, "%s", fault.linear.c_str());
        out[i].row = fault.row, out[i].damaged_panels = fault.damaged_panels, out[i].recomputed = fault.recomputed;
    }
    return taken.size();
}

size_t iso_faults_waiting(void) { return corruptions_waiting(); }

int iso_inject_linear(int kind, const char* linear, size_t row, size_t element, int bit, int times) {
    return guarded([&] { inject_linear({kind, linear, row, element, bit, times}); });
}

int iso_inject_linear_end(void) { return end_linear_injection(); }

int iso_blake3(const void* data, size_t bytes, uint8_t digest[32]) {
    return guarded([&] {
        require_array(data, bytes);
        kernels().blake3(static_cast<const uint8_t*>(data), bytes, digest);
    });
}

int iso_step_digests(const float* logits, size_t rows, size_t n, uint8_t* digests) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "step digests are over little-endian floats: this processor needs a conversion here"
#endif
    return guarded([&] {
        const Kernels& k = kernels();
        parallel(rows, [&](size_t m) {
            k.blake3(reinterpret_cast<const uint8_t*>(logits + m * n), n * sizeof(float), digests + 32 * m);
        });
    });
}

int iso_philox(uint64_t key, const uint32_t counter[4], uint32_t out[4]) {
    return guarded([&] { kernels().philox(key, counter, out); });
}

}  // extern "C"
