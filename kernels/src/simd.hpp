// A vector of binary32 lanes for the path being compiled (ISO_NS), as few operations as the micro-kernel needs.
//
// Invariant: every operation is one correctly rounded IEEE-754 operation a lane, so that a result does not depend on
// LANES. V is a native vector type: + - * / work on it directly (GCC and Clang). Functions are static: nothing here may
// be merged with another path's code by the linker.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(ISO_NEON)
#include <arm_neon.h>
#endif

namespace iso::ISO_NS {

typedef uint16_t bf16;  // the upper half of a binary32

#if defined(__AVX512F__)

typedef __m512 V;
enum { LANES = 16, TILE_ROWS = 12 };
static inline V broadcast(float x) { return _mm512_set1_ps(x); }
static inline V load(const float* p) { return _mm512_loadu_ps(p); }
static inline V load(const bf16* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
static inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }

#elif defined(__AVX2__)

typedef __m256 V;
enum { LANES = 8, TILE_ROWS = 6 };
static inline V broadcast(float x) { return _mm256_set1_ps(x); }
static inline V load(const float* p) { return _mm256_loadu_ps(p); }
static inline V load(const bf16* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
static inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }

#elif defined(ISO_NEON)  // every 64-bit ARM processor: 32 registers of 4 lanes

typedef float32x4_t V;
enum { LANES = 4, TILE_ROWS = 12 };
static inline V broadcast(float x) { return vdupq_n_f32(x); }
static inline V load(const float* p) { return vld1q_f32(p); }
static inline V load(const bf16* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline void store(float* p, V v) { vst1q_f32(p, v); }
static inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }

#else  // the baseline: 4 lanes, fma by binary64

// fma(a, b, c) of one lane from p = a * b, exact in binary64: the sum is rounded to odd (a last bit of 1 stands for
// "something was cut off"), after which the second rounding, to binary32, is that of the exact sum.
static inline float fma_by_rounding_to_odd(double p, double c) {
    double s = p + c;
    const double from_c = s - p;
    const double error = (p - (s - from_c)) + (c - from_c);  // exact (Knuth's TwoSum)
    uint64_t bits;
    memcpy(&bits, &s, 8);
    if ((error > 0 || error < 0) && !(bits & 1)) {
        bits += ((error > 0) == (s > 0)) ? 1 : uint64_t(-1);
        memcpy(&s, &bits, 8);
    }
    return float(s);
}

enum { LANES = 4, TILE_ROWS = 4 };

#if defined(__SSE2__)

typedef __m128 V;
static inline V broadcast(float x) { return _mm_set1_ps(x); }
static inline V load(const float* p) { return _mm_loadu_ps(p); }
static inline V load(const bf16* p) {
    const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), half));
}
static inline void store(float* p, V v) { _mm_storeu_ps(p, v); }

__attribute__((noinline, unused)) static V fma_carefully(V a, V b, V c) {
    float x[4], y[4], z[4];
    store(x, a), store(y, b), store(z, c);
    for (int i = 0; i < 4; ++i) z[i] = fma_by_rounding_to_odd(double(x[i]) * double(y[i]), double(z[i]));
    return load(z);
}

// Rounding a * b + c to binary64 and then to binary32 is right unless the first result is the midpoint of two binary32
// numbers (lower 29 bits 1000...), or subnormal as a binary32 (midpoints lie elsewhere): those take the careful way.
static inline V fma(V a, V b, V c) {
    const __m128d low = _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), _mm_cvtps_pd(c));
    const __m128d high = _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(_mm_movehl_ps(a, a)), _mm_cvtps_pd(_mm_movehl_ps(b, b))),
                                    _mm_cvtps_pd(_mm_movehl_ps(c, c)));
    const __m128 even = _mm_shuffle_ps(_mm_castpd_ps(low), _mm_castpd_ps(high), _MM_SHUFFLE(2, 0, 2, 0));
    const __m128 odd = _mm_shuffle_ps(_mm_castpd_ps(low), _mm_castpd_ps(high), _MM_SHUFFLE(3, 1, 3, 1));
    const __m128i cut = _mm_and_si128(_mm_castps_si128(even), _mm_set1_epi32(0x1FFFFFFF));
    const __m128i midpoint = _mm_cmpeq_epi32(cut, _mm_set1_epi32(0x10000000));
    // Upper halves, sign off, as integers: below 0x38100000 is below 2^-126; 0 with a zero lower half is a zero, harmless.
    const __m128i magnitude = _mm_and_si128(_mm_castps_si128(odd), _mm_set1_epi32(0x7FFFFFFF));
    const __m128i small = _mm_cmplt_epi32(magnitude, _mm_set1_epi32(0x38100000));
    const __m128i zero = _mm_cmpeq_epi32(magnitude, _mm_setzero_si128());
    if (__builtin_expect(_mm_movemask_epi8(_mm_or_si128(midpoint, _mm_andnot_si128(zero, small))), 0))
        return fma_carefully(a, b, c);
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
}

#else

typedef float V __attribute__((vector_size(16)));
static inline V broadcast(float x) { return V{x, x, x, x}; }
static inline V load(const float* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline V load(const bf16* p) {
    uint32_t bits[4];
    for (int i = 0; i < 4; ++i) bits[i] = uint32_t(p[i]) << 16;
    V v;
    memcpy(&v, bits, sizeof v);
    return v;
}
static inline void store(float* p, V v) { memcpy(p, &v, sizeof v); }
static inline V fma(V a, V b, V c) {
    for (int i = 0; i < 4; ++i) {
#if defined(__FP_FAST_FMAF)
        c[i] = __builtin_fmaf(a[i], b[i], c[i]);  // one instruction on this processor
#else
        c[i] = fma_by_rounding_to_odd(double(a[i]) * double(b[i]), double(c[i]));
#endif
    }
    return c;
}

#endif
#endif

// to[j][i] = from[i][j] for i, j < 4; strides in floats.
static inline void transpose4(const float* from, size_t stride, float* to, size_t to_stride) {
#if defined(__SSE2__)
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride), c = _mm_loadu_ps(from + 2 * stride),
           d = _mm_loadu_ps(from + 3 * stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a), _mm_storeu_ps(to + to_stride, b), _mm_storeu_ps(to + 2 * to_stride, c),
        _mm_storeu_ps(to + 3 * to_stride, d);
#elif defined(ISO_NEON)
    const float32x4x2_t ab = vtrnq_f32(vld1q_f32(from), vld1q_f32(from + stride));
    const float32x4x2_t cd = vtrnq_f32(vld1q_f32(from + 2 * stride), vld1q_f32(from + 3 * stride));
    for (int j = 0; j < 2; ++j) {
        vst1q_f32(to + j * to_stride, vcombine_f32(vget_low_f32(ab.val[j]), vget_low_f32(cd.val[j])));
        vst1q_f32(to + (j + 2) * to_stride, vcombine_f32(vget_high_f32(ab.val[j]), vget_high_f32(cd.val[j])));
    }
#else
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i) to[j * to_stride + i] = from[i * stride + j];
#endif
}

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace iso::ISO_NS
