// Correctly rounded results that owe nothing to the code under test.
//
// A binary64 value of the platform's library decides only where every number within 2^-42 of it (relatively; more than
// a thousand units in the last place, where the libraries promise a few) rounds to the same binary32. MPFR decides the
// rest, every result that the code under test disputes, and in addition one argument in 4096 whatever the bound says.
#pragma once

#include <cstdint>

#include <mpfr.h>

#include "paths.hpp"

class Reference {
   public:
    // Sets MPFR to binary32 for the calling thread: an object belongs to the thread that made it.
    Reference();
    ~Reference();
    Reference(const Reference&) = delete;
    Reference& operator=(const Reference&) = delete;

    // The bits of the correctly rounded result for the argument of these bits; NaN is 0x7fc00000.
    std::uint32_t operator()(Function function, std::uint32_t argument);
    // The same, by MPFR alone.
    std::uint32_t exact(Function function, std::uint32_t argument);

    std::uint64_t decided_by_mpfr() const { return decided_by_mpfr_; }
    // Arguments of which MPFR contradicted a value that the bound had decided: not zero means a poor platform library.
    std::uint64_t bound_broken() const { return bound_broken_; }
    void count_broken_bound() { ++bound_broken_; }

   private:
    mpfr_t argument_;
    mpfr_t result_;
    std::uint64_t decided_by_mpfr_ = 0;
    std::uint64_t bound_broken_ = 0;
};
