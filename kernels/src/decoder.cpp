// See decoder.hpp.
#include "decoder.hpp"

#include <string.h>

#include "failure.hpp"
#include "pass.hpp"
#include "pool.hpp"

namespace iso {

namespace {

enum Scope { MODEL, LAYER, EXPERT };

// What a configuration says of a tensor. Vectors have one column.
struct Slot {
    const char* name;
    Scope scope;
    size_t rows, columns;
    bool wanted;
};

Slot slot_of(const iso_decoder_config& c, int tensor, bool sparse) {
    const size_t hidden = size_t(c.hidden), vocab = size_t(c.vocab), dim = size_t(c.head_dim);
    const size_t q = size_t(c.heads) * dim, kv = size_t(c.kv_heads) * dim;
    const size_t inner = size_t(c.intermediate), expert = size_t(c.expert_intermediate);
    const bool qk = c.qk_norm != ISO_QK_PLAIN, whole = c.qk_norm == ISO_QK_PROJECTION, dense = !sparse;
    switch (tensor) {
        case ISO_EMBED: return {"embed_tokens", MODEL, vocab, hidden, true};
        case ISO_POSITIONS: return {"embed_positions", MODEL, size_t(c.max_positions), hidden, c.learned_positions != 0};
        case ISO_FINAL_NORM: return {"norm", MODEL, hidden, 1, true};
        case ISO_FINAL_NORM_BIAS: return {"norm.bias", MODEL, hidden, 1, c.layer_norm != 0};
        case ISO_OUTPUT: return {"lm_head", MODEL, vocab, hidden, !c.tied};
        case ISO_OUTPUT_BIAS: return {"lm_head.bias", MODEL, vocab, 1, c.output_bias != 0};
        case ISO_INPUT_NORM: return {"input_layernorm", LAYER, hidden, 1, c.pre_norm != 0};
        case ISO_INPUT_NORM_BIAS: return {"input_layernorm.bias", LAYER, hidden, 1, c.pre_norm && c.layer_norm};
        case ISO_POST_NORM: return {"post_attention_layernorm", LAYER, hidden, 1, c.pre_norm != 0};
        case ISO_POST_NORM_BIAS: return {"post_attention_layernorm.bias", LAYER, hidden, 1, c.pre_norm && c.layer_norm};
        case ISO_ATTENTION_OUTPUT_NORM: return {"attention_output_norm", LAYER, hidden, 1, c.post_norm != 0};
        case ISO_MLP_OUTPUT_NORM: return {"mlp_output_norm", LAYER, hidden, 1, c.post_norm != 0};
        case ISO_Q: return {"q_proj", LAYER, q, hidden, true};
        case ISO_K: return {"k_proj", LAYER, kv, hidden, true};
        case ISO_V: return {"v_proj", LAYER, kv, hidden, true};
        case ISO_O: return {"o_proj", LAYER, hidden, q, true};
        case ISO_Q_BIAS: return {"q_proj.bias", LAYER, q, 1, c.qkv_bias != 0};
        case ISO_K_BIAS: return {"k_proj.bias", LAYER, kv, 1, c.qkv_bias != 0};
        case ISO_V_BIAS: return {"v_proj.bias", LAYER, kv, 1, c.qkv_bias != 0};
        case ISO_O_BIAS: return {"o_proj.bias", LAYER, hidden, 1, c.o_bias != 0};
        case ISO_Q_NORM: return {"q_norm", LAYER, whole ? q : dim, 1, qk};
        case ISO_K_NORM: return {"k_norm", LAYER, whole ? kv : dim, 1, qk};
        case ISO_GATE: return {"gate_proj", LAYER, inner, hidden, dense && c.gated};
        case ISO_UP: return {"up_proj", LAYER, inner, hidden, dense};
        case ISO_DOWN: return {"down_proj", LAYER, hidden, inner, dense};
        case ISO_GATE_BIAS: return {"gate_proj.bias", LAYER, inner, 1, dense && c.gated && c.mlp_bias};
        case ISO_UP_BIAS: return {"up_proj.bias", LAYER, inner, 1, dense && c.mlp_bias};
        case ISO_DOWN_BIAS: return {"down_proj.bias", LAYER, hidden, 1, dense && c.mlp_bias};
        case ISO_ROUTER: return {"router", LAYER, size_t(c.experts), hidden, sparse};
        case ISO_EXPERT_GATE: return {"gate_proj", EXPERT, expert, hidden, sparse && c.gated};
        case ISO_EXPERT_UP: return {"up_proj", EXPERT, expert, hidden, sparse};
        case ISO_EXPERT_DOWN: return {"down_proj", EXPERT, hidden, expert, sparse};
        default: bad_argument("unknown tensor");
    }
}

std::string name_of(const Slot& slot, const TensorId& id) {
    std::string name = slot.name;
    if (slot.scope == EXPERT) name = "expert " + std::to_string(id.expert) + " " + name;
    if (slot.scope != MODEL) name = "layer " + std::to_string(id.layer) + " " + name;
    return name;
}

Buffer<float> vector_of(const void* data, int storage, size_t n, const std::string& name) {
    require_finite(data, n, storage, name);
    Buffer<float> y(n);
    if (storage == ISO_F32)
        memcpy(y.data(), data, n * sizeof(float));
    else
        kernels().widen(static_cast<const uint16_t*>(data), y.data(), n);
    return y;
}

}  // namespace

void Table::load(const void* data, int storage, size_t rows, size_t columns, const std::string& name) {
    require_finite(data, rows * columns, storage, name);
    columns_ = columns;
    if (storage == ISO_F32) {
        f32_ = Buffer<float>(rows * columns);
        memcpy(f32_.data(), data, rows * columns * sizeof(float));
    } else {
        bf16_ = Buffer<uint16_t>(rows * columns);
        memcpy(bf16_.data(), data, rows * columns * sizeof(uint16_t));
    }
}

void Table::row(size_t i, float* y) const {
    if (f32_)
        memcpy(y, &f32_[i * columns_], columns_ * sizeof(float));
    else
        kernels().widen(&bf16_[i * columns_], y, columns_);
}

void Decoder::check(const iso_decoder_config& c) const {
    constexpr int32_t MOST = 1 << 24;
    constexpr double LARGEST = 3.0e38;
    const auto in_range = [](int32_t x) { return x > 0 && x <= MOST; };
    const auto positive = [](double x) { return x <= LARGEST && float(x) > 0; };
    require(in_range(c.vocab) && in_range(c.hidden) && in_range(c.layers) && in_range(c.heads) && in_range(c.kv_heads) &&
                in_range(c.head_dim) && in_range(c.intermediate) && c.max_positions > 0,
            "every size of a decoder configuration must be positive (and at most 2^24)");
    require(c.heads % c.kv_heads == 0, "heads must be a multiple of kv_heads");
    require(c.activation >= ISO_SILU && c.activation <= ISO_GELU_TANH, "unknown activation");
    require(c.qk_norm >= ISO_QK_PLAIN && c.qk_norm <= ISO_QK_PROJECTION, "unknown kind of q/k norms");
    require(c.pre_norm || c.post_norm, "a block needs a norm before it or after it");
    require(!c.layer_norm || (!c.norm_offset && !c.post_norm), "layer norms have no offset and stand before blocks only");
    require(c.eps >= 0 && c.eps < 1, "rms_eps must be in [0, 1)");
    require(positive(c.scale), "scale must be positive");
    require(positive(c.embedding_multiplier) && positive(c.residual_multiplier) && positive(c.logit_divisor),
            "multipliers and the logits' divisor must be positive (1: none)");
    require((c.attention_softcap == 0 || positive(c.attention_softcap)) && (c.logit_softcap == 0 || positive(c.logit_softcap)),
            "a soft cap must not be negative (0: none)");
    require(c.int8 || !c.checksums, "checksums are for int8 weights only: float sums are not exact");
    require(c.windows && c.rope_of && c.sparse && c.rope_kinds >= 0 && (c.ropes || !c.rope_kinds),
            "windows, ropes or the layers' kinds are missing");
    for (int32_t i = 0; i < c.rope_kinds; ++i) {
        const iso_rope_kind& rope = c.ropes[i];
        require(rope.count > 0 && 2 * int64_t(rope.count) <= c.head_dim && rope.frequencies,
                "a rope's dimensions must be even and between 2 and head_dim");
        require(positive(rope.attention_factor), "attention_factor must be positive");
        for (int32_t j = 0; j < rope.count; ++j)
            require(rope.frequencies[j] >= 0 && rope.frequencies[j] <= 1e298, "frequencies must be between 0 and 1e298");
    }
    for (int32_t i = 0; i < c.layers; ++i) {
        require(c.windows[i] >= 0, "a window must not be negative (0: none)");
        require(c.rope_of[i] >= -1 && c.rope_of[i] < c.rope_kinds, "a layer's rope is none of those given");
        require(!c.learned_positions || c.rope_of[i] == -1, "learned positions and rope exclude each other");
        require(!c.sparse[i] || (in_range(c.experts) && in_range(c.expert_intermediate) && c.experts_per_token > 0 &&
                                 c.experts_per_token <= c.experts),
                "experts_per_token must be between 1 and experts, and expert_intermediate positive");
    }
}

Decoder::Decoder(const iso_decoder_config& c) : config_(c) {
    check(c);
    for (int32_t i = 0; i < c.rope_kinds; ++i) {
        const iso_rope_kind& rope = c.ropes[i];
        ropes_.push_back({{rope.frequencies, rope.frequencies + rope.count}, float(rope.attention_factor), {}});
    }
    layers_.resize(size_t(c.layers));
    for (size_t i = 0; i < layers_.size(); ++i) {
        layers_[i].window = c.windows[i];
        layers_[i].rope = c.rope_of[i];
        if (c.sparse[i]) layers_[i].experts.resize(size_t(c.experts));
    }
    config_.ropes = nullptr;
    config_.windows = config_.rope_of = config_.sparse = nullptr;
    idle_.reserve(1);
}

Decoder::~Decoder() = default;

void Decoder::load(const TensorId& given, const Stored& tensor, size_t rows, size_t columns) {
    require(given.tensor >= 0 && given.tensor < ISO_TENSORS, "unknown tensor");
    const Scope scope = slot_of(config_, given.tensor, false).scope;
    require(scope == MODEL || (given.layer >= 0 && given.layer < config_.layers), "layer out of range");
    const bool experts = scope != MODEL && sparse(given.layer);
    const Slot slot = slot_of(config_, given.tensor, experts);
    const TensorId id{given.tensor, scope == MODEL ? -1 : given.layer, scope == EXPERT ? given.expert : -1};
    const std::string name = name_of(slot, given);
    if (!slot.wanted) bad_argument(name + " does not belong to this configuration");
    require(scope != EXPERT || (id.expert >= 0 && id.expert < config_.experts), "expert out of range");
    require(tensor.storage >= ISO_F32 && tensor.storage <= ISO_INT8, "weights must be float32, bfloat16 or int8");
    const bool int8 = config_.int8 && quantised(id.tensor);
    if (tensor.storage == ISO_INT8 && !int8) bad_argument(name + " must not be int8 here: only linears may be, where weights are 'int8'");
    require(tensor.data, "tensor without data");
    if (rows != slot.rows || columns != slot.columns)
        bad_argument(name + " must be " + std::to_string(slot.rows) + " x " + std::to_string(slot.columns) + ", not " +
                     std::to_string(rows) + " x " + std::to_string(columns));
    const std::array<int, 3> key{id.tensor, id.layer, id.expert};
    if (seen_.count(key)) bad_argument(name + " was loaded before");

    const size_t q = size_t(config_.heads) * size_t(config_.head_dim), kv = size_t(config_.kv_heads) * size_t(config_.head_dim);
    const size_t hidden = size_t(config_.hidden), stride = config_.gated ? 2 : 1;
    Layer* const layer = scope == MODEL ? nullptr : &layers_[size_t(id.layer)];
    Mlp* const mlp = scope == EXPERT ? &layer->experts[size_t(id.expert)] : layer ? &layer->mlp : nullptr;
    const auto matrix = [&](Packed& packed, size_t outputs, size_t first, size_t step) {
        if (!packed) packed = Packed(outputs, columns, int8 ? ISO_INT8 : tensor.storage, int8 && config_.checksums);
        if (!int8 && packed.storage() != tensor.storage)
            bad_argument(name + ": q, k and v, or gate and up, must have one dtype; convert them to float32");
        packed.put(tensor, rows, first, step, name);
    };
    const auto bias = [&](Packed& packed, size_t first, size_t step) {
        if (!packed) bad_argument(name + " must be loaded after its weight");
        packed.put_bias(vector_of(tensor.data, tensor.storage, rows, name).data(), rows, first, step, name);
    };
    const auto vector = [&](Buffer<float>& target) { target = vector_of(tensor.data, tensor.storage, rows, name); };
    const auto inner = [&] { return stride * panels_of(rows) * PANEL; };
    switch (id.tensor) {
        case ISO_EMBED:
            if (config_.tied)
                matrix(output_, rows, 0, 1);
            else
                embed_.load(tensor.data, tensor.storage, rows, columns, name);
            break;
        case ISO_POSITIONS: positions_.load(tensor.data, tensor.storage, rows, columns, name); break;
        case ISO_OUTPUT: matrix(output_, rows, 0, 1); break;
        case ISO_OUTPUT_BIAS: bias(output_, 0, 1); break;
        case ISO_FINAL_NORM: vector(final_norm_.weight); break;
        case ISO_FINAL_NORM_BIAS: vector(final_norm_.bias); break;
        case ISO_INPUT_NORM: vector(layer->input_norm.weight); break;
        case ISO_INPUT_NORM_BIAS: vector(layer->input_norm.bias); break;
        case ISO_POST_NORM: vector(layer->post_norm.weight); break;
        case ISO_POST_NORM_BIAS: vector(layer->post_norm.bias); break;
        case ISO_ATTENTION_OUTPUT_NORM: vector(layer->attention_output_norm.weight); break;
        case ISO_MLP_OUTPUT_NORM: vector(layer->mlp_output_norm.weight); break;
        case ISO_Q_NORM: vector(layer->q_norm.weight); break;
        case ISO_K_NORM: vector(layer->k_norm.weight); break;
        case ISO_Q: matrix(layer->qkv, q + 2 * kv, 0, 1); break;
        case ISO_K: matrix(layer->qkv, q + 2 * kv, q, 1); break;
        case ISO_V: matrix(layer->qkv, q + 2 * kv, q + kv, 1); break;
        case ISO_O: matrix(layer->o, hidden, 0, 1); break;
        case ISO_Q_BIAS: bias(layer->qkv, 0, 1); break;
        case ISO_K_BIAS: bias(layer->qkv, q, 1); break;
        case ISO_V_BIAS: bias(layer->qkv, q + kv, 1); break;
        case ISO_O_BIAS: bias(layer->o, 0, 1); break;
        case ISO_GATE: case ISO_EXPERT_GATE: matrix(mlp->gate_up, inner(), 0, stride); break;
        case ISO_UP: case ISO_EXPERT_UP: matrix(mlp->gate_up, inner(), config_.gated ? PANEL : 0, stride); break;
        case ISO_DOWN: case ISO_EXPERT_DOWN: matrix(mlp->down, hidden, 0, 1); break;
        case ISO_GATE_BIAS: bias(mlp->gate_up, 0, stride); break;
        case ISO_UP_BIAS: bias(mlp->gate_up, config_.gated ? PANEL : 0, stride); break;
        case ISO_DOWN_BIAS: bias(mlp->down, 0, 1); break;
        case ISO_ROUTER: matrix(layer->router, rows, 0, 1); break;
    }
    seen_.insert(key);
}

// Every linear but the routers of experts; a table that is looked up only where it is the output layer, too.
bool Decoder::quantised(int tensor) const {
    switch (tensor) {
        case ISO_EMBED: return config_.tied;
        case ISO_OUTPUT: case ISO_Q: case ISO_K: case ISO_V: case ISO_O: case ISO_GATE: case ISO_UP: case ISO_DOWN:
        case ISO_EXPERT_GATE: case ISO_EXPERT_UP: case ISO_EXPERT_DOWN: return true;
        default: return false;
    }
}

void Decoder::ready() {
    const auto needs = [&](int tensor, int layer, int expert) {
        const Slot slot = slot_of(config_, tensor, layer >= 0 && sparse(layer));
        if (slot.wanted && !seen_.count({tensor, layer, expert}))
            bad_argument(name_of(slot, {tensor, layer, expert}) + " is missing");
    };
    for (int tensor = 0; tensor < ISO_TENSORS; ++tensor) {
        const Scope scope = slot_of(config_, tensor, false).scope;
        if (scope == MODEL) {
            needs(tensor, -1, -1);
            continue;
        }
        for (int layer = 0; layer < config_.layers; ++layer) {
            const int experts = scope == EXPERT && sparse(layer) ? config_.experts : 0;
            if (scope == LAYER) needs(tensor, layer, -1);
            for (int expert = 0; expert < experts; ++expert) needs(tensor, layer, expert);
        }
    }
    output_.seal();
    for (Layer& l : layers_) {
        for (Packed* packed : {&l.qkv, &l.o, &l.mlp.gate_up, &l.mlp.down}) packed->seal();
        for (Mlp& expert : l.experts) expert.gate_up.seal(), expert.down.seal();
    }
    ready_ = true;
}

size_t Decoder::bytes() const {
    size_t total = output_.bytes() + embed_.bytes() + positions_.bytes();
    for (const Layer& l : layers_) {
        total += l.qkv.bytes() + l.o.bytes() + l.router.bytes() + l.mlp.gate_up.bytes() + l.mlp.down.bytes();
        for (const Mlp& expert : l.experts) total += expert.gate_up.bytes() + expert.down.bytes();
    }
    return total;
}

void Decoder::embed(int32_t id, size_t position, float* y, float* scratch) const {
    const size_t n = size_t(config_.hidden);
    if (config_.tied)
        output_.row(size_t(id), y);
    else
        embed_.row(size_t(id), y);
    const float multiplier = float(config_.embedding_multiplier);
    if (multiplier != 1.0f)
        for (size_t i = 0; i < n; ++i) y[i] = y[i] * multiplier;
    if (!config_.learned_positions) return;
    positions_.row(position, scratch);
    kernels().add(y, scratch, y, n);
}

void Decoder::rope_pages(size_t index, size_t positions, std::vector<const float*>& pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Rope& rope = ropes_[index];
    const size_t wanted = (positions + PAGE_POSITIONS - 1) / PAGE_POSITIONS, half = rope.frequencies.size();
    const Kernels& k = kernels();
    while (rope.pages.size() < wanted) {
        Buffer<float> page(PAGE_POSITIONS * 2 * half);
        const size_t first = rope.pages.size() * PAGE_POSITIONS;
        parallel(PAGE_POSITIONS, grain_of(PAGE_POSITIONS), MAX_THREADS, [&](size_t i, int) {
            float* row = page.data() + i * 2 * half;
            k.rope_table(rope.frequencies.data(), half, int64_t(first + i), rope.attention_factor, row, row + half);
        });
        rope.pages.push_back(std::move(page));
    }
    pages.clear();
    for (size_t i = 0; i < wanted; ++i) pages.push_back(rope.pages[i].data());
}

std::unique_ptr<Workspace> Decoder::borrow_workspace() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!idle_.empty()) {
            auto workspace = std::move(idle_.back());
            idle_.pop_back();
            return workspace;
        }
    }
    return std::make_unique<Workspace>();
}

void Decoder::give_back(std::unique_ptr<Workspace> workspace) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) idle_.push_back(std::move(workspace));  // the others were for a moment's crowd
}

}  // namespace iso
