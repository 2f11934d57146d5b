// A decoder's configuration and weights. One graph with switches serves all families (NUMERICS.md, section 7).
//
// Invariant: once it is ready nothing of it changes but what it keeps for its sessions: rope tables, which grow, and
// idle workspaces. Sessions are in session.hpp, the forward pass is in pass.hpp.
#pragma once
#include <array>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cache.hpp"
#include "isonomy.h"
#include "memory.hpp"
#include "weights.hpp"

namespace iso {

struct Norm {
    Buffer<float> weight, bias;  // bias: of layer norms only
};

struct Mlp {
    Packed gate_up, down;  // gate_up: panels alternate gate, up; without a gate it is up alone
};

struct Layer {
    Packed qkv, o, router;
    Mlp mlp;
    std::vector<Mlp> experts;  // in place of mlp
    Norm input_norm, post_norm, attention_output_norm, mlp_output_norm, q_norm, k_norm;
    int64_t window;
    int rope;  // -1: none
};

// Rows of floats as they are stored: embeddings that are not tied, learned positions.
class Table {
   public:
    void load(const void* data, int storage, size_t rows, size_t columns, const std::string& name);
    void row(size_t i, float* y) const;
    size_t bytes() const { return f32_.bytes() + bf16_.bytes(); }

   private:
    size_t columns_ = 0;
    Buffer<float> f32_;
    Buffer<uint16_t> bf16_;
};

// Tables of one rope kind in pages of 256 positions: a page holds, a position, all cosines, then all sines.
struct Rope {
    std::vector<double> frequencies;
    float attention_factor;
    std::vector<Buffer<float>> pages;
};

struct TensorId {
    int tensor, layer, expert;
};

struct Workspace;  // pass.hpp

class Decoder {
   public:
    explicit Decoder(const iso_decoder_config& config);
    ~Decoder();
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;
    void load(const TensorId& id, const Stored& tensor, size_t rows, size_t columns);
    void ready();
    size_t bytes() const;

    const iso_decoder_config& config() const { return config_; }
    const Layer& layer(size_t i) const { return layers_[i]; }
    const Packed& output() const { return output_; }
    const Norm& final_norm() const { return final_norm_; }
    bool is_ready() const { return ready_; }
    // The first hidden state of a token: embedding, its multiplier, learned position. Scratch is another row.
    void embed(int32_t id, size_t position, float* y, float* scratch) const;

    size_t ropes() const { return ropes_.size(); }
    size_t rope_half(int rope) const { return ropes_[size_t(rope)].frequencies.size(); }
    // Addresses of the tables of positions 0 .. positions - 1; pages stay where they are until the decoder ends.
    void rope_pages(size_t rope, size_t positions, std::vector<const float*>& pages);
    std::unique_ptr<Workspace> borrow_workspace();
    void give_back(std::unique_ptr<Workspace> workspace) noexcept;
    const PageCount& page_count() const { return page_count_; }

   private:
    bool quantised(int tensor) const;
    bool sparse(int layer) const { return layers_[size_t(layer)].experts.size() > 0; }
    void check(const iso_decoder_config& config) const;

    iso_decoder_config config_;  // its arrays are not kept
    std::vector<Layer> layers_;
    std::set<std::array<int, 3>> seen_;  // tensor, layer, expert
    Packed output_;
    Norm final_norm_;
    Table embed_, positions_;
    bool ready_ = false;

    std::mutex mutex_;  // of what follows
    std::vector<Rope> ropes_;
    std::vector<std::unique_ptr<Workspace>> idle_;
    PageCount page_count_ = std::make_shared<std::atomic<size_t>>(0);
};

}  // namespace iso
