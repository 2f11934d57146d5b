// The forward pass over a key-value cache; see decoder.hpp.
#include <string.h>

#include <string>

#include "decoder.hpp"
#include "failure.hpp"
#include "pool.hpp"

namespace iso {

namespace {

// Rows that pass through the layers together: bounds the scratch memory, and is a multiple of every path's tile.
constexpr size_t CHUNK_ROWS = 240;

size_t count(int32_t x) { return size_t(x); }

[[noreturn]] void non_finite(int layer, size_t position) {
    const std::string where = layer == ISO_LAYER_OUTPUT ? "the logits" : "the hidden state after layer " + std::to_string(layer);
    throw Failure{ISO_NON_FINITE,
                  where + " at position " + std::to_string(position) +
                      " hold NaN or infinity: the weights do not fit these numerics, or memory is damaged",
                  layer};
}

void check_rows(const float* x, size_t rows, size_t n, size_t first, int layer) {
    for (size_t m = 0; m < rows; ++m)
        if (!kernels().all_finite(x + m * n, n)) non_finite(layer, first + m);
}

}  // namespace

Session::Session(Decoder& decoder, size_t capacity) : decoder_(decoder), capacity_(capacity) {
    const iso_decoder_config& c = decoder.config();
    require(decoder.is_ready(), "the decoder is not ready: its tensors are not all loaded");
    require(capacity > 0 && capacity <= count(c.max_positions),
            "a session's capacity must be between 1 and the model's maximal number of positions");
    room_ = panels_of(capacity) * PANEL;
    const size_t heads = count(c.layers) * count(c.kv_heads);
    keys_ = Buffer<float>(heads * room_ * count(c.head_dim));
    values_ = Buffer<float>(heads * room_ * panels_of(count(c.head_dim)) * PANEL);
    tables_ = decoder.tables(capacity);
}

void Session::truncate(size_t length) {
    require(length <= length_, "truncate can only shorten a session");
    length_ = length;
}

float* Session::logits_buffer() {
    at_least(logits_, count(decoder_.config().vocab));
    return logits_.data();
}

void Session::feed(const int32_t* tokens, size_t n, size_t logit_rows, float* logits) {
    const size_t vocab = count(decoder_.config().vocab);
    require(n > 0 && tokens, "there must be at least one token");
    require(logit_rows == 0 || ((logit_rows == 1 || logit_rows == n) && logits), "logit_rows must be 0, 1 or n");
    if (n > capacity_ - length_)
        throw Failure{ISO_CAPACITY, "the session holds " + std::to_string(length_) + " of " + std::to_string(capacity_) +
                                        " positions; " + std::to_string(n) + " more do not fit: open a larger session"};
    for (size_t i = 0; i < n; ++i)
        if (tokens[i] < 0 || count(tokens[i]) >= vocab)
            bad_argument("token " + std::to_string(tokens[i]) + " is outside the vocabulary of " + std::to_string(vocab));
    for (size_t done = 0; done < n; done += CHUNK_ROWS) {
        const size_t rows = n - done < CHUNK_ROWS ? n - done : CHUNK_ROWS;
        const bool last = done + rows == n;
        if (logit_rows == n && n > 1)
            chunk(tokens + done, rows, length_ + done, rows, logits + done * vocab);
        else
            chunk(tokens + done, rows, length_ + done, last && logit_rows ? 1 : 0, logits);
    }
    length_ += n;
}

void Session::norm_rows(const float* x, const float* w, float* y, size_t rows) const {
    const size_t n = count(decoder_.config().hidden);
    const float eps = float(decoder_.config().rms_eps);
    const Kernels& k = kernels();
    parallel(rows, grain_of(rows), MAX_THREADS, [&](size_t m, int) { k.rms_norm(x + m * n, w, y + m * n, n, eps, false); });
}

// Norms and rotates the rows' queries in place, and writes their keys and values into the cache.
void Session::enter_cache(const Layer& layer, size_t index, size_t rows, size_t first) {
    const iso_decoder_config& c = decoder_.config();
    const Kernels& k = kernels();
    const size_t dim = count(c.head_dim), heads = count(c.heads), kv_heads = count(c.kv_heads), half = count(c.rotary_dim) / 2;
    const size_t panels = panels_of(dim), stride = (heads + 2 * kv_heads) * dim;
    const float eps = float(c.rms_eps);
    parallel(rows, grain_of(rows), MAX_THREADS, [&](size_t m, int) {
        const size_t position = first + m;
        const float* cosines = &tables_->cosines[position * half];
        const float* sines = &tables_->sines[position * half];
        float* row = qkv_.data() + m * stride;
        for (size_t h = 0; h < heads + kv_heads; ++h) {  // the queries' heads, then the keys'
            float* x = row + h * dim;
            if (c.qk_norm) k.rms_norm(x, (h < heads ? layer.q_norm : layer.k_norm).data(), x, dim, eps, false);
            k.rope(x, cosines, sines, half, dim, x);
        }
        for (size_t h = 0; h < kv_heads; ++h) {
            const size_t head = index * kv_heads + h;
            const float* key = row + (heads + h) * dim;
            const float* value = row + (heads + kv_heads + h) * dim;
            float* keys = keys_.data() + (head * room_ + position / PANEL * PANEL) * dim + position % PANEL;
            float* values = values_.data() + (head * panels * room_ + position) * PANEL;
            for (size_t d = 0; d < dim; ++d) keys[d * PANEL] = key[d];
            for (size_t d = 0; d < dim; ++d) values[d / PANEL * room_ * PANEL + d % PANEL] = value[d];
        }
    });
}

void Session::attend(size_t index, size_t rows, size_t first) {
    const iso_decoder_config& c = decoder_.config();
    const Kernels& k = kernels();
    const size_t dim = count(c.head_dim), heads = count(c.heads), kv_heads = count(c.kv_heads), panels = panels_of(dim);
    AttentionCall call{};
    call.q = qkv_.data();
    call.q_stride = (heads + 2 * kv_heads) * dim;
    call.keys = keys_.data() + index * kv_heads * room_ * dim;
    call.values = values_.data() + index * kv_heads * room_ * panels * PANEL;
    call.out = attended_.data();
    call.out_stride = heads * dim;
    call.positions = positions_.data();
    call.rows = rows, call.heads = heads, call.kv_heads = kv_heads, call.head_dim = dim, call.capacity = room_;
    call.scale = float(c.scale);
    call.window = decoder_.window(index);
    const size_t tiles = k.attention_tiles(rows, heads / kv_heads), each = k.attention_scratch(first + rows, dim);
    const int slots = pool_threads();
    at_least(scratch_, each * size_t(slots));
    parallel(kv_heads * tiles, 1, slots, [&](size_t task, int slot) {
        k.attention_tile(call, task / tiles, task % tiles, scratch_.data() + each * size_t(slot));
    });
}

void Session::chunk(const int32_t* tokens, size_t rows, size_t first, size_t logit_rows, float* logits) {
    const iso_decoder_config& c = decoder_.config();
    const size_t hidden = count(c.hidden), q = count(c.heads) * count(c.head_dim), kv = count(c.kv_heads) * count(c.head_dim);
    const size_t inner = count(c.intermediate), vocab = count(c.vocab);
    at_least(hidden_, rows * hidden);
    at_least(normed_, rows * hidden);
    at_least(qkv_, rows * (q + 2 * kv));
    at_least(attended_, rows * q);
    at_least(inner_, rows * inner);
    at_least(positions_, rows);

    float* h = hidden_.data();
    for (size_t m = 0; m < rows; ++m) {
        decoder_.embed(tokens[m], h + m * hidden);
        positions_[m] = int32_t(first + m);
    }
    for (size_t i = 0; i < count(c.layers); ++i) {
        const Layer& layer = decoder_.layer(i);
        norm_rows(h, layer.input_norm.data(), normed_.data(), rows);
        run_linear(layer.qkv, normed_.data(), rows, q + 2 * kv, packed_rows_, STORE, 0, qkv_.data(), q + 2 * kv);
        enter_cache(layer, i, rows, first);
        attend(i, rows, first);
        run_linear(layer.o, attended_.data(), rows, hidden, packed_rows_, ADD, 0, h, hidden);
        norm_rows(h, layer.post_norm.data(), normed_.data(), rows);
        run_linear(layer.gate_up, normed_.data(), rows, inner, packed_rows_, GATED, c.activation, inner_.data(), inner);
        run_linear(layer.down, inner_.data(), rows, hidden, packed_rows_, ADD, 0, h, hidden);
        check_rows(h, rows, hidden, first, int(i));
    }
    if (!logit_rows) return;
    const size_t skipped = rows - logit_rows;
    norm_rows(h + skipped * hidden, decoder_.final_norm(), normed_.data(), logit_rows);
    run_linear(decoder_.output(), normed_.data(), logit_rows, vocab, packed_rows_, STORE, 0, logits, vocab);
    check_rows(logits, logit_rows, vocab, first + skipped, ISO_LAYER_OUTPUT);
}

}  // namespace iso
