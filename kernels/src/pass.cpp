// See pass.hpp.
#include "pass.hpp"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <mutex>
#include <string>

#include "attend.hpp"
#include "checksum.hpp"
#include "failure.hpp"
#include "faults.hpp"
#include "pool.hpp"
#include "session.hpp"

namespace iso {

namespace {

// Rows that pass through the layers together: bounds the scratch memory, and is a multiple of every path's tile.
constexpr size_t CHUNK_ROWS = 240;
// Logits that are held at a time, in floats: 64 MiB.
constexpr size_t LOGITS_AT_ONCE = size_t(1) << 24;

size_t size(int32_t x) { return size_t(x); }

// What a pass knows of an item: how far it has come, and where it failed.
struct Run {
    iso_item* item;
    Session* session;
    size_t first, count, draws, history;  // position of the first token; the last `draws` of `count` rows get logits
    size_t done = 0;
    bool failed = false;
    std::vector<std::pair<size_t, Failure>> failures;  // of drawn rows
};

// Consecutive rows of one item within a chunk.
struct Segment {
    Run* run;
    size_t row, rows, begin;  // in the chunk; index of the first within the item
};

struct Row {
    Run* run;
    size_t index;     // within the item
    size_t position;  // within the session
};

void settle(iso_item& item, const Failure& failure) {
    item.code = failure.code;
    item.layer = failure.layer;
    snprintf(item.error, sizeof item.error, "%s", failure.text.c_str());
}

void fail(Run& run, const Failure& failure) {
    run.failed = true;
    settle(*run.item, failure);
}

// `corruption`: what a checksum found in this pass; its rows were made NaN (checksum.hpp).
Failure non_finite(int layer, size_t position, const std::string& corruption) {
    if (!corruption.empty()) return {ISO_CORRUPTION, corruption, layer};
    const std::string where = layer == ISO_LAYER_OUTPUT ? "the logits" : "the hidden state after layer " + std::to_string(layer);
    return {ISO_NON_FINITE,
            where + " at position " + std::to_string(position) +
                " hold NaN or infinity: the weights do not fit these numerics, or memory is damaged",
            layer};
}

class Pass {
   public:
    Pass(Decoder& decoder, Workspace& workspace) : decoder_(decoder), c_(decoder.config()), w_(workspace), k_(kernels()) {}

    void run(std::vector<Run>& runs) {
        size_t positions = 0;
        for (const Run& run : runs) positions = std::max(positions, run.first + run.count);
        decoder_.rope_pages(positions, w_.rope_pages);
        w_.sampling.resize(size_t(pool_threads()));
        for (Run& run : runs)
            while (run.done < run.count && !run.failed) {
                const size_t rows = std::min(CHUNK_ROWS - rows_.size(), run.count - run.done);
                segments_.push_back({&run, rows_.size(), rows, run.done});
                for (size_t i = 0; i < rows; ++i) rows_.push_back({&run, run.done + i, run.first + run.done + i});
                run.done += rows;
                if (rows_.size() == CHUNK_ROWS) chunk();
            }
        if (!rows_.empty()) chunk();
    }

   private:
    size_t hidden() const { return size(c_.hidden); }
    size_t queries() const { return size(c_.heads) * size(c_.head_dim); }
    size_t keys() const { return size(c_.kv_heads) * size(c_.head_dim); }

    template <typename Body>
    void in_rows(size_t rows, const Body& body) const {
        parallel(rows, grain_of(rows), MAX_THREADS, [&](size_t m, int) { body(m); });
    }

    void chunk() {
        const size_t rows = rows_.size();
        at_least(w_.hidden, rows * hidden());
        at_least(w_.normed, rows * hidden());
        at_least(w_.qkv, rows * (queries() + 2 * keys()));
        at_least(w_.attended, rows * queries());
        at_least(w_.inner, rows * size(c_.intermediate));
        for (const Row& row : rows_) positions_.push_back(int32_t(row.position));
        traced_ = std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.run->item->trace; });

        in_rows(rows, [&](size_t m) {
            decoder_.embed(rows_[m].run->item->tokens[rows_[m].index], w_.hidden.data() + m * hidden());
        });
        for (size_t i = 0; i < size(c_.layers); ++i) layer(i);
        output();
        rows_.clear(), segments_.clear(), positions_.clear();
    }

