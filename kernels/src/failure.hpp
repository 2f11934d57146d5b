// How errors and the floating-point state cross the C ABI.
//
// Contract: every exported function runs its body in guarded(): the caller's floating-point control state is put aside
// for round to nearest, subnormals kept, exceptions masked, and restored afterwards; a Failure or a lack of memory becomes
// an error code and a sentence in this thread's iso_last_error. Nothing aborts.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <new>
#include <string>

#include "isonomy.h"

namespace iso {

struct Failure {
    int code;
    std::string text;
    int layer = ISO_LAYER_NONE;
};

// Remembers the sentence (never throws) and returns the code.
int remember(int code, const char* text, int layer) noexcept;

[[noreturn]] inline void bad_argument(const std::string& text) { throw Failure{ISO_BAD_ARGUMENT, text}; }

inline void require(bool condition, const char* text) {
    if (!condition) bad_argument(text);
}

// The canonical floating-point state for as long as the object lives.
class CanonicalFloats {
   public:
    CanonicalFloats();
    ~CanonicalFloats();
    CanonicalFloats(const CanonicalFloats&) = delete;
    CanonicalFloats& operator=(const CanonicalFloats&) = delete;

   private:
    uint64_t saved_;
};

template <typename Body>
int guarded(Body&& body) noexcept {
    const CanonicalFloats canonical;
    try {
        body();
        return ISO_OK;
    } catch (const Failure& failure) {
        return remember(failure.code, failure.text.c_str(), failure.layer);
    } catch (const std::bad_alloc&) {
        return remember(ISO_NO_MEMORY, "out of memory: a smaller capacity, model or batch is needed", ISO_LAYER_NONE);
    } catch (...) {
        return remember(ISO_INTERNAL, "an unexpected C++ exception: please report it", ISO_LAYER_NONE);
    }
}

}  // namespace iso
