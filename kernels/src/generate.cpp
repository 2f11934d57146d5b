// The C ABI of sampling, decoders and sessions.
#include <exception>
#include <string>

#include "decoder.hpp"
#include "failure.hpp"
#include "isonomy.h"
#include "kernels.hpp"
#include "pool.hpp"
#include "sampling.hpp"

using namespace iso;

struct iso_decoder {
    Decoder decoder;
};
struct iso_session {
    Session session;
    size_t vocab;
};

namespace {

void require_logits(const float* logits, size_t rows, size_t n) {
    require(logits && n > 0 && n < (size_t(1) << 31), "there must be between 1 and 2^31 - 1 logits");
    if (!kernels().all_finite(logits, rows * n))
        throw Failure{ISO_NON_FINITE, "the logits hold NaN or infinity", ISO_LAYER_OUTPUT};
}

}  // namespace

extern "C" {

int iso_sample(const float* logits, size_t n, const iso_sampling* parameters, const int32_t* history, size_t history_length,
               int32_t* token, float* logprob) {
    return guarded([&] {
        check_sampling(*parameters);
        require_logits(logits, 1, n);
        sample(logits, n, *parameters, parameters->position, history, history_length, token, logprob);
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

int iso_decoder_load(iso_decoder* decoder, int tensor, int layer, const void* data, int storage, size_t rows, size_t columns) {
    return guarded([&] { decoder->decoder.load(tensor, layer, data, storage, rows, columns); });
}

int iso_decoder_ready(iso_decoder* decoder) {
    return guarded([&] { decoder->decoder.ready(); });
}

void iso_decoder_free(iso_decoder* decoder) { delete decoder; }

size_t iso_decoder_bytes(const iso_decoder* decoder) { return decoder->decoder.bytes(); }

int iso_session_new(iso_decoder* decoder, size_t capacity, iso_session** out) {
    return guarded([&] {
        *out = new iso_session{Session(decoder->decoder, capacity), size_t(decoder->decoder.config().vocab)};
    });
}

void iso_session_free(iso_session* session) { delete session; }

size_t iso_session_length(const iso_session* session) { return session->session.length(); }

int iso_session_truncate(iso_session* session, size_t length) {
    return guarded([&] { session->session.truncate(length); });
}

int iso_session_feed(iso_session* session, const int32_t* tokens, size_t n, size_t logit_rows, float* logits) {
    return guarded([&] { session->session.feed(tokens, n, logit_rows, logits); });
}

int iso_session_step(iso_session* session, const int32_t* tokens, size_t n, const iso_sampling* parameters,
                     const int32_t* history, size_t history_length, int32_t* token, float* logprob, uint8_t digest[32],
                     float* logits) {
    return guarded([&] {
        Session& s = session->session;
        check_sampling(*parameters);
        float* const row = logits ? logits : s.logits_buffer();
        s.feed(tokens, n, 1, row);
        const Kernels& k = kernels();
        std::exception_ptr failure;  // tasks must not throw
        parallel(2, [&](size_t task) {
            if (task == 0) {
                k.blake3(reinterpret_cast<const uint8_t*>(row), session->vocab * sizeof(float), digest);
                return;
            }
            try {
                sample(row, session->vocab, *parameters, uint32_t(s.length()), history, history_length, token, logprob);
            } catch (...) {
                failure = std::current_exception();
            }
        });
        if (failure) {
            s.truncate(s.length() - n);
            std::rethrow_exception(failure);
        }
    });
}

}  // extern "C"