    void layer(size_t i) {
        const Layer& layer = decoder_.layer(i);
        const size_t rows = rows_.size(), width = queries() + 2 * keys(), inner = size(c_.intermediate);
        float* const h = w_.hidden.data();
        norm(h, layer.input_norm.data(), w_.normed.data(), rows);
        stage(i, ISO_STAGE_ATTENTION_NORM, w_.normed.data(), hidden(), hidden());
        run_linear(layer.qkv, w_.normed.data(), rows, width, w_.packed_rows, STORE, 0, w_.qkv.data(), width);
        stage(i, ISO_STAGE_QKV, w_.qkv.data(), width, width);
        enter_cache(layer, i);
        stage(i, ISO_STAGE_ROPE, w_.qkv.data(), queries() + keys(), width);
        attend(i);
        stage(i, ISO_STAGE_ATTENTION, w_.attended.data(), queries(), queries());
        run_linear(layer.o, w_.attended.data(), rows, hidden(), w_.packed_rows, ADD, 0, h, hidden());
        stage(i, ISO_STAGE_ATTENTION_RESIDUAL, h, hidden(), hidden());
        norm(h, layer.post_norm.data(), w_.normed.data(), rows);
        stage(i, ISO_STAGE_MLP_NORM, w_.normed.data(), hidden(), hidden());
        run_linear(layer.gate_up, w_.normed.data(), rows, inner, w_.packed_rows, GATED, c_.activation, w_.inner.data(), inner);
        stage(i, ISO_STAGE_MLP_INNER, w_.inner.data(), inner, inner);
        run_linear(layer.down, w_.inner.data(), rows, hidden(), w_.packed_rows, ADD, 0, h, hidden());
        stage(i, ISO_STAGE_MLP_RESIDUAL, h, hidden(), hidden());
        check(i);
    }

    void norm(const float* x, const float* w, float* y, size_t rows) const {
        const size_t n = hidden();
        const float eps = float(c_.rms_eps);
        in_rows(rows, [&](size_t m) { k_.rms_norm(x + m * n, w, y + m * n, n, eps, false); });
    }

    // Norms and rotates the rows' queries in place, and writes their keys and values into the cache.
    void enter_cache(const Layer& layer, size_t index) {
        const size_t dim = size(c_.head_dim), heads = size(c_.heads), kv_heads = size(c_.kv_heads);
        const size_t half = size(c_.rotary_dim) / 2, stride = queries() + 2 * keys();
        const float eps = float(c_.rms_eps);
        in_rows(rows_.size(), [&](size_t m) {
            const size_t position = rows_[m].position, page = position / PAGE_POSITIONS, within = position % PAGE_POSITIONS;
            const float* cosines = w_.rope_pages[page] + within * 2 * half;
            float* row = w_.qkv.data() + m * stride;
            for (size_t h = 0; h < heads + kv_heads; ++h) {  // the queries' heads, then the keys'
                float* x = row + h * dim;
                if (c_.qk_norm) k_.rms_norm(x, (h < heads ? layer.q_norm : layer.k_norm).data(), x, dim, eps, false);
                k_.rope(x, cosines, cosines + half, half, dim, x);
            }
            inject(index, ISO_STAGE_ROPE, position, row, queries() + keys());
            Session& session = *rows_[m].run->session;
            const size_t room = session.pages()[page].positions;
            for (size_t h = 0; h < kv_heads; ++h)
                enter(session.strip(page, index * kv_heads + h), room, within, dim, row + (heads + h) * dim,
                      row + (heads + kv_heads + h) * dim);
        });
    }

    void attend(size_t index) {
        const size_t dim = size(c_.head_dim), kv_heads = size(c_.kv_heads);
        calls_.clear();
        for (const Segment& segment : segments_) {
            AttentionCall call{};
            call.q = w_.qkv.data() + segment.row * (queries() + 2 * keys());
            call.q_stride = queries() + 2 * keys();
            call.pages = segment.run->session->pages();
            call.first_strip = index * kv_heads;
            call.out = w_.attended.data() + segment.row * queries();
            call.out_stride = queries();
            call.positions = positions_.data() + segment.row;
            call.rows = segment.rows, call.heads = size(c_.heads), call.kv_heads = kv_heads, call.head_dim = dim;
            call.scale = float(c_.scale);
            call.window = decoder_.window(index);
            calls_.push_back(call);
        }
        run_attention(calls_, w_.attention);
    }

