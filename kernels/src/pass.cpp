// See pass.hpp.
#include "pass.hpp"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <mutex>
#include <string>

#include "checksum.hpp"
#include "forward.hpp"
#include "session.hpp"

namespace iso {

namespace {

// Rows that pass through the layers together, a multiple of every path's tile: bounds the scratch memory. Each cut streams
// the weights once more, so a usual prompt's chunk and those who decode beside it fit in.
constexpr size_t CHUNK_ROWS = 576;
// Logits that are held at a time, in floats: 64 MiB.
constexpr size_t LOGITS_AT_ONCE = size_t(1) << 24;

class Pass {
   public:
    Pass(Decoder& decoder, Workspace& workspace)
        : decoder_(decoder), c_(decoder.config()), w_(workspace), k_(kernels()), forward_(decoder, workspace) {}

    void run(std::vector<Run>& runs) {
        size_t positions = 0;
        for (const Run& run : runs) positions = std::max(positions, run.first + run.count);
        forward_.prepare(positions);
        w_.sampling.resize(size_t(pool_threads()));
        for (Run& run : runs)
            while (run.done < run.count && !run.failed) {
                const size_t rows = std::min(CHUNK_ROWS - chunk_.rows.size(), run.count - run.done);
                chunk_.segments.push_back({&run, chunk_.rows.size(), rows, run.done});
                for (size_t i = run.done; i < run.done + rows; ++i) {
                    chunk_.rows.push_back({&run, i, run.first + i});
                    chunk_.positions.push_back(int32_t(run.first + i));
                }
                run.done += rows;
                if (chunk_.rows.size() == CHUNK_ROWS) flush();
            }
        flush();
    }

   private:
    void flush() {
        if (chunk_.rows.empty()) return;
        forward_.run(chunk_);
        output();
        chunk_.clear();
    }

    void output() {
        wanted_.clear();
        for (size_t m = 0; m < chunk_.rows.size(); ++m)
            if (!chunk_.rows[m].run->failed && chunk_.rows[m].wanted()) wanted_.push_back(m);
        if (wanted_.empty()) return;
        const size_t vocab = size(c_.vocab), n = size(c_.hidden), tile = 12;
        size_t most = std::max<size_t>(1, LOGITS_AT_ONCE / vocab);
        if (most > tile) most = most / tile * tile;
        in_rows(wanted_.size(), [&](size_t i) {
            forward_.norm(w_.hidden.data() + wanted_[i] * n, decoder_.final_norm(), w_.normed.data() + i * n, n);
        });
        at_least(w_.logits, std::min(most, wanted_.size()) * vocab);
        for (size_t i = 0; i < wanted_.size(); i += most) {
            const size_t rows = std::min(most, wanted_.size() - i);
            run_linear(decoder_.output(), w_.normed.data() + i * n, rows, vocab, w_.packed_rows, STORE, 0, w_.logits.data(), vocab);
            scale_logits(rows * vocab);
            parallel(2 * rows, 1, int(w_.sampling.size()), [&](size_t task, int slot) {
                const Row& row = chunk_.rows[wanted_[i + task / 2]];
                const float* logits = w_.logits.data() + task / 2 * vocab;
                if (task % 2)
                    record(row, logits);
                else
                    draw(row, logits, w_.sampling[size_t(slot)]);
            });
        }
    }

    void scale_logits(size_t count) {
        const float divisor = float(c_.logit_divisor), cap = float(c_.logit_softcap);
        if (divisor == 1.0f && cap == 0.0f) return;
        constexpr size_t PIECE = 4096;
        parallel((count + PIECE - 1) / PIECE, [&](size_t i) {
            float* z = w_.logits.data() + i * PIECE;
            const size_t n = std::min(PIECE, count - i * PIECE);
            if (divisor != 1.0f) k_.divide(z, divisor, n);
            if (cap == 0.0f) return;
            k_.divide(z, cap, n);
            k_.function(ISO_TANH, z, z, n);
            for (size_t j = 0; j < n; ++j) z[j] = z[j] * cap;
        });
    }

