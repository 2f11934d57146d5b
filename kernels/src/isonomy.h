// The C ABI of Isonomy's deterministic kernels (see ../NUMERICS.md for the bits, ../README.md for building).
//
// Contract: every function returns ISO_OK or an error code and never aborts; iso_last_error() then holds a sentence, for
// the calling thread. Pointers are to C-contiguous arrays; sizes are in elements. Results depend on the arguments only:
// never on threads, instruction set, batch or chunk size. Functions may be called from any thread; one session must not
// be used by two threads at once.
#ifndef ISONOMY_H
#define ISONOMY_H

#include <stddef.h>
#include <stdint.h>

#define ISO_ABI 4
#define ISO_NUMERICS_VERSION 1

#if defined(__GNUC__)
#define ISO_API __attribute__((visibility("default")))
#else
#define ISO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ISO_OK = 0,
    ISO_BAD_ARGUMENT = 1,   // a size, an index or a parameter out of its range
    ISO_NO_MEMORY = 2,
    ISO_UNSUPPORTED = 3,    // an instruction set or an operation that is not there
    ISO_NON_FINITE = 4,     // iso_error_layer() says where
    ISO_CAPACITY = 5,       // a session's cache is full
    ISO_INTERNAL = 6,
    ISO_IN_USE = 7,         // a session that another thread uses
    ISO_CORRUPTION = 8,     // an int8 linear's checksum failed twice; the sentence says where
};

enum { ISO_F32 = 0, ISO_BF16 = 1, ISO_INT8 = 2 };                      // storage of weights
enum { ISO_SILU = 0, ISO_GELU_ERF = 1, ISO_GELU_TANH = 2 };            // activations
enum { ISO_EXP = 0, ISO_LOG = 1, ISO_TANH = 2, ISO_ERF = 3, ISO_FN_SILU = 4, ISO_FN_GELU_ERF = 5, ISO_FN_GELU_TANH = 6 };
enum { ISO_ADD = 0, ISO_MUL = 1 };
enum { ISO_LAYER_EMBEDDING = -1, ISO_LAYER_OUTPUT = -2, ISO_LAYER_NONE = -3 };

// ---- state of the library ----
ISO_API int iso_abi(void);
ISO_API int iso_numerics_version(void);
ISO_API const char* iso_compiler(void);
ISO_API const char* iso_last_error(void);  // of this thread; "" when there was none
ISO_API int iso_error_layer(void);         // of this thread's last ISO_NON_FINITE
ISO_API const char* iso_isas(void);        // built in and runnable here, best last, separated by commas
ISO_API const char* iso_isas_built(void);
ISO_API const char* iso_isa(void);         // the one in use
ISO_API int iso_set_isa(const char* name); // process-wide; changes speed, never bits
ISO_API int iso_threads(void);
ISO_API int iso_set_threads(int threads);  // 1 .. 1024, the caller included
// For tests: the calling thread's floating-point control register (MXCSR, FPCR), which no call depends on or changes.
ISO_API uint64_t iso_float_state(void);
ISO_API void iso_set_float_state(uint64_t state);

// ---- operations ----
ISO_API int iso_function(int function, const float* x, float* y, size_t n);
ISO_API int iso_binary(int operation, const float* a, const float* b, float* y, size_t n);
ISO_API int iso_softmax(const float* x, float* y, size_t rows, size_t n);
ISO_API int iso_row_sum(const float* x, float* y, size_t rows, size_t n);
ISO_API int iso_rms_norm(const float* x, const float* w, float* y, size_t rows, size_t n, double eps, int unit_offset);
ISO_API int iso_layer_norm(const float* x, const float* w, const float* b, float* y, size_t rows, size_t n, double eps);
ISO_API int iso_embedding(const int32_t* ids, size_t rows, const void* table, int storage, size_t vocab, size_t n, float* y);
ISO_API int iso_rope_tables(const double* frequencies, size_t half, size_t positions, double attention_factor, float* cosines,
                            float* sines);
ISO_API int iso_rope(const float* x, const float* cosines, const float* sines, size_t half, size_t table_positions,
                     const int32_t* positions, size_t rows, size_t heads, size_t head_dim, float* y);
ISO_API int iso_attention(const float* q, const float* k, const float* v, const int32_t* positions, size_t rows, size_t keys,
                          size_t heads, size_t kv_heads, size_t head_dim, double scale, int64_t window, double softcap,
                          float* y);