    // Injected faults and the digests of a stage, of the rows whose logits are wanted.
    void stage(size_t index, int which, float* x, size_t width, size_t stride) {
        if (which != ISO_STAGE_ROPE && faults_injected())
            for (size_t m = 0; m < rows_.size(); ++m) inject(index, which, rows_[m].position, x + m * stride, width);
        if (!traced_) return;
        parallel(rows_.size(), [&](size_t m) {
            const Run& run = *rows_[m].run;
            if (!run.item->trace || rows_[m].index + run.draws < run.count) return;
            const size_t drawn = rows_[m].index + run.draws - run.count;
            uint8_t* digest = run.item->trace + ((drawn * size(c_.layers) + index) * ISO_STAGES + size_t(which)) * 32;
            k_.blake3(reinterpret_cast<const uint8_t*>(x + m * stride), width * sizeof(float), digest);
        });
    }

    void check(size_t index) {
        finite_.assign(rows_.size(), 1);
        in_rows(rows_.size(), [&](size_t m) { finite_[m] = k_.all_finite(w_.hidden.data() + m * hidden(), hidden()); });
        for (const Segment& segment : segments_) {
            const auto begin = finite_.begin() + ptrdiff_t(segment.row), end = begin + ptrdiff_t(segment.rows);
            const auto bad = std::find(begin, end, 0);
            if (bad == end) continue;
            Run& run = *segment.run;
            if (!run.failed) fail(run, non_finite(int(index), rows_[size_t(bad - finite_.begin())].position, corruption_));
            memset(w_.hidden.data() + segment.row * hidden(), 0, segment.rows * hidden() * sizeof(float));
        }
    }

    void output() {
        wanted_.clear();
        for (size_t m = 0; m < rows_.size(); ++m)
            if (!rows_[m].run->failed && rows_[m].index + rows_[m].run->draws >= rows_[m].run->count) wanted_.push_back(m);
        if (wanted_.empty()) return;
        const size_t vocab = size(c_.vocab), n = hidden(), tile = 12;
        size_t most = std::max<size_t>(1, LOGITS_AT_ONCE / vocab);
        if (most > tile) most = most / tile * tile;
        const float eps = float(c_.rms_eps);
        in_rows(wanted_.size(), [&](size_t i) {
            k_.rms_norm(w_.hidden.data() + wanted_[i] * n, decoder_.final_norm(), w_.normed.data() + i * n, n, eps, false);
        });
        at_least(w_.logits, std::min(most, wanted_.size()) * vocab);
        for (size_t i = 0; i < wanted_.size(); i += most) {
            const size_t rows = std::min(most, wanted_.size() - i);
            run_linear(decoder_.output(), w_.normed.data() + i * n, rows, vocab, w_.packed_rows, STORE, 0, w_.logits.data(), vocab);
            parallel(2 * rows, 1, int(w_.sampling.size()), [&](size_t task, int slot) {
                const Row& row = rows_[wanted_[i + task / 2]];
                const float* logits = w_.logits.data() + task / 2 * vocab;
                if (task % 2)
                    record(row, logits);
                else
                    draw(row, logits, w_.sampling[size_t(slot)]);
            });
        }
    }

    void record(const Row& row, const float* logits) const {
        const iso_item& item = *row.run->item;
        const size_t drawn = row.index + row.run->draws - row.run->count, vocab = size(c_.vocab);
        if (item.logits) memcpy(item.logits + drawn * vocab, logits, vocab * sizeof(float));
        if (item.mode != ISO_LOGITS)
            k_.blake3(reinterpret_cast<const uint8_t*>(logits), vocab * sizeof(float), item.digests + 32 * drawn);
    }

    void draw(const Row& row, const float* logits, SampleScratch& scratch) {
        Run& run = *row.run;
        const iso_item& item = *run.item;
        const size_t drawn = row.index + run.draws - run.count, vocab = size(c_.vocab);
        try {
            if (!k_.all_finite(logits, vocab)) throw non_finite(ISO_LAYER_OUTPUT, row.position, corruption_);
            if (item.mode == ISO_FORCED) {
                const bool last = drawn + 1 == run.draws;
                item.logprobs[drawn] = last ? NAN : LogProbabilities(logits, vocab).of(size_t(item.tokens[row.index + 1]));
            } else if (item.mode == ISO_DRAW) {
                const size_t later = run.draws - 1 - drawn;  // guesses that this draw must not know
                const size_t history = run.history > later ? run.history - later : 0;
                const uint32_t* mask = item.mask ? item.mask + drawn * ((vocab + 31) / 32) : nullptr;
                sample(logits, vocab, item.sampling, uint32_t(row.position + 1), item.history, history, mask, scratch,
                       item.drawn + drawn, item.logprobs + drawn);
            }
        } catch (const Failure& failure) {
            const std::lock_guard<std::mutex> lock(failures_);
            run.failures.emplace_back(drawn, failure);
        } catch (const std::bad_alloc&) {
            const std::lock_guard<std::mutex> lock(failures_);
            run.failures.emplace_back(drawn, Failure{ISO_NO_MEMORY, "out of memory while drawing a token", ISO_LAYER_NONE});
        }
    }