    void record(const Row& row, const float* logits) const {
        const iso_item& item = *row.run->item;
        const size_t drawn = row.drawn(), vocab = size(c_.vocab);
        if (item.logits) memcpy(item.logits + drawn * vocab, logits, vocab * sizeof(float));
        if (item.mode != ISO_LOGITS)
            k_.blake3(reinterpret_cast<const uint8_t*>(logits), vocab * sizeof(float), item.digests + 32 * drawn);
    }

    // Tasks must not throw: a row's failure is kept for finish().
    void draw(const Row& row, const float* logits, SampleScratch& scratch) {
        Run& run = *row.run;
        const iso_item& item = *run.item;
        const size_t drawn = row.drawn(), vocab = size(c_.vocab);
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
    Forward forward_;
    Chunk chunk_;
    std::vector<size_t> wanted_;  // rows of the chunk
    std::mutex failures_;
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
        if (const Failure* failure = failure_of(accepted)) {
            // A guess that held but can't draw: the tokens before it stand, and the next step meets the failure.
            if (accepted && item.mode == ISO_DRAW && failure->code != ISO_CORRUPTION) break;
            return fail(run, *failure);
        }
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
    if (item.ahead)
        require(item.mode == ISO_DRAW && item.draws && !item.mask && float(item.sampling.repetition_penalty) == 1.0f,
                "steps ahead need a draw, and neither a mask nor a repetition penalty");
}

// The next plain step of an item whose last drawn token is not in its session yet.
iso_item next_of(const Decoder& decoder, const iso_item& item) {
    const size_t rows = size_t(item.accepted), trace = size(decoder.config().layers) * ISO_STAGES * 32;
    iso_item next = item;
    next.tokens = item.drawn + rows - 1;
    next.history = nullptr;
    next.drawn += rows, next.logprobs += rows, next.digests += 32 * rows;
    if (next.logits) next.logits += rows * size(decoder.config().vocab);
    if (next.trace) next.trace += rows * trace;
    next.count = next.draws = 1;
    next.history_length = 0;
    next.accepted = 0;
    return next;
}

// Steps ahead, for all items together. One that fails leaves its session as the step before it did, and ends there: who
// asks for that step again meets the error.
void run_ahead(Decoder& decoder, Workspace& workspace, const std::vector<Run>& first) {
    struct Going {
        iso_item* item;
        Session* session;
    };
    std::vector<Going> going;
    for (const Run& run : first)
        if (run.item->code == ISO_OK && run.item->ahead) going.push_back({run.item, run.session});
    for (uint64_t step = 0; !going.empty(); ++step) {
        std::vector<iso_item> items;
        std::vector<Run> runs;
        std::vector<Going> still;
        items.reserve(going.size()), runs.reserve(going.size()), still.reserve(going.size());
        for (const Going& g : going) {
            const int32_t last = g.item->drawn[g.item->accepted - 1];
            const int32_t* const past = g.item->ends + g.item->ends_count;
            if (step == g.item->ahead || std::find(g.item->ends, past, last) != past) continue;
            try {
                g.session->reserve(1);
            } catch (const Failure&) {
                continue;
            }
            items.push_back(next_of(decoder, *g.item));
            runs.push_back({&items.back(), g.session, g.session->length(), 1, 1, 0, 0, false, {}});
            still.push_back(g);
        }
        if (runs.empty()) return;
        forget_corruption();
        Pass(decoder, workspace).run(runs);
        going.clear();
        for (size_t i = 0; i < runs.size(); ++i) {
            finish(runs[i]);
            if (items[i].code != ISO_OK) continue;
            ++still[i].item->accepted;
            going.push_back(still[i]);
        }
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
    if (!again.empty()) {
        forget_corruption();  // what it was is told
        Pass(decoder, *workspace).run(again);
    }
    for (Run& run : runs) finish(run);
    for (Run& run : again) finish(run);
    try {
        run_ahead(decoder, *workspace, runs);
    } catch (const std::bad_alloc&) {
        // What was drawn stands.
    }
    decoder.give_back(std::move(workspace));
}

}  // namespace iso