typedef struct iso_linear iso_linear;  // packed weights
// w is f32, bf16, or int8 with scales[n]; it is packed as it is, or quantised where `packed` is ISO_INT8. checksums: of int8.
ISO_API int iso_linear_new(const void* w, int storage, const float* scales, size_t n, size_t k, const float* bias, int packed,
                           int checksums, iso_linear** out);
ISO_API void iso_linear_free(iso_linear* linear);
ISO_API int iso_linear_apply(const iso_linear* linear, const float* x, size_t rows, float* y);

// q[rows][k] and scales[rows] of int8; scales are NaN where x is not finite.
ISO_API int iso_quantise(const void* x, int storage, size_t rows, size_t k, int8_t* q, float* scales);

// ---- silent data corruption of int8 linears with checksums ----
typedef struct {
    char linear[128];  // the matrices, "a + b", cut off where it is too long
    uint64_t row, damaged_panels;
    int32_t recomputed;
} iso_fault;
ISO_API size_t iso_faults(iso_fault* out, size_t room);  // found by this thread's calls since it last asked; returns how many
ISO_API size_t iso_faults_waiting(void);
// For tests: flip a bit of one sum (kind 0: row of the call, packed output) or of one packed weight (kind 1: element is the byte)
// in the next `times` computations of that linear. Process-wide; the end returns how often it hit.
ISO_API int iso_inject_linear(int kind, const char* linear, size_t row, size_t element, int bit, int times);
ISO_API int iso_inject_linear_end(void);

// ---- digests, randomness, sampling ----
ISO_API int iso_blake3(const void* data, size_t bytes, uint8_t digest[32]);
ISO_API int iso_step_digests(const float* logits, size_t rows, size_t n, uint8_t* digests);  // 32 bytes a row
ISO_API int iso_philox(uint64_t key, const uint32_t counter[4], uint32_t out[4]);

typedef struct {
    double temperature, top_p, min_p, repetition_penalty;
    uint64_t seed;
    uint32_t candidate, position;
    int64_t top_k;
} iso_sampling;

// mask: ceil(n / 32) words, bit 1 = admitted, or NULL.
ISO_API int iso_sample(const float* logits, size_t n, const iso_sampling* parameters, const int32_t* history,
                       size_t history_length, const uint32_t* mask, int32_t* token, float* logprob);
ISO_API int iso_top_logprobs(const float* logits, size_t n, size_t count, int32_t* ids, float* logprobs);
ISO_API int iso_logprobs(const float* logits, size_t rows, size_t n, const int32_t* ids, float* logprobs);

// ---- decoder ----
typedef struct {
    const double* frequencies;
    int32_t count;  // of frequencies; twice as many dimensions are rotated
    double attention_factor;
} iso_rope_kind;

enum { ISO_QK_PLAIN = 0, ISO_QK_HEAD = 1, ISO_QK_PROJECTION = 2 };

typedef struct {
    int32_t vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, max_positions;
    int32_t experts, experts_per_token, expert_intermediate, normalise_experts;
    int32_t layer_norm, norm_offset, pre_norm, post_norm, qk_norm;
    int32_t gated, activation, learned_positions, tied;
    int32_t qkv_bias, o_bias, mlp_bias, output_bias;
    int32_t int8, checksums;
    int32_t rope_kinds;
    double eps, scale, embedding_multiplier, residual_multiplier, logit_divisor, attention_softcap, logit_softcap;
    const iso_rope_kind* ropes;
    const int32_t* windows;  // one a layer, 0: none
    const int32_t* rope_of;  // one a layer, -1: none
    const int32_t* sparse;   // one a layer, 1: experts in place of the MLP
} iso_decoder_config;

enum {  // which tensor iso_decoder_load brings
    // of the model
    ISO_EMBED, ISO_POSITIONS, ISO_FINAL_NORM, ISO_FINAL_NORM_BIAS, ISO_OUTPUT, ISO_OUTPUT_BIAS,
    // of a layer
    ISO_INPUT_NORM, ISO_INPUT_NORM_BIAS, ISO_POST_NORM, ISO_POST_NORM_BIAS, ISO_ATTENTION_OUTPUT_NORM, ISO_MLP_OUTPUT_NORM,
    ISO_Q, ISO_K, ISO_V, ISO_O, ISO_Q_BIAS, ISO_K_BIAS, ISO_V_BIAS, ISO_O_BIAS, ISO_Q_NORM, ISO_K_NORM,
    ISO_GATE, ISO_UP, ISO_DOWN, ISO_GATE_BIAS, ISO_UP_BIAS, ISO_DOWN_BIAS, ISO_ROUTER,
    // of an expert of a layer
    ISO_EXPERT_GATE, ISO_EXPERT_UP, ISO_EXPERT_DOWN, ISO_TENSORS,
};

