// Correctly rounded exp, log, tanh and erf of a binary32 value, and the binary64 sine and cosine of rope tables.
//
// Contract
//   cr_exp, cr_log, cr_tanh, cr_erf return the binary32 value nearest to the mathematical function of their argument
//   (ties to even, subnormal results included). That fixes every bit, so the code below may change and its results may
//   not: `make verify-math` compares all 2^32 arguments of each function with a correctly rounded reference.
//     NaN (any)            -> the quiet NaN 0x7fc00000, always: no payload or sign is handed on
//     exp                  -> +inf above the overflow threshold and of +inf; +0 of -inf and below the underflow threshold
//     log                  -> -inf of both zeros, NaN (0x7fc00000) of every other negative value and -inf; +inf of +inf
//     tanh, erf            -> the argument's zero with its sign; +-1 of +-inf
//   *_array(x, y, n) applies the function to n elements; x and y are disjoint or the same array.
//   sincos64 returns binary64 sine and cosine with an error below one unit in the last place, of any finite angle.
//
// Invariants
//   Only operations that IEEE 754 rounds correctly occur (add, subtract, multiply, divide, conversions; no fma, no call
//   of the platform's mathematical library), so every instruction set computes the same bits by construction. It must be
//   compiled with -ffp-contract=off, without -ffast-math, and run with round-to-nearest and subnormals kept.
//   The file is compiled once an instruction set: ISO_NS names that set's namespace, and everything here has internal
//   linkage, for an inline function compiled twice would be merged by the linker.
//   The cores hold no branch: special cases are blended in with integer masks, which leaves the compiler free to
//   vectorise the array loops (a conditional expression would let it move arithmetic into a branch and then refuse).
//
// Constants are derived by kernels/verify/coefficients.py; nothing is taken from another library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef ISO_NS
#error "define ISO_NS (the namespace of the instruction set that this file is compiled for) first"
#endif

#define ISO_INLINE static inline __attribute__((always_inline))