    Decoder& decoder_;
    const iso_decoder_config& c_;
    Workspace& w_;
    const Kernels& k_;
    std::vector<Row> rows_;
    std::vector<Segment> segments_;
    std::vector<int32_t> positions_;
    std::vector<AttentionCall> calls_;
    std::vector<size_t> wanted_;
    std::vector<uint8_t> finite_;
    std::mutex failures_;
    bool traced_ = false;
    const std::string& corruption_ = corruption();  // of the calling thread; workers read it after the linear that wrote it
};

// How many tokens are accepted, and the session's new length.
void finish(Run& run) {
    if (run.failed) return;
    iso_item& item = *run.item;
    const auto failure_of = [&](size_t drawn) -> const Failure* {
        for (const auto& [row, failure] : run.failures)
            if (row == drawn) return &failure;
        return nullptr;
    };
    size_t accepted = 0, kept = run.count;
    for (bool more = true; more && accepted < run.draws; ++accepted) {
        if (const Failure* failure = failure_of(accepted)) return fail(run, *failure);
        const size_t next = run.count - run.draws + accepted + 1;
        more = item.mode != ISO_DRAW || (next < run.count && item.drawn[accepted] == item.tokens[next]);
    }
    if (item.mode == ISO_DRAW && run.draws) kept = run.count - run.draws + accepted;
    item.accepted = int32_t(accepted);
    item.code = ISO_OK;
    run.session->set_length(run.first + kept);
}

void validate(const Decoder& decoder, const iso_item& item) {
    const size_t vocab = size(decoder.config().vocab);
    require(item.session, "an item without a session");
    require(item.count > 0 && item.tokens, "there must be at least one token");
    require(item.draws <= item.count, "draws must be between 0 and the number of tokens");
    require(item.mode >= ISO_DRAW && item.mode <= ISO_LOGITS, "unknown mode");
    for (size_t i = 0; i < item.count; ++i)
        if (item.tokens[i] < 0 || size_t(item.tokens[i]) >= vocab)
            bad_argument("token " + std::to_string(item.tokens[i]) + " is outside the vocabulary of " + std::to_string(vocab));
    if (item.mode == ISO_DRAW && item.draws) {
        check_sampling(item.sampling);
        require(float(item.sampling.repetition_penalty) == 1.0f || !item.history_length || item.history_length >= item.draws,
                "the history must hold at least the tokens that draw");
    }
}

}  // namespace

void take_step(Decoder& decoder, iso_item* items, size_t count) {
    std::vector<Run> runs;
    std::vector<std::unique_ptr<Writing>> writers;
    runs.reserve(count), writers.reserve(count);
    for (size_t i = 0; i < count; ++i) {
        iso_item& item = items[i];
        item.accepted = 0;
        settle(item, {ISO_OK, ""});
        try {
            validate(decoder, item);
            Session& session = session_of(item.session);
            require(&session.decoder() == &decoder, "an item's session belongs to another decoder");
            auto writing = std::make_unique<Writing>(session);
            session.reserve(item.count);
            runs.push_back({&item, &session, session.length(), item.count, item.draws, item.history_length, 0, false, {}});
            writers.push_back(std::move(writing));
        } catch (const Failure& failure) {
            settle(item, failure);
        } catch (const std::bad_alloc&) {
            settle(item, {ISO_NO_MEMORY, "out of memory: a smaller capacity or fewer sessions are needed"});
        }
    }
    if (runs.empty()) return;
    forget_corruption();
    auto workspace = decoder.borrow_workspace();
    Pass(decoder, *workspace).run(runs);

    // A guess that overflows must not cost the token before it: such items are taken again, without their guesses.
    std::vector<Run> again;
    for (Run& run : runs)
        if (run.failed && run.item->code == ISO_NON_FINITE && run.item->mode == ISO_DRAW && run.draws > 1) {
            const size_t guesses = run.draws - 1, history = run.history > guesses ? run.history - guesses : 0;
            settle(*run.item, {ISO_OK, ""});
            again.push_back({run.item, run.session, run.first, run.count - guesses, 1, history, 0, false, {}});
        }
    if (!again.empty()) Pass(decoder, *workspace).run(again);
    for (Run& run : runs) finish(run);
    for (Run& run : again) finish(run);
    decoder.give_back(std::move(workspace));
}

}  // namespace iso
