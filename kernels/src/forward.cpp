// See forward.hpp. What a mixture of experts adds is in experts.cpp.
#include "forward.hpp"

#include <stdio.h>
#include <string.h>

#include <string>

#include "attend.hpp"
#include "checksum.hpp"
#include "faults.hpp"
#include "session.hpp"

namespace iso {

void settle(iso_item& item, const Failure& failure) {
    item.code = failure.code;
    item.layer = failure.layer;
    snprintf(item.error, sizeof item.error, "%s", failure.text.c_str());
}

void fail(Run& run, const Failure& failure) {
    run.failed = true;
    settle(*run.item, failure);
}

Failure non_finite(int layer, size_t position, const std::string& corruption) {
    if (!corruption.empty()) return {ISO_CORRUPTION, corruption, layer};
    const std::string where = layer == ISO_LAYER_OUTPUT ? "the logits" : "the hidden state after layer " + std::to_string(layer);
    return {ISO_NON_FINITE,
            where + " at position " + std::to_string(position) +
                " hold NaN or infinity: the weights do not fit these numerics, or memory is damaged",
            layer};
}

void Forward::prepare(size_t positions) {
    w_.rope_pages.resize(decoder_.ropes());
    for (size_t i = 0; i < decoder_.ropes(); ++i) decoder_.rope_pages(i, positions, w_.rope_pages[i]);
}

void Forward::run(const Chunk& chunk) {
    chunk_ = &chunk;
    const size_t n = rows();
    at_least(w_.hidden, n * hidden());
    at_least(w_.normed, n * hidden());
    at_least(w_.branch, n * hidden());
    at_least(w_.qkv, n * (queries() + 2 * keys()));
    at_least(w_.attended, n * queries());
    at_least(w_.inner, n * size(std::max(c_.intermediate, c_.expert_intermediate)));
    traced_ = std::any_of(chunk.rows.begin(), chunk.rows.end(), [](const Row& row) { return row.run->item->trace; });
    in_rows(n, [&](size_t m) {
        const Row& row = chunk.rows[m];
        decoder_.embed(row.run->item->tokens[row.index], row.position, w_.hidden.data() + m * hidden(),
                       w_.normed.data() + m * hidden());
    });
    for (size_t i = 0; i < size(c_.layers); ++i) layer(i);
}

void Forward::layer(size_t i) {
    const Layer& layer = decoder_.layer(i);
    const size_t width = queries() + 2 * keys(), inner = size(c_.intermediate);
    float* const h = w_.hidden.data();

    float* x = before(layer.input_norm);
    stage(i, ISO_STAGE_ATTENTION_NORM, x, hidden(), hidden());
    run_linear(layer.qkv, x, rows(), width, w_.packed_rows, STORE, 0, w_.qkv.data(), width);
    stage(i, ISO_STAGE_QKV, w_.qkv.data(), width, width);
    enter_cache(layer, i);
    stage(i, ISO_STAGE_ROPE, w_.qkv.data(), queries() + keys(), width);
    attend(layer, i);
    stage(i, ISO_STAGE_ATTENTION, w_.attended.data(), queries(), queries());
    after(layer.o, w_.attended.data(), layer.attention_output_norm);
    stage(i, ISO_STAGE_ATTENTION_RESIDUAL, h, hidden(), hidden());

    x = before(layer.post_norm);
    stage(i, ISO_STAGE_MLP_NORM, x, hidden(), hidden());
    if (layer.experts.empty()) {
        mlp(layer.mlp, x, rows(), inner);
        stage(i, ISO_STAGE_MLP_INNER, w_.inner.data(), inner, inner);
        after(layer.mlp.down, w_.inner.data(), layer.mlp_output_norm);
    } else {
        experts(layer, x);
        stage(i, ISO_STAGE_MLP_INNER, w_.branch.data(), hidden(), hidden());
        add_branch(layer.mlp_output_norm);
    }
    stage(i, ISO_STAGE_MLP_RESIDUAL, h, hidden(), hidden());
    check(i);
}

void Forward::norm(const float* x, const Norm& norm, float* y, size_t n) const {
    if (norm.bias)
        k_.layer_norm(x, norm.weight.data(), norm.bias.data(), y, n, eps_);
    else
        k_.rms_norm(x, norm.weight.data(), y, n, eps_, c_.norm_offset != 0);
}

// What a block reads: the hidden states, through its norm where there is one before it.
float* Forward::before(const Norm& block) {
    if (!block.weight) return w_.hidden.data();
    in_rows(rows(), [&](size_t m) { norm(w_.hidden.data() + m * hidden(), block, w_.normed.data() + m * hidden(), hidden()); });
    return w_.normed.data();
}

// A block's last linear and its residual.
void Forward::after(const Packed& w, const float* x, const Norm& norm) {
    if (!norm.weight && float(c_.residual_multiplier) == 1.0f)
        return run_linear(w, x, rows(), hidden(), w_.packed_rows, ADD, 0, w_.hidden.data(), hidden());
    run_linear(w, x, rows(), hidden(), w_.packed_rows, STORE, 0, w_.branch.data(), hidden());
    add_branch(norm);
}

void Forward::add_branch(const Norm& block) {
    const float multiplier = float(c_.residual_multiplier);
    const size_t n = hidden();
    in_rows(rows(), [&](size_t m) {
        float* const h = w_.hidden.data() + m * n;
        float* const x = w_.branch.data() + m * n;
        if (block.weight) norm(x, block, x, n);
        if (multiplier != 1.0f)
            for (size_t i = 0; i < n; ++i) x[i] = x[i] * multiplier;
        k_.add(h, x, h, n);
    });
}

// Norms and rotates the rows' queries and keys in place, and writes keys and values into the cache.
void Forward::enter_cache(const Layer& layer, size_t index) {
    const size_t dim = size(c_.head_dim), heads = size(c_.heads), kv_heads = size(c_.kv_heads);
    const size_t stride = queries() + 2 * keys(), half = layer.rope < 0 ? 0 : decoder_.rope_half(layer.rope);
    in_rows(rows(), [&](size_t m) {
        const Row& at = chunk_->rows[m];
        const size_t page = at.position / PAGE_POSITIONS, within = at.position % PAGE_POSITIONS;
        float* const row = w_.qkv.data() + m * stride;
        if (c_.qk_norm == ISO_QK_PROJECTION) {
            norm(row, layer.q_norm, row, queries());
            norm(row + queries(), layer.k_norm, row + queries(), keys());
        }
        for (size_t h = 0; h < heads + kv_heads; ++h) {  // the queries' heads, then the keys'
            float* x = row + h * dim;
            if (c_.qk_norm == ISO_QK_HEAD) norm(x, h < heads ? layer.q_norm : layer.k_norm, x, dim);
            if (!half) continue;
            const float* cosines = w_.rope_pages[size_t(layer.rope)][page] + within * 2 * half;
            k_.rope(x, cosines, cosines + half, half, dim, x);
        }
        inject(index, ISO_STAGE_ROPE, at.position, row, queries() + keys());
        Session& session = *at.run->session;
        const size_t room = session.pages()[page].positions;
        for (size_t h = 0; h < kv_heads; ++h)
            enter(session.strip(page, index * kv_heads + h), room, within, dim, row + (heads + h) * dim,
                  row + (heads + kv_heads + h) * dim);
    });
}

void Forward::attend(const Layer& layer, size_t index) {
    const size_t dim = size(c_.head_dim), kv_heads = size(c_.kv_heads);
    calls_.clear();
    for (const Segment& segment : chunk_->segments) {
        AttentionCall call{};
        call.q = w_.qkv.data() + segment.row * (queries() + 2 * keys());
        call.q_stride = queries() + 2 * keys();
        call.pages = segment.run->session->pages();
        call.first_strip = index * kv_heads;
        call.out = w_.attended.data() + segment.row * queries();
        call.out_stride = queries();
        call.positions = chunk_->positions.data() + segment.row;
        call.rows = segment.rows, call.heads = size(c_.heads), call.kv_heads = kv_heads, call.head_dim = dim;
        call.scale = float(c_.scale), call.softcap = float(c_.attention_softcap);
        call.window = layer.window;
        calls_.push_back(call);
    }
    run_attention(calls_, w_.attention);
}

// What goes into the down projection, for `n` rows.
void Forward::mlp(const Mlp& mlp, const float* x, size_t n, size_t inner) {
    if (c_.gated)
        return run_linear(mlp.gate_up, x, n, inner, w_.packed_rows, GATED, c_.activation, w_.inner.data(), inner);
    run_linear(mlp.gate_up, x, n, inner, w_.packed_rows, STORE, 0, w_.inner.data(), inner);
    constexpr size_t PIECE = 4096;
    const size_t all = n * inner;
    parallel((all + PIECE - 1) / PIECE, [&](size_t i) {
        float* y = w_.inner.data() + i * PIECE;
        k_.function(ISO_FN_SILU + c_.activation, y, y, std::min(PIECE, all - i * PIECE));
    });
}

// Injected faults and the digests of a stage, of the rows whose logits are wanted.
void Forward::stage(size_t index, int which, float* x, size_t width, size_t stride) {
    if (which != ISO_STAGE_ROPE && faults_injected())
        for (size_t m = 0; m < rows(); ++m) inject(index, which, chunk_->rows[m].position, x + m * stride, width);
    if (!traced_) return;
    parallel(rows(), [&](size_t m) {
        const Row& row = chunk_->rows[m];
        if (!row.run->item->trace || !row.wanted()) return;
        uint8_t* digest = row.run->item->trace + ((row.drawn() * size(c_.layers) + index) * ISO_STAGES + size_t(which)) * 32;
        k_.blake3(reinterpret_cast<const uint8_t*>(x + m * stride), width * sizeof(float), digest);
    });
}

void Forward::check(size_t index) {
    finite_.assign(rows(), 1);
    in_rows(rows(), [&](size_t m) { finite_[m] = k_.all_finite(w_.hidden.data() + m * hidden(), hidden()); });
    for (const Segment& segment : chunk_->segments) {
        const auto begin = finite_.begin() + ptrdiff_t(segment.row), end = begin + ptrdiff_t(segment.rows);
        const auto bad = std::find(begin, end, 0);
        if (bad == end) continue;
        const size_t position = chunk_->rows[size_t(bad - finite_.begin())].position;
        if (!segment.run->failed) fail(*segment.run, non_finite(int(index), position, corruption()));
        memset(w_.hidden.data() + segment.row * hidden(), 0, segment.rows * hidden() * sizeof(float));
    }
}

}  // namespace iso
