// The decoder of the Llama, Qwen2, Qwen3, Mistral and SmolLM families: configuration and weights (NUMERICS.md, section 7).
//
// Invariant: once it is ready nothing of it changes but what it keeps for its sessions: rope tables, which grow, and
// idle workspaces. Sessions are in session.hpp, the forward pass is in pass.hpp.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cache.hpp"
#include "isonomy.h"
#include "memory.hpp"
#include "weights.hpp"

namespace iso {

struct Layer {
    Packed qkv, o, gate_up, down;  // gate_up: panels alternate gate, up
    Buffer<float> input_norm, post_norm, q_norm, k_norm;
};

struct Workspace;  // pass.hpp

class Decoder {
   public:
    explicit Decoder(const iso_decoder_config& config);
    ~Decoder();
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

    // Tables of positions 0 .. positions - 1 in pages of 256: a page holds, a position, rotary_dim / 2 cosines, then as
    // many sines. Pages stay where they are until the decoder ends.
    void rope_pages(size_t positions, std::vector<const float*>& pages);
    std::unique_ptr<Workspace> borrow_workspace();
    void give_back(std::unique_ptr<Workspace> workspace) noexcept;
    const PageCount& page_count() const { return page_count_; }

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
    std::mutex mutex_;  // of what follows
    std::vector<Buffer<float>> rope_pages_;
    std::vector<std::unique_ptr<Workspace>> idle_;
    PageCount page_count_ = std::make_shared<std::atomic<size_t>>(0);
    bool ready_ = false;
};

}  // namespace iso