typedef struct iso_decoder iso_decoder;
typedef struct iso_session iso_session;
ISO_API int iso_decoder_new(const iso_decoder_config* config, iso_decoder** out);
// layer and expert are ignored where the tensor has none; scales: of int8 rows, else NULL. Weights come before their biases.
ISO_API int iso_decoder_load(iso_decoder* decoder, int tensor, int layer, int expert, const void* data, int storage,
                             const float* scales, size_t rows, size_t columns);
ISO_API int iso_decoder_ready(iso_decoder* decoder);  // all tensors there? must precede sessions
ISO_API void iso_decoder_free(iso_decoder* decoder);  // after its sessions
ISO_API size_t iso_decoder_bytes(const iso_decoder* decoder);
ISO_API size_t iso_decoder_cache_bytes(const iso_decoder* decoder, size_t capacity);  // most that such a session takes
ISO_API size_t iso_decoder_cache_in_use(const iso_decoder* decoder);  // all pages of all sessions, shared ones once
ISO_API int iso_session_new(iso_decoder* decoder, size_t capacity, iso_session** out);
ISO_API int iso_session_fork(const iso_session* session, size_t capacity, size_t length, iso_session** out);
ISO_API void iso_session_free(iso_session* session);
ISO_API size_t iso_session_length(const iso_session* session);
ISO_API size_t iso_session_cache_bytes(const iso_session* session);
ISO_API int iso_session_truncate(iso_session* session, size_t length);

enum {                // what happens to the rows that get logits
    ISO_DRAW = 0,     // a token is drawn after each, as long as the drawn token is the next of `tokens`
    ISO_FORCED = 1,   // the next of `tokens` is given its log-probability (the last row: NaN)
    ISO_LOGITS = 2,   // nothing but the logits
};

enum {  // operations of a layer whose results can be digested, or damaged by iso_inject
    ISO_STAGE_ATTENTION_NORM, ISO_STAGE_QKV, ISO_STAGE_ROPE, ISO_STAGE_ATTENTION, ISO_STAGE_ATTENTION_RESIDUAL,
    ISO_STAGE_MLP_NORM, ISO_STAGE_MLP_INNER, ISO_STAGE_MLP_RESIDUAL, ISO_STAGES,
};

// One session's part of a step. The last `draws` (0 .. count) tokens get logits. In mode ISO_DRAW, row j draws the token
// after tokens[count - draws + j] from its own logits, mask row and position, with the history cut to what lies before;
// drawing stops at the first token that is not tokens[count - draws + j + 1], and before a later row that can't draw (its
// logits are not finite, its mask admits nothing): a step that begins there says why. The session keeps the tokens up to the one
// that drew last. Sampling's position is ignored. What lies beyond the accepted rows of the result arrays is arbitrary.
// Then follow up to `ahead` steps of plain decoding: the token drawn last is appended, and the next one drawn, until one of
// `ends` is drawn, or such a step fails; what was drawn before it stands. Not with a mask or a repetition penalty.
typedef struct {
    iso_session* session;
    const int32_t* tokens;   // count
    const int32_t* history;  // ids of prompt and answer so far, these tokens included; for the repetition penalty
    const uint32_t* mask;    // draws x ceil(vocab / 32), bit 1 = admitted; or NULL
    const int32_t* ends;     // ends_count
    int32_t* drawn;          // rows = draws + ahead
    float* logprobs;         // rows
    uint8_t* digests;        // rows x 32
    float* logits;           // rows x vocab, or NULL
    uint8_t* trace;          // rows x layers x ISO_STAGES x 32, or NULL
    uint64_t count, draws, ahead, history_length, ends_count;
    iso_sampling sampling;
    int32_t mode;
    int32_t code, layer, accepted;  // out: as a function's result, iso_error_layer, and rows that count
    char error[256];                // out
} iso_item;

// One pass over all layers for all items together. An item's error leaves its session as it was, and the others go on;
// only a lack of memory for the pass itself is an error of the call, and leaves all sessions as they were.
ISO_API int iso_decoder_step(iso_decoder* decoder, iso_item* items, size_t count);

// For tests: flip a bit of one element of a stage's result, of the row at a position, in every pass until cleared.
ISO_API int iso_inject(int layer, int stage, size_t position, size_t element, int bit);
ISO_API void iso_inject_clear(void);

#ifdef __cplusplus
}
#endif
#endif