namespace iso {
namespace ISO_NS {

// ---------------------------------------------------------------------------------------------------------------------
// Bits

ISO_INLINE std::uint32_t bits_of(float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}
ISO_INLINE std::uint64_t bits_of(double x) {
    std::uint64_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}
ISO_INLINE float float_of(std::uint32_t u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}
ISO_INLINE double double_of(std::uint64_t u) {
    double x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

// a where the condition holds, b elsewhere, without a branch.
ISO_INLINE std::uint32_t blend(bool condition, std::uint32_t a, std::uint32_t b) {
    const std::uint32_t mask = -static_cast<std::uint32_t>(condition);
    return (a & mask) | (b & ~mask);
}
ISO_INLINE double blend(bool condition, double a, double b) {
    const std::uint64_t mask = -static_cast<std::uint64_t>(condition);
    return double_of((bits_of(a) & mask) | (bits_of(b) & ~mask));
}
ISO_INLINE std::uint32_t lesser(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }

constexpr std::uint32_t kQuietNaN = 0x7fc00000u;
constexpr std::uint32_t kInfinity = 0x7f800000u;
constexpr std::uint32_t kSign = 0x80000000u;

// Adding this to |z| < 2^51 rounds z to an integer (ties to even), which then stands in the low bits of the sum.
constexpr double kToInteger = 0x1.8p52;

constexpr double kInverseLn2 = 0x1.71547652b82fep+0;
constexpr double kLn2 = 0x1.62e42fefa39efp-1;
// ln 2 in two parts; the first has 40 bits, so its product with an exponent is exact.
constexpr double kLn2High = 0x1.62e42fefa4000p-1;
constexpr double kLn2Low = -0x1.8432a1b0e2634p-43;

// a + b for |a| >= |b| or a = 0, rounded to odd: an inexact sum never looks like a tie to the conversion to binary32 that
// follows, which thus rounds as if it had seen a + b itself. (An exact sum may move by one unit, too: it is either no
// tie, and stays off one, or only an approximation of the function.)
ISO_INLINE double add_to_odd(double a, double b) {
    const double sum = a + b;
    const double error = b - (sum - a);
    const std::uint64_t toward_zero = (bits_of(sum) ^ bits_of(error)) >> 63;
    return double_of((bits_of(sum) - toward_zero) | 1u);
}

// ---------------------------------------------------------------------------------------------------------------------
// Cores: binary64, no special cases

// exp(r) - 1 for |r| <= ln(2)/2, as r + r^2 q(r); error about half a unit in the last place.
ISO_INLINE double expm1_reduced(double r) {
    const double r2 = r * r;
    const double r4 = r2 * r2;
    const double q01 = 0x1.0000000000009p-1 + 0x1.5555555555558p-3 * r;
    const double q23 = 0x1.55555555503d3p-5 + 0x1.111111110f7fep-7 * r;
    const double q45 = 0x1.6c16c18605e4bp-10 + 0x1.a01a01b00e9fdp-13 * r;
    const double q67 = 0x1.a01993a8367b0p-16 + 0x1.71ddf6ad02c9fp-19 * r;
    const double q89 = 0x1.28b41b74c961fp-22 + 0x1.af6337e63ab96p-26 * r;
    const double q = (q01 + q23 * r2) + r4 * ((q45 + q67 * r2) + r4 * q89);
    return r + r2 * q;
}

// exp(x) for |x| <= 105: x = k ln 2 + r, result 2^k (1 + (exp(r) - 1)).
ISO_INLINE double exp_core(double x) {
    const double shifted = x * kInverseLn2 + kToInteger;
    const double k = shifted - kToInteger;
    const double r = (x - k * kLn2High) - k * kLn2Low;
    const double p = 1.0 + expm1_reduced(r);
    return double_of(bits_of(p) + (bits_of(shifted) << 52));
}

// log(x) for a positive finite binary32 x (as binary64, hence never subnormal): x = 2^k (1 + f) with 1 + f in
// [sqrt(1/2), sqrt(2)), s = f / (2 + f), log(1 + f) = f - f^2/2 + s (f^2/2 + s^2 P(s^2)).
// f^2/2 and f - f^2/2 are exact: f has at most 24 bits and is a multiple of 2^-24.
ISO_INLINE double log_core(double x) {
    const std::uint64_t bits = bits_of(x);
    const std::uint64_t k_biased = (bits + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu)) >> 52;
    const double f = double_of(bits + 0x3ff0000000000000u - (k_biased << 52)) - 1.0;
    const double k = double_of(0x4338000000000000u + k_biased) - (kToInteger + 1023.0);
    const double s = f / (2.0 + f);
    const double half_square = 0.5 * f * f;
    const double z = s * s;
    const double z2 = z * z;
    const double p01 = 0x1.555555555557cp-1 + 0x1.9999999984705p-2 * z;
    const double p23 = 0x1.2492493fbcae8p-2 + 0x1.c71c52b0638f2p-3 * z;
    const double p45 = 0x1.74664b04ade62p-3 + 0x1.399cd2b1dd778p-3 * z;
    const double p = (p01 + p23 * z2) + (z2 * z2) * (p45 + 0x1.2f5486ab90ba5p-3 * z2);
    // The exact sum of the two leading terms is high + rest, and the terms left are small: only the last addition rounds
    // noticeably, and it rounds to odd.
    const double exponent = k * kLn2High;
    const double leading = f - half_square;
    const double high = exponent + leading;
    const double rest = leading - (high - exponent);
    const double tail = s * (half_square + z * p) + (k * kLn2Low + rest);
    return add_to_odd(high, tail);
}

// tanh(x) for 0 <= x <= 10, as e / (e + 2) with e = exp(2x) - 1 = 2^k (exp(r) - 1) + (2^k - 1).
ISO_INLINE double tanh_core(double x) {
    const double twice = x + x;
    const double shifted = twice * kInverseLn2 + kToInteger;
    const double k = shifted - kToInteger;
    const double r = (twice - k * kLn2High) - k * kLn2Low;
    const double power = double_of(0x3ff0000000000000u + (bits_of(shifted) << 52));
    const double e = power * expm1_reduced(r) + (power - 1.0);
    return e / (e + 2.0);
}

// erf(x) for 0 <= x <= 3.9375. Below 1.25: (2/sqrt(pi)) x + x (x^2 Q(x^2)), the constant split so that the first product
// is exact. From there on: 1 - 2^y, with y a polynomial fit of log2(erfc(x)). Both are always computed, one is taken.
ISO_INLINE double erf_core(double x) {
    const double u = x * x;
    const double u2 = u * u;
    const double u4 = u2 * u2;
    const double p0 = 0x1.0a6db446b8ea4p-30 - 0x1.812746b0379e6p-2 * u;
    const double p1 = 0x1.ce2f21a042ab1p-4 - 0x1.b82ce3128245dp-6 * u;
    const double p2 = 0x1.565bcd0d65d1ep-8 - 0x1.c02db3d192fdfp-11 * u;
    const double p3 = 0x1.f9a321bb06fe4p-14 - 0x1.f4d1f7dfdac32p-17 * u;
    const double p4 = 0x1.b9e19f9ae97fdp-20 - 0x1.5f448bd84a6a6p-23 * u;
    const double p5 = 0x1.fa5d1ed81a110p-27 - 0x1.47109c6baae76p-30 * u;
    const double p6 = 0x1.5dec53c3d82b8p-34 - 0x1.cd4d700867132p-39 * u;
    const double p = ((p0 + p1 * u2) + (p2 + p3 * u2) * u4) + (u4 * u4) * ((p4 + p5 * u2) + p6 * u4);
    const double small_result = x * 0x1.20dd750000000p+0 + x * p;

    const double v = x - 1.25;
    const double v2 = v * v;
    const double v4 = v2 * v2;
    const double q0 = -0x1.d93b7b3fd231ep+1 - 0x1.1b4025315d8a9p+2 * v;
    const double q1 = -0x1.419dc30a8c6f5p+0 - 0x1.82503473f689bp-5 * v;
    const double q2 = 0x1.705be64d0122cp-7 - 0x1.2fde827758208p-9 * v;
    const double q3 = 0x1.75515e7678a1cp-12 - 0x1.e50c30bf74c75p-17 * v;
    const double q4 = -0x1.074a7cf859cfap-16 + 0x1.fb4be873799c4p-18 * v;
    const double q5 = -0x1.284c2a3dee5d9p-19 + 0x1.f593fabaffa2fp-22 * v;
    const double q6 = -0x1.30e72b540003bp-24 + 0x1.e5daf304bcf51p-28 * v;
    const double q7 = -0x1.94c5e7fa74892p-32 + 0x1.1e45d06feb65cp-38 * v;
    const double y = ((q0 + q1 * v2) + (q2 + q3 * v2) * v4) + (v4 * v4) * ((q4 + q5 * v2) + (q6 + q7 * v2) * v4);
    const double shifted = y + kToInteger;
    const double r = (y - (shifted - kToInteger)) * kLn2;
    const double power = double_of(0x3ff0000000000000u + (bits_of(shifted) << 52));
    const double large_result = (1.0 - power) - power * expm1_reduced(r);
    return blend(x < 1.25, small_result, large_result);
}

// ---------------------------------------------------------------------------------------------------------------------
// binary32 functions

ISO_INLINE float cr_exp(float x) {
    const std::uint32_t sign = bits_of(x) & kSign;
    const std::uint32_t magnitude = bits_of(x) & ~kSign;
    // From 105 and -105 on the conversion to binary32 yields the result that it has there: +inf and +0.
    const float bounded = float_of(lesser(magnitude, bits_of(105.0f)) | sign);
    const float result = static_cast<float>(exp_core(static_cast<double>(bounded)));
    return float_of(blend(magnitude > kInfinity, kQuietNaN, bits_of(result)));
}

ISO_INLINE float cr_log(float x) {
    const std::uint32_t bits = bits_of(x);
    const float result = static_cast<float>(log_core(static_cast<double>(x)));
    std::uint32_t special = blend((bits << 1) == 0, kSign | kInfinity, kQuietNaN);
    special = blend(bits == kInfinity, kInfinity, special);
    const bool is_special = bits - 1u >= kInfinity - 1u;  // all but 0 < x < inf
    return float_of(blend(is_special, special, bits_of(result)));
}

ISO_INLINE float cr_tanh(float x) {
    const std::uint32_t sign = bits_of(x) & kSign;
    const std::uint32_t magnitude = bits_of(x) & ~kSign;
    const float bounded = float_of(lesser(magnitude, bits_of(10.0f)));  // tanh(10) rounds to 1
    const float result = static_cast<float>(tanh_core(static_cast<double>(bounded)));
    return float_of(blend(magnitude > kInfinity, kQuietNaN, bits_of(result) | sign));
}

ISO_INLINE float cr_erf(float x) {
    const std::uint32_t sign = bits_of(x) & kSign;
    const std::uint32_t magnitude = bits_of(x) & ~kSign;
    const float bounded = float_of(lesser(magnitude, bits_of(3.9375f)));  // erf(3.9375) rounds to 1
    const float result = static_cast<float>(erf_core(static_cast<double>(bounded)));
    return float_of(blend(magnitude > kInfinity, kQuietNaN, bits_of(result) | sign));
}

static inline void exp_array(const float* x, float* y, std::size_t n) {
#pragma GCC ivdep
    for (std::size_t i = 0; i < n; ++i) y[i] = cr_exp(x[i]);
}
static inline void log_array(const float* x, float* y, std::size_t n) {
#pragma GCC ivdep
    for (std::size_t i = 0; i < n; ++i) y[i] = cr_log(x[i]);
}
static inline void tanh_array(const float* x, float* y, std::size_t n) {
#pragma GCC ivdep
    for (std::size_t i = 0; i < n; ++i) y[i] = cr_tanh(x[i]);
}
static inline void erf_array(const float* x, float* y, std::size_t n) {
#pragma GCC ivdep
    for (std::size_t i = 0; i < n; ++i) y[i] = cr_erf(x[i]);
}

// ---------------------------------------------------------------------------------------------------------------------
// binary64 sine and cosine

__extension__ typedef unsigned __int128 uint128;

// An angle reduced to quadrant * pi/2 + (high + low), |high| <= pi/4.
struct ReducedAngle {
    double high;
    double low;
    unsigned quadrant;
};

// Reduces a finite angle >= 0 after Payne and Hanek: the angle is an integer m < 2^53 times 2^e, and only the 192 bits
// of 2/pi that decide m 2^e (2/pi) modulo 4 down to 2^-137 take part, in exact integer arithmetic.
static inline ReducedAngle reduce_angle(double angle) {
    static const std::uint64_t kTwoOverPi[20] = {  // a word of zeros, then 1216 bits of 2/pi
        0x0000000000000000u, 0xa2f9836e4e441529u, 0xfc2757d1f534ddc0u, 0xdb6295993c439041u, 0xfe5163abdebbc561u,
        0xb7246e3a424dd2e0u, 0x06492eea09d1921cu, 0xfe1deb1cb129a73eu, 0xe88235f52ebb4484u, 0xe99c7026b45f7e41u,
        0x3991d639835339f4u, 0x9c845f8bbdf9283bu, 0x1ff897ffde05980fu, 0xef2f118b5a0a6d1fu, 0x6d367ecf27cb09b7u,
        0x4f463f669e5fea2du, 0x7527bac7ebe5f17bu, 0x3d0739f78a5292eau, 0x6bfb5fb11f8d5d08u, 0x56033046fc7b6babu};
    if (angle <= 0x1.921fb54442d18p-1) return {angle, 0.0, 0};

    const std::uint64_t bits = bits_of(angle);
    const std::uint64_t m = (bits & 0x000fffffffffffffu) | 0x0010000000000000u;
    const int e = static_cast<int>(bits >> 52) - 1075;
    // Bit i of 2/pi (weight 2^-i, i >= 1) stands at position i + 63 of the table. It contributes m 2^(e-i): from i = e-1
    // on, where that is less than a multiple of 4.
    const unsigned position = static_cast<unsigned>(e - 1 + 63);
    const unsigned word = position / 64;
    const unsigned shift = position % 64;
    std::uint64_t window[3];
    for (unsigned i = 0; i < 3; ++i) {
        const uint128 pair = (static_cast<uint128>(kTwoOverPi[word + i]) << 64) | kTwoOverPi[word + i + 1];
        window[i] = static_cast<std::uint64_t>(pair >> (64 - shift));
    }
    const uint128 low = static_cast<uint128>(window[2]) * m;
    const uint128 middle = static_cast<uint128>(window[1]) * m + static_cast<std::uint64_t>(low >> 64);
    const std::uint64_t high = window[0] * m + static_cast<std::uint64_t>(middle >> 64);
    // The product modulo 4: two bits of quadrant, then the fraction, of which 128 bits are kept.
    uint128 fraction = (static_cast<uint128>(high) << 64) | static_cast<std::uint64_t>(middle);
    unsigned quadrant = static_cast<unsigned>(high >> 62);
    fraction = (fraction << 2) | (static_cast<std::uint64_t>(low) >> 62);
    const bool negative = (fraction >> 127) != 0;  // nearer to the next quadrant
    if (negative) {
        fraction = -fraction;
        quadrant = (quadrant + 1) & 3;
    }

    // As a sum of two binary64. A binary64 is never nearer than 2^-62 to a multiple of pi/2: fraction is not zero, and
    // keeps more than 60 significant bits.
    const std::uint64_t top = static_cast<std::uint64_t>(fraction >> 64);
    const int zeros = top != 0 ? __builtin_clzll(top) : 64;
    fraction <<= zeros;
    const std::uint64_t first = static_cast<std::uint64_t>(fraction >> 75);
    const std::uint64_t second = static_cast<std::uint64_t>(fraction >> 22) & 0x001fffffffffffffu;
    const double unit = double_of(static_cast<std::uint64_t>(1023 - 53 - zeros) << 52);
    const double a = static_cast<double>(static_cast<std::int64_t>(first)) * unit;
    const double b = static_cast<double>(static_cast<std::int64_t>(second)) * (unit * 0x1p-53);

    // Times pi/2, in double-double; Dekker's splitting gives the exact product of the leading parts.
    const double half_pi = 0x1.921fb54442d18p+0;
    const double half_pi_low = 0x1.1a62633145c07p-54;
    const double half_pi_head = 0x1.921fb50000000p+0;
    const double half_pi_tail = half_pi - half_pi_head;
    const double split = a * 134217729.0;
    const double head = split - (split - a);
    const double tail = a - head;
    const double product = a * half_pi;
    const double error =
        ((head * half_pi_head - product) + head * half_pi_tail + tail * half_pi_head) + tail * half_pi_tail;
    const double rest = error + (a * half_pi_low + b * half_pi);
    const double sum = product + rest;
    const double left = rest - (sum - product);
    return negative ? ReducedAngle{-sum, -left, quadrant} : ReducedAngle{sum, left, quadrant};
}

// sin and cos of any finite angle (radians); NaN of infinities and NaN. The error stays below one unit in the last
// place of binary64, so a binary32 table made from it is correctly rounded but for about one entry in 2^28.
static inline void sincos64(double angle, double* sine, double* cosine) {
    const bool negative = (bits_of(angle) >> 63) != 0;
    const double absolute = double_of(bits_of(angle) & 0x7fffffffffffffffu);
    if (!(absolute <= 0x1.fffffffffffffp+1023)) {
        *sine = *cosine = double_of(0x7ff8000000000000u);
        return;
    }
    const ReducedAngle reduced = reduce_angle(absolute);
    const double r = reduced.high;
    const double c = reduced.low;
    const double z = r * r;
    const double s_poly =
        -0x1.5555555555555p-3 +
        z * (0x1.111111111110cp-7 +
             z * (-0x1.a01a01a018c6ep-13 +
                  z * (0x1.71de3a5344500p-19 +
                       z * (-0x1.ae645292bf51cp-26 + z * (0x1.612086077b40dp-33 + z * -0x1.aa9b9e5d3d434p-41)))));
    const double c_poly =
        0x1.5555555555555p-5 +
        z * (-0x1.6c16c16c16c15p-10 +
             z * (0x1.a01a01a01975ap-16 +
                  z * (-0x1.27e4fb7694661p-22 +
                       z * (0x1.1eed8d40c91afp-29 + z * (-0x1.9393dc88a4f9ep-37 + z * 0x1.ab09dcbabc691p-45)))));
    const double half = 0.5 * z;
    const double sin_r = r + (c + (z * r * s_poly - half * c));
    const double w = 1.0 - half;
    const double cos_r = w + (((1.0 - w) - half) + (z * z * c_poly - r * c));

    const bool swap = (reduced.quadrant & 1) != 0;
    const double s = swap ? cos_r : sin_r;
    const double t = swap ? sin_r : cos_r;
    const bool negate_sine = ((reduced.quadrant & 2) != 0) != negative;
    const bool negate_cosine = ((reduced.quadrant + 1) & 2) != 0;
    *sine = negate_sine ? -s : s;
    *cosine = negate_cosine ? -t : t;
}

}  // namespace ISO_NS
}  // namespace iso
