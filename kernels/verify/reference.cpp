#include "reference.hpp"

#include <cmath>
#include <cstring>

namespace {

constexpr std::uint32_t kQuietNaN = 0x7fc00000u;
constexpr double kBound = 0x1p-42;
constexpr std::uint32_t kSampled = 4096;

std::uint32_t bits_of(float x) {
    std::uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}

float float_of(std::uint32_t u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}

double platform(Function function, double x) {
    switch (function) {
        case kExp: return std::exp(x);
        case kLog: return std::log(x);
        case kTanh: return std::tanh(x);
        default: return std::erf(x);
    }
}

// NaN by definition; all other arguments have a numerical result or an infinity.
bool is_undefined(Function function, float x) { return std::isnan(x) || (function == kLog && x < 0.0f); }

}  // namespace

Reference::Reference() {
    // binary32 as MPFR writes it (significand in [1/2, 1)): 24 bits, largest exponent 128, smallest subnormal 2^-149.
    mpfr_set_emin(-148);
    mpfr_set_emax(128);
    mpfr_init2(argument_, 24);
    mpfr_init2(result_, 24);
}

Reference::~Reference() {
    mpfr_clear(argument_);
    mpfr_clear(result_);
    mpfr_free_cache();
}

std::uint32_t Reference::exact(Function function, std::uint32_t argument) {
    ++decided_by_mpfr_;
    const float x = float_of(argument);
    if (is_undefined(function, x)) return kQuietNaN;
    mpfr_set_flt(argument_, x, MPFR_RNDN);
    int ternary = 0;
    switch (function) {
        case kExp: ternary = mpfr_exp(result_, argument_, MPFR_RNDN); break;
        case kLog: ternary = mpfr_log(result_, argument_, MPFR_RNDN); break;
        case kTanh: ternary = mpfr_tanh(result_, argument_, MPFR_RNDN); break;
        default: ternary = mpfr_erf(result_, argument_, MPFR_RNDN); break;
    }
    mpfr_subnormalize(result_, ternary, MPFR_RNDN);  // one rounding in total: it uses the ternary value
    return bits_of(mpfr_get_flt(result_, MPFR_RNDN));
}

std::uint32_t Reference::operator()(Function function, std::uint32_t argument) {
    const float x = float_of(argument);
    if (is_undefined(function, x)) return kQuietNaN;
    const double value = platform(function, static_cast<double>(x));
    std::uint32_t low = bits_of(static_cast<float>(value));
    std::uint32_t high = low;
    if (!std::isinf(value)) {
        const double margin = std::fabs(value) * kBound;
        low = bits_of(static_cast<float>(value - margin));
        high = bits_of(static_cast<float>(value + margin));
    }
    if (low != high) return exact(function, argument);
    if (argument % kSampled == 0) {
        const std::uint32_t decided = exact(function, argument);
        if (decided != low) ++bound_broken_;
        return decided;
    }
    return low;
}
