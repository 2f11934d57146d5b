// Correctly rounded binary32 cosine and sine of a binary64 angle, for rope tables (NUMERICS.md, section 5).
//
// sincos64 errs by less than a unit of binary64, so rounding its result is right unless it lies within a unit or two of
// the midpoint of two binary32 numbers. There, about once in 2^27 entries, the value is computed again as the sum of two
// binary64 ("double-double", Dekker 1971), good to 2^-95, and the side of the midpoint on which it lies decides.
#pragma once
#include "functions.hpp"

namespace iso::ISO_NS {

struct Double2 {  // high + low, |low| at most half a unit of high
    double high, low;
};

static inline Double2 quick_sum(double a, double b) {  // |a| >= |b|
    const double s = a + b;
    return {s, b - (s - a)};
}

static inline Double2 exact_product(double a, double b) {
    const double split_a = a * 134217729.0, split_b = b * 134217729.0;  // 2^27 + 1
    const double ah = split_a - (split_a - a), bh = split_b - (split_b - b);
    const double al = a - ah, bl = b - bh, p = a * b;
    return {p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
}

static inline Double2 sum(Double2 a, Double2 b) {
    const double s = a.high + b.high, v = s - a.high;
    const double error = (a.high - (s - v)) + (b.high - v);
    return quick_sum(s, error + (a.low + b.low));
}

static inline Double2 product(Double2 a, Double2 b) {
    const Double2 p = exact_product(a.high, b.high);
    return quick_sum(p.high, p.low + (a.high * b.low + a.low * b.high));
}

static inline Double2 quotient(Double2 a, double d) {
    const double q = a.high / d;
    const Double2 back = exact_product(q, d);
    return quick_sum(q, (((a.high - back.high) - back.low) + a.low) / d);
}

// Taylor series from `first`: sine with odd = 1 (first = x), cosine with odd = 0 (first = 1); |x| <= pi/4.
static inline Double2 series(Double2 x, Double2 first, int odd) {
    const Double2 square = product(x, x);
    Double2 term = first, total = first;
    for (int k = 2; k <= 28; k += 2) {
        term = quotient(product(term, square), -double((k - 1 + odd) * (k + odd)));
        total = sum(total, term);
    }
    return total;
}

static inline bool near_midpoint(double x) { return ((bits_of(x) + 2) & 0x1fffffffu) - 0x0ffffffeu <= 6u; }

// high + low rounded once: only at an exact midpoint does the lower part decide.
static inline float rounded(Double2 x) {
    if ((bits_of(x.high) & 0x1fffffffu) != 0x10000000u || x.low == 0.0) return float(x.high);
    const bool outwards = (x.low > 0) == (x.high > 0);
    return float(double_of(bits_of(x.high) + (outwards ? 1u : -std::uint64_t(1))));
}

static inline float carefully(double angle, bool cosine) {
    const double absolute = double_of(bits_of(angle) & 0x7fffffffffffffffu);
    const ReducedAngle reduced = reduce_angle(absolute);
    const unsigned quadrant = (reduced.quadrant + (cosine ? 1 : 0)) & 3;  // cos(x) = sin(x + pi/2)
    const Double2 x = {reduced.high, reduced.low};
    Double2 y = quadrant & 1 ? series(x, {1.0, 0.0}, 0) : series(x, x, 1);
    const bool negative = ((quadrant & 2) != 0) != (!cosine && absolute != angle);
    if (negative) y = {-y.high, -y.low};
    return rounded(y);
}

static inline void cr_sincos(double angle, float* sine, float* cosine) {
    double s, c;
    sincos64(angle, &s, &c);
    *sine = near_midpoint(s) ? carefully(angle, false) : float(s);
    *cosine = near_midpoint(c) ? carefully(angle, true) : float(c);
}

}  // namespace iso::ISO_NS
