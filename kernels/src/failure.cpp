// See failure.hpp.
#include "failure.hpp"

#include <stdio.h>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace iso {

namespace {

thread_local char last_error[512] = "";
thread_local int last_layer = ISO_LAYER_NONE;

#if defined(__SSE2__)
constexpr unsigned CANONICAL = 0x1F80;  // MXCSR at reset: nearest even, all exceptions masked, FTZ and DAZ off
uint64_t read_state() { return _mm_getcsr(); }
void write_state(uint64_t state) { _mm_setcsr(unsigned(state)); }
#elif defined(__aarch64__)
constexpr uint64_t CANONICAL = 0;  // FPCR: nearest even, no flush to zero, no default NaN, no traps
uint64_t read_state() {
    uint64_t state;
    __asm__ volatile("mrs %0, fpcr" : "=r"(state));
    return state;
}
void write_state(uint64_t state) { __asm__ volatile("msr fpcr, %0" : : "r"(state)); }
#else
#warning "floating-point control of this processor is not known: callers must keep its default state"
constexpr uint64_t CANONICAL = 0;
uint64_t read_state() { return 0; }
void write_state(uint64_t) {}
#endif

}  // namespace

CanonicalFloats::CanonicalFloats() : saved_(read_state()) { write_state(CANONICAL); }
CanonicalFloats::~CanonicalFloats() { write_state(saved_); }

int remember(int code, const char* text, int layer) noexcept {
    snprintf(last_error, sizeof last_error, "%s", text);
    last_layer = layer;
    return code;
}

}  // namespace iso

extern "C" uint64_t iso_float_state(void) { return iso::read_state(); }
extern "C" void iso_set_float_state(uint64_t state) { iso::write_state(state); }
extern "C" const char* iso_last_error(void) { return iso::last_error; }
extern "C" int iso_error_layer(void) { return iso::last_layer; }
