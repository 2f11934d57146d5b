// Vectors of int32 sums for the path being compiled (ISO_NS), and the one step that adds four int8 products to each lane.
//
// Invariant: dot() is exact. Nothing in it may saturate: vpdpbusd wraps modulo 2^32 like the sum it stands for, and
// vpmaddubsw only sees |x| and w with x's sign, whose pairs stay below 2^15 because neither is ever -128. So the order
// in which lanes, groups and tiles are added is free, and every path has the same bits.
#pragma once
#include "simd.hpp"

namespace iso::ISO_NS {

// Activations are stored as q xor FLIP; each Spread holds one row's group of four, for all lanes.
#if defined(__AVX512VNNI__)

typedef __m512i Sums;
struct Spread {
    __m512i x;
};
enum { INT8_LANES = 16, INT8_ROWS = 12, INT8_VECTORS = 2, FLIP = 0x80 };  // q + 128 as an unsigned byte
static inline Sums no_sums() { return _mm512_setzero_si512(); }
static inline Sums load_sums(const void* p) { return _mm512_loadu_si512(p); }
static inline void store_sums(int32_t* p, Sums v) { _mm512_storeu_si512(p, v); }
static inline Sums add_sums(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
static inline Spread spread(const uint8_t* four) {
    int32_t word;
    memcpy(&word, four, 4);
    return {_mm512_set1_epi32(word)};
}
static inline Sums dot(Sums c, Spread x, Sums w) {
    // _mm512_dpbusd_epi32, in place: GCC 12 copies every sum of an unrolled loop around the intrinsic, and spills.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(x.x), "v"(w));
    return c;
}

#elif defined(__AVX512BW__)

typedef __m512i Sums;
struct Spread {
    __m512i magnitude;
    __mmask64 negative;
};
enum { INT8_LANES = 16, INT8_ROWS = 12, INT8_VECTORS = 2, FLIP = 0 };
static inline Sums no_sums() { return _mm512_setzero_si512(); }
static inline Sums load_sums(const void* p) { return _mm512_loadu_si512(p); }
static inline void store_sums(int32_t* p, Sums v) { _mm512_storeu_si512(p, v); }
static inline Sums add_sums(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
static inline Spread spread(const uint8_t* four) {
    int32_t word;
    memcpy(&word, four, 4);
    const __m512i x = _mm512_set1_epi32(word);
    return {_mm512_abs_epi8(x), _mm512_movepi8_mask(x)};
}
static inline Sums dot(Sums c, Spread x, Sums w) {
    const __m512i turned = _mm512_mask_sub_epi8(w, x.negative, _mm512_setzero_si512(), w);
    const __m512i pairs = _mm512_maddubs_epi16(x.magnitude, turned);
    return _mm512_add_epi32(c, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

#elif defined(__AVX2__)

typedef __m256i Sums;
struct Spread {
    __m256i x, magnitude;
};
enum { INT8_LANES = 8, INT8_ROWS = 4, INT8_VECTORS = 2, FLIP = 0 };
static inline Sums no_sums() { return _mm256_setzero_si256(); }
static inline Sums load_sums(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline void store_sums(int32_t* p, Sums v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
static inline Sums add_sums(Sums a, Sums b) { return _mm256_add_epi32(a, b); }
static inline Spread spread(const uint8_t* four) {
    int32_t word;
    memcpy(&word, four, 4);
    const __m256i x = _mm256_set1_epi32(word);
    return {x, _mm256_abs_epi8(x)};
}
static inline Sums dot(Sums c, Spread x, Sums w) {
    const __m256i pairs = _mm256_maddubs_epi16(x.magnitude, _mm256_sign_epi8(w, x.x));
    return _mm256_add_epi32(c, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#elif defined(__SSE2__)

typedef __m128i Sums;
struct Spread {
    __m128i x;  // the four as int16, twice
};
enum { INT8_LANES = 4, INT8_ROWS = 4, INT8_VECTORS = 2, FLIP = 0 };
static inline Sums no_sums() { return _mm_setzero_si128(); }
static inline Sums load_sums(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline void store_sums(int32_t* p, Sums v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
static inline Sums add_sums(Sums a, Sums b) { return _mm_add_epi32(a, b); }
static inline Spread spread(const uint8_t* four) {
    int32_t word;
    memcpy(&word, four, 4);
    const __m128i x = _mm_set1_epi32(word);
    return {_mm_srai_epi16(_mm_unpacklo_epi8(x, x), 8)};
}
static inline Sums dot(Sums c, Spread x, Sums w) {
    const __m128 low = _mm_castsi128_ps(_mm_madd_epi16(_mm_srai_epi16(_mm_unpacklo_epi8(w, w), 8), x.x));
    const __m128 high = _mm_castsi128_ps(_mm_madd_epi16(_mm_srai_epi16(_mm_unpackhi_epi8(w, w), 8), x.x));
    const __m128i even = _mm_castps_si128(_mm_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0)));
    const __m128i odd = _mm_castps_si128(_mm_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1)));
    return _mm_add_epi32(c, _mm_add_epi32(even, odd));
}

#elif defined(ISO_NEON)  // by widening products; sdot is not in every processor

typedef int32x4_t Sums;
struct Spread {
    int8x8_t x;  // the four, twice
};
enum { INT8_LANES = 4, INT8_ROWS = 8, INT8_VECTORS = 2, FLIP = 0 };
static inline Sums no_sums() { return vdupq_n_s32(0); }
static inline Sums load_sums(const void* p) { return vreinterpretq_s32_s8(vld1q_s8(static_cast<const int8_t*>(p))); }
static inline void store_sums(int32_t* p, Sums v) { vst1q_s32(p, v); }
static inline Sums add_sums(Sums a, Sums b) { return vaddq_s32(a, b); }
static inline Spread spread(const uint8_t* four) {
    int32_t word;
    memcpy(&word, four, 4);
    return {vreinterpret_s8_s32(vdup_n_s32(word))};
}
static inline Sums dot(Sums c, Spread x, Sums w) {
    const int8x16_t bytes = vreinterpretq_s8_s32(w);
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(bytes), x.x));
    const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(bytes), x.x));
    return vaddq_s32(c, vpaddq_s32(low, high));
}

#else  // any processor: a path of its own fills these seven

struct Sums {
    int32_t lane[4];
};
struct Spread {
    int8_t x[4];
};
enum { INT8_LANES = 4, INT8_ROWS = 4, INT8_VECTORS = 2, FLIP = 0 };
static inline Sums no_sums() { return {{0, 0, 0, 0}}; }
static inline Sums load_sums(const void* p) {
    Sums v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store_sums(int32_t* p, Sums v) { memcpy(p, &v, sizeof v); }
static inline Sums add_sums(Sums a, Sums b) {
    for (int i = 0; i < 4; ++i) a.lane[i] += b.lane[i];
    return a;
}
static inline Spread spread(const uint8_t* four) {
    Spread s;
    memcpy(s.x, four, 4);
    return s;
}
static inline Sums dot(Sums c, Spread x, Sums w) {
    int8_t bytes[16];
    memcpy(bytes, &w, 16);
    for (int i = 0; i < 16; ++i) c.lane[i / 4] += int32_t(x.x[i % 4]) * bytes[i];
    return c;
}

#endif

}  // namespace iso::ISO_NS
