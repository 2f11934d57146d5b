// See decoder.hpp.
#include "decoder.hpp"

#include <string.h>

#include "failure.hpp"
#include "pass.hpp"
#include "pool.hpp"

namespace iso {

namespace {

constexpr int TENSORS = ISO_K_NORM + 1;
const char* const TENSOR_NAMES[TENSORS] = {
    "embed_tokens", "norm",      "lm_head",   "input_layernorm", "post_attention_layernorm", "q_proj",    "k_proj",
    "v_proj",       "o_proj",    "gate_proj", "up_proj",         "down_proj",                "q_proj.bias", "k_proj.bias",
    "v_proj.bias",  "o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias",       "q_norm",    "k_norm",
};

bool is_global(int tensor) { return tensor <= ISO_OUTPUT; }

std::string name_of(int tensor, int layer) {
    return is_global(tensor) ? TENSOR_NAMES[tensor] : "layer " + std::to_string(layer) + " " + TENSOR_NAMES[tensor];
}

bool wanted(const iso_decoder_config& c, int tensor) {
    switch (tensor) {
        case ISO_OUTPUT: return !c.tied;
        case ISO_Q_BIAS: case ISO_K_BIAS: case ISO_V_BIAS: return c.qkv_bias;
        case ISO_O_BIAS: return c.o_bias;
        case ISO_GATE_BIAS: case ISO_UP_BIAS: case ISO_DOWN_BIAS: return c.mlp_bias;
        case ISO_Q_NORM: case ISO_K_NORM: return c.qk_norm;
        default: return true;
    }
}

struct Shape {
    size_t rows, columns;  // vectors: columns = 1
};

Shape shape_of(const iso_decoder_config& c, int tensor) {
    const size_t hidden = size_t(c.hidden), inner = size_t(c.intermediate), vocab = size_t(c.vocab);
    const size_t q = size_t(c.heads) * size_t(c.head_dim), kv = size_t(c.kv_heads) * size_t(c.head_dim);
    switch (tensor) {
        case ISO_EMBED: case ISO_OUTPUT: return {vocab, hidden};
        case ISO_Q: return {q, hidden};
        case ISO_K: case ISO_V: return {kv, hidden};
        case ISO_O: return {hidden, q};
        case ISO_GATE: case ISO_UP: return {inner, hidden};
        case ISO_DOWN: return {hidden, inner};
        case ISO_Q_BIAS: return {q, 1};
        case ISO_K_BIAS: case ISO_V_BIAS: return {kv, 1};
        case ISO_GATE_BIAS: case ISO_UP_BIAS: return {inner, 1};
        case ISO_Q_NORM: case ISO_K_NORM: return {size_t(c.head_dim), 1};
        default: return {hidden, 1};  // norms, o_proj.bias, down_proj.bias
    }
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

Decoder::Decoder(const iso_decoder_config& c) : config_(c) {
    constexpr int32_t MOST = 1 << 24;
    const auto in_range = [](int32_t x) { return x > 0 && x <= MOST; };
    require(in_range(c.vocab) && in_range(c.hidden) && in_range(c.layers) && in_range(c.heads) && in_range(c.kv_heads) &&
                in_range(c.head_dim) && in_range(c.intermediate) && c.max_positions > 0,
            "every size of a decoder configuration must be positive (and at most 2^24)");
    require(c.heads % c.kv_heads == 0, "heads must be a multiple of kv_heads");
    require(c.rotary_dim > 0 && c.rotary_dim % 2 == 0 && c.rotary_dim <= c.head_dim,
            "rotary_dim must be even and between 2 and head_dim");
    require(c.activation >= ISO_SILU && c.activation <= ISO_GELU_TANH, "unknown activation");
    require(c.rms_eps >= 0 && c.rms_eps < 1, "rms_eps must be in [0, 1)");
    require(c.scale > 0 && c.attention_factor > 0, "scale and attention_factor must be positive");
    require(c.frequencies && c.windows, "frequencies and windows are missing");
    frequencies_.assign(c.frequencies, c.frequencies + c.rotary_dim / 2);
    for (const double f : frequencies_) require(f >= 0 && f <= 1e298, "frequencies must be between 0 and 1e298");
    windows_.assign(c.windows, c.windows + c.layers);
    for (const int32_t window : windows_) require(window >= 0, "a window must not be negative (0: none)");
    config_.frequencies = nullptr;
    config_.windows = nullptr;
    layers_.resize(size_t(c.layers));
    idle_.reserve(1);
    seen_global_.assign(TENSORS, false);
    seen_.assign(size_t(c.layers), std::vector<bool>(TENSORS, false));
}

Decoder::~Decoder() = default;

void Decoder::put(Packed& packed, size_t outputs, size_t k, const void* data, int storage, size_t n, size_t first,
                  size_t stride, const std::string& name) {
    if (!packed) packed = Packed(outputs, k, storage);
    if (packed.storage() != storage)
        bad_argument(name + ": q, k and v, or gate and up, must have one dtype; convert them to float32");
    packed.put({data, storage}, n, first, stride, name);
}

void Decoder::load(int tensor, int index, const void* data, int storage, size_t rows, size_t columns) {
    require(tensor >= 0 && tensor < TENSORS, "unknown tensor");
    require(is_global(tensor) || (index >= 0 && index < config_.layers), "layer out of range");
    require(storage == ISO_F32 || storage == ISO_BF16, "weights must be float32 or bfloat16");
    require(data, "tensor without data");
    const std::string name = name_of(tensor, index);
    const Shape shape = shape_of(config_, tensor);
    if (!wanted(config_, tensor)) bad_argument(name + " does not belong to this configuration");
    if (rows != shape.rows || columns != shape.columns)
        bad_argument(name + " must be " + std::to_string(shape.rows) + " x " + std::to_string(shape.columns) + ", not " +
                     std::to_string(rows) + " x " + std::to_string(columns));
    std::vector<bool>& seen = is_global(tensor) ? seen_global_ : seen_[size_t(index)];
    if (seen[size_t(tensor)]) bad_argument(name + " was loaded before");

    const size_t q = size_t(config_.heads) * size_t(config_.head_dim), kv = size_t(config_.kv_heads) * size_t(config_.head_dim);
    const size_t hidden = size_t(config_.hidden), gated = 2 * panels_of(size_t(config_.intermediate)) * PANEL;
    Layer* const layer = is_global(tensor) ? nullptr : &layers_[size_t(index)];
    const auto matrix = [&](Packed& packed, size_t outputs, size_t first, size_t stride) {
        put(packed, outputs, columns, data, storage, rows, first, stride, name);
    };
    const auto bias = [&](Packed& packed, size_t first, size_t stride) {
        if (!packed) bad_argument(name + " must be loaded after its weight");
        packed.put_bias(vector_of(data, storage, rows, name).data(), rows, first, stride, name);
    };
    switch (tensor) {
        case ISO_EMBED:
            if (config_.tied) {
                matrix(output_, rows, 0, 1);
                break;
            }
            require_finite(data, rows * columns, storage, name);
            if (storage == ISO_F32) {
                embed_f32_ = Buffer<float>(rows * columns);
                memcpy(embed_f32_.data(), data, rows * columns * sizeof(float));
            } else {
                embed_bf16_ = Buffer<uint16_t>(rows * columns);
                memcpy(embed_bf16_.data(), data, rows * columns * sizeof(uint16_t));
            }
            break;
        case ISO_OUTPUT: matrix(output_, rows, 0, 1); break;
        case ISO_FINAL_NORM: final_norm_ = vector_of(data, storage, rows, name); break;
        case ISO_INPUT_NORM: layer->input_norm = vector_of(data, storage, rows, name); break;
        case ISO_POST_NORM: layer->post_norm = vector_of(data, storage, rows, name); break;
        case ISO_Q_NORM: layer->q_norm = vector_of(data, storage, rows, name); break;
        case ISO_K_NORM: layer->k_norm = vector_of(data, storage, rows, name); break;
        case ISO_Q: matrix(layer->qkv, q + 2 * kv, 0, 1); break;
        case ISO_K: matrix(layer->qkv, q + 2 * kv, q, 1); break;
        case ISO_V: matrix(layer->qkv, q + 2 * kv, q + kv, 1); break;
        case ISO_O: matrix(layer->o, hidden, 0, 1); break;
        case ISO_GATE: matrix(layer->gate_up, gated, 0, 2); break;
        case ISO_UP: matrix(layer->gate_up, gated, PANEL, 2); break;
        case ISO_DOWN: matrix(layer->down, hidden, 0, 1); break;
        case ISO_Q_BIAS: bias(layer->qkv, 0, 1); break;
        case ISO_K_BIAS: bias(layer->qkv, q, 1); break;
        case ISO_V_BIAS: bias(layer->qkv, q + kv, 1); break;
        case ISO_O_BIAS: bias(layer->o, 0, 1); break;
        case ISO_GATE_BIAS: bias(layer->gate_up, 0, 2); break;
        case ISO_UP_BIAS: bias(layer->gate_up, PANEL, 2); break;
        case ISO_DOWN_BIAS: bias(layer->down, 0, 1); break;
    }
    seen[size_t(tensor)] = true;
}

void Decoder::ready() {
    for (int tensor = 0; tensor < TENSORS; ++tensor) {
        if (!wanted(config_, tensor)) continue;
        if (is_global(tensor)) {
            if (!seen_global_[size_t(tensor)]) bad_argument(name_of(tensor, 0) + " is missing");
        } else {
            for (int layer = 0; layer < config_.layers; ++layer)
                if (!seen_[size_t(layer)][size_t(tensor)]) bad_argument(name_of(tensor, layer) + " is missing");
        }
    }
    ready_ = true;
}

size_t Decoder::bytes() const {
    size_t total = output_.bytes() + embed_f32_.bytes() + embed_bf16_.bytes();
    for (const Layer& l : layers_) total += l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes();
    return total;
}

void Decoder::embed(int32_t id, float* y) const {
    const size_t n = size_t(config_.hidden), start = size_t(id) * n;
    if (config_.tied)
        output_.row(size_t(id), y);
    else if (embed_f32_)
        memcpy(y, &embed_f32_[start], n * sizeof(float));
    else
        kernels().widen(&embed_bf16_[start], y, n);
}

void Decoder::rope_pages(size_t positions, std::vector<const float*>& pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t wanted = (positions + PAGE_POSITIONS - 1) / PAGE_POSITIONS, half = frequencies_.size();
    const Kernels& k = kernels();
    while (rope_pages_.size() < wanted) {
        Buffer<float> page(PAGE_POSITIONS * 2 * half);
        const size_t first = rope_pages_.size() * PAGE_POSITIONS;
        parallel(PAGE_POSITIONS, grain_of(PAGE_POSITIONS), MAX_THREADS, [&](size_t i, int) {
            float* row = page.data() + i * 2 * half;
            k.rope_table(frequencies_.data(), half, int64_t(first + i), float(config_.attention_factor), row, row + half);
        });
        rope_pages_.push_back(std::move(page));
    }
    pages.clear();
    for (size_t i = 0; i < wanted; ++i) pages.push_back(rope_pages_[i].data());
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
    if (idle_.empty() && idle_.capacity()) idle_.push_back(std::move(workspace));  // the others were for a moment's crowd
}

}  // namespace iso
