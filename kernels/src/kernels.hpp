// The table of leaf kernels that every instruction-set path fills, and the argument records they take.
//
// Contract: leaf kernels run on one thread, allocate nothing, never fail, and give the same bits on every path. Memory
// layouts named here (panels, cache blocks) are shared by all paths, so that weights packed once serve each of them.
// This header declares only; it holds no code that two paths could share.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace iso {

enum Epilogue {
    STORE,  // y = value
    ADD,    // y = y + value: the residual, one rounding
    GATED,  // panels alternate gate, up: y = act(gate) * up
};

// Packed weights: panel p holds outputs 32 p .. 32 p + 31 as [k][32], absent outputs as +0; f32 or bf16.
struct LinearCall {
    const float* x;       // packed by pack_rows; a single row is its own packing
    size_t rows, k, n;    // n: outputs written (for GATED: pairs)
    const void* w;
    int storage;          // ISO_F32, ISO_BF16
    const float* bias;    // in the order of the packed outputs, padded like them; or null
    float* y;
    size_t y_stride;
    Epilogue epilogue;
    int activation;
};

// int8: panel p holds outputs 32 p .. 32 p + 31 as [k / 4][32][4]; what is absent, along k too, is 0. The sums are exact.
struct Int8Call {
    const uint8_t* x;         // packed by pack_int8_rows
    const float* row_scales;  // sx of each row
    size_t rows, groups, n;   // groups of four along k; n: outputs written (for GATED: pairs)
    const int8_t* w;
    const float* scales;      // sw, in the order of the packed outputs, like the next two
    const int32_t* offsets;   // -128 times the sum of the output's weights
    const float* bias;        // or null
    float* y;
    size_t y_stride;
    Epilogue epilogue;
    int activation;
};

// A page of the cache: page b holds positions 256 b .. 256 b + positions - 1, in strips, one a key-value head of a layer:
// keys [position / 32][head_dim][32], then values [panel of 32 dims][position][32].
struct CachePage {
    const float* data;
    size_t positions;  // at most 256, a multiple of 32
};

struct AttentionCall {
    const float* q;
    const CachePage* pages;
    float* out;
    size_t q_stride, out_stride;  // floats between positions; heads are neighbours
    const int32_t* positions;     // absolute, one a row
    size_t rows, heads, kv_heads, head_dim;
    size_t first_strip;           // of this layer's key-value heads within a page
    float scale, softcap;         // softcap 0: none
    int64_t window;               // 0: none
};

struct NoiseKey {
    uint64_t seed;
    uint32_t position, candidate;
};

struct Kernels {
    const char* name;
    size_t tile_rows;

    // linear: rows of x are interleaved by tiles of tile_rows; then one call a panel (a pair of panels for GATED).
    void (*pack_rows)(const float* x, size_t stride, size_t rows, size_t k, float* packed);  // rows <= tile_rows
    void (*linear_panel)(const LinearCall& call, size_t panel);

    // linear, int8: rows are quantised and interleaved by tiles of int8_rows. With c,
    // expected[m] is the checksum of the row's quantised elements. Panels in one go, or in two: the sums [rows][32] of a
    // packed panel, then what follows them (GATED: of panels 2 p and 2 p + 1).
    size_t int8_rows;
    float (*quantise)(const float* x, size_t k, int8_t* q);  // returns the scale; NaN where x is not finite, and q is 0
    void (*pack_int8_rows)(const float* x, size_t stride, size_t rows, size_t k, uint8_t* packed, float* scales,
                           const int64_t* c, uint64_t* expected);  // rows <= int8_rows
    void (*linear_int8_panel)(const Int8Call& call, size_t panel);
    void (*linear_int8_sums)(const Int8Call& call, size_t packed_panel, int32_t* sums);
    void (*linear_int8_finish)(const Int8Call& call, size_t panel, const int32_t* gate, const int32_t* sums);
    void (*weigh_sums)(const int32_t* sums, size_t rows, const uint32_t* r, uint64_t* weighed);

    // attention: one task is (kv_head, tile) with tile < attention_tiles; state: floats as attention_scratch says, for the
    // positions up to the last one seen. attention_tile does the whole of it; long contexts of few rows are cut further:
    // begin, then scores of all blocks first .. past - 1 (any order, any thread), then values of all, then finish.
    size_t (*attention_tiles)(size_t rows, size_t group);
    size_t (*attention_scratch)(size_t capacity, size_t head_dim);  // floats
    void (*attention_tile)(const AttentionCall& call, size_t kv_head, size_t tile, float* state);
    void (*attention_blocks)(const AttentionCall& call, size_t tile, size_t* first, size_t* past);
    void (*attention_begin)(const AttentionCall& call, size_t kv_head, size_t tile, float* state);
    void (*attention_scores)(const AttentionCall& call, size_t kv_head, size_t tile, size_t block, float* state);
    void (*attention_values)(const AttentionCall& call, size_t kv_head, size_t tile, size_t block, float* state);
    void (*attention_finish)(const AttentionCall& call, size_t kv_head, size_t tile, float* state);

    // one row
    float (*row_sum)(const float* x, size_t n);
    void (*rms_norm)(const float* x, const float* w, float* y, size_t n, float eps, bool unit_offset);
    void (*layer_norm)(const float* x, const float* w, const float* b, float* y, size_t n, float eps);
    void (*softmax)(const float* x, float* y, size_t n);
    void (*rope)(const float* x, const float* cosines, const float* sines, size_t half, size_t head_dim, float* y);

    // arrays; y may be x
    void (*function)(int which, const float* x, float* y, size_t n);
    void (*add)(const float* a, const float* b, float* y, size_t n);
    void (*mul)(const float* a, const float* b, float* y, size_t n);
    void (*widen)(const uint16_t* x, float* y, size_t n);  // bf16 to f32
    bool (*all_finite)(const float* x, size_t n);
    bool (*all_finite_bf16)(const uint16_t* x, size_t n);

    // angle = fl64(position * frequency); one row of the tables
    void (*rope_table)(const double* frequencies, size_t half, int64_t position, float factor, float* cosines, float* sines);

    // sampling
    float (*maximum)(const float* x, size_t n);
    size_t (*argmax)(const float* x, size_t n);  // lowest index among equals
    void (*divide)(float* x, float divisor, size_t n);
    uint64_t (*masses)(const float* x, float maximum, float* e, size_t n);  // e = exp(x - maximum), or null; sum of masses
    float (*log_one)(float x);
    void (*philox)(uint64_t key, const uint32_t counter[4], uint32_t out[4]);
    size_t (*noisy_argmax)(const float* x, const int32_t* ids, size_t count, const NoiseKey& key);  // an index; ids may be null
    void (*blake3)(const uint8_t* data, size_t bytes, uint8_t digest[32]);
};

const Kernels& kernels();  // the table in use

}  // namespace iso
