// The decoder of the Llama, Qwen2, Qwen3, Mistral and SmolLM families, and its sessions (NUMERICS.md, section 7).
//
// Invariants: a token's logits depend on the tokens up to it and on nothing else: not on chunks, threads, capacity or
// path. A session's length changes only when a call succeeds; what a failed call left in the cache lies behind the
// length and is overwritten before it is read.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "isonomy.h"
#include "memory.hpp"
#include "weights.hpp"

namespace iso {

struct Layer {
    Packed qkv, o, gate_up, down;  // gate_up: panels alternate gate, up
    Buffer<float> input_norm, post_norm, q_norm, k_norm;
};

struct RopeTables {
    size_t positions;
    Buffer<float> cosines, sines;  // [positions][rotary_dim / 2]
};

class Decoder {
   public:
    explicit Decoder(const iso_decoder_config& config);
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;
    void load(int tensor, int layer, const void* data, int storage, size_t rows, size_t columns);
    void ready();
    size_t bytes() const;

    const iso_decoder_config& config() const { return config_; }
    const Layer& layer(size_t i) const { return layers_[i]; }
    const Packed& output() const { return output_; }
    const float* final_norm() const { return final_norm_.data(); }
    int64_t window(size_t layer) const { return windows_[layer]; }
    bool is_ready() const { return ready_; }
    void embed(int32_t id, float* y) const;
    std::shared_ptr<const RopeTables> tables(size_t positions);

   private:
    void put(Packed& packed, size_t outputs, size_t k, const void* data, int storage, size_t n, size_t first, size_t stride,
             const std::string& name);

    iso_decoder_config config_;
    std::vector<double> frequencies_;
    std::vector<int32_t> windows_;
    std::vector<Layer> layers_;
    std::vector<bool> seen_global_;
    std::vector<std::vector<bool>> seen_;
    Packed output_;
    Buffer<float> final_norm_, embed_f32_;
    Buffer<uint16_t> embed_bf16_;
    std::mutex tables_mutex_;
    std::shared_ptr<const RopeTables> tables_;
    bool ready_ = false;
};

class Session {
   public:
    Session(Decoder& decoder, size_t capacity);
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    size_t length() const { return length_; }
    void truncate(size_t length);
    // logit_rows: 0, 1 (the last token's) or n.
    void feed(const int32_t* tokens, size_t n, size_t logit_rows, float* logits);
    float* logits_buffer();  // one row

   private:
    void chunk(const int32_t* tokens, size_t rows, size_t first, size_t logit_rows, float* logits);
    void attend(size_t layer, size_t rows, size_t first);
    void enter_cache(const Layer& layer, size_t index, size_t rows, size_t first);
    void norm_rows(const float* x, const float* w, float* y, size_t rows) const;

    Decoder& decoder_;
    size_t capacity_, room_, length_ = 0;  // room_: capacity rounded up to whole cache blocks
    std::shared_ptr<const RopeTables> tables_;
    Buffer<float> keys_, values_;
    Buffer<float> hidden_, normed_, qkv_, attended_, inner_, packed_rows_, scratch_, logits_;
    Buffer<int32_t> positions_;
};

}  // namespace iso
