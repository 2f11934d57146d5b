// The C ABI of sampling, decoders and sessions.
#include <memory>
#include <string>

#include "decoder.hpp"
#include "failure.hpp"
#include "faults.hpp"
#include "isonomy.h"
#include "kernels.hpp"
#include "pass.hpp"
#include "pool.hpp"
#include "sampling.hpp"
#include "session.hpp"

using namespace iso;

struct iso_decoder {
    Decoder decoder;
};
struct iso_session {
    std::unique_ptr<Session> session;
};

Session& iso::session_of(iso_session* handle) { return *handle->session; }

namespace {

void require_logits(const float* logits, size_t rows, size_t n) {
    require(logits && n > 0 && n < (size_t(1) << 31), "there must be between 1 and 2^31 - 1 logits");
    if (!kernels().all_finite(logits, rows * n))
        throw Failure{ISO_NON_FINITE, "the logits hold NaN or infinity", ISO_LAYER_OUTPUT};
}

}  // namespace

extern "C" {

int iso_sample(const float* logits, size_t n, const iso_sampling* parameters, const int32_t* history, size_t history_length,
               const uint32_t* mask, int32_t* token, float* logprob) {
    return guarded([&] {
        check_sampling(*parameters);
        require_logits(logits, 1, n);
        SampleScratch scratch;
        sample(logits, n, *parameters, parameters->position, history, history_length, mask, scratch, token, logprob);
    });
}

int iso_top_logprobs(const float* logits, size_t n, size_t count, int32_t* ids, float* logprobs) {
    return guarded([&] {
        require(count <= n, "more top log-probabilities than logits");
        require_logits(logits, 1, n);
        const LogProbabilities of(logits, n);
        top_ranks(logits, n, count, ids);
        for (size_t i = 0; i < count; ++i) logprobs[i] = of.of(size_t(ids[i]));
    });
}

int iso_logprobs(const float* logits, size_t rows, size_t n, const int32_t* ids, float* logprobs) {
    return guarded([&] {
        require_logits(logits, rows, n);
        for (size_t m = 0; m < rows; ++m)
            if (ids[m] < 0 || size_t(ids[m]) >= n) bad_argument("id " + std::to_string(ids[m]) + " has no logit");
        parallel(rows, [&](size_t m) { logprobs[m] = LogProbabilities(logits + m * n, n).of(size_t(ids[m])); });
    });
}

int iso_decoder_new(const iso_decoder_config* config, iso_decoder** out) {
    return guarded([&] { *out = new iso_decoder{Decoder(*config)}; });
}

int iso_decoder_load(iso_decoder* decoder, int tensor, int layer, int expert, const void* data, int storage,
                     const float* scales, size_t rows, size_t columns) {
    return guarded([&] { decoder->decoder.load({tensor, layer, expert}, {data, storage, scales}, rows, columns); });
}

int iso_decoder_ready(iso_decoder* decoder) {
    return guarded([&] { decoder->decoder.ready(); });
}

void iso_decoder_free(iso_decoder* decoder) { delete decoder; }

size_t iso_decoder_bytes(const iso_decoder* decoder) { return decoder->decoder.bytes(); }

size_t iso_decoder_cache_in_use(const iso_decoder* decoder) { return decoder->decoder.page_count()->load(); }

size_t iso_decoder_cache_bytes(const iso_decoder* decoder, size_t capacity) {
    return Session::most_bytes(decoder->decoder, capacity);
}

int iso_session_new(iso_decoder* decoder, size_t capacity, iso_session** out) {
    return guarded([&] { *out = new iso_session{std::make_unique<Session>(decoder->decoder, capacity)}; });
}

int iso_session_fork(const iso_session* session, size_t capacity, size_t length, iso_session** out) {
    return guarded([&] { *out = new iso_session{session->session->fork(capacity, length)}; });
}

void iso_session_free(iso_session* session) { delete session; }

size_t iso_session_length(const iso_session* session) { return session->session->length(); }

size_t iso_session_cache_bytes(const iso_session* session) { return session->session->bytes(); }

int iso_session_truncate(iso_session* session, size_t length) {
    return guarded([&] { session->session->truncate(length); });
}

int iso_decoder_step(iso_decoder* decoder, iso_item* items, size_t count) {
    return guarded([&] { take_step(decoder->decoder, items, count); });
}

int iso_inject(int layer, int stage, size_t position, size_t element, int bit) {
    return guarded([&] {
        require(stage >= 0 && stage < ISO_STAGES, "unknown stage");
        require(bit >= 0 && bit < 32, "a float has bits 0 to 31");
        set_fault({layer, stage, position, element, bit});
    });
}

void iso_inject_clear(void) { clear_fault(); }

}  // extern "C"
