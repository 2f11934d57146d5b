// Checksums of int8 linears against silent data corruption (NUMERICS.md, "Faults"), what they found, and faults for tests.
//
// Invariant: the checksum is exact integer arithmetic modulo 2^64, so it has no threshold and raises no false alarm. A row
// whose checksum fails twice becomes NaN, which no decoder lets through.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "memory.hpp"

namespace iso {

class Packed;

// r[0 .. outputs - 1]: odd, below 2^31. The same for every matrix; the table only grows.
const uint32_t* checksum_weights(size_t outputs);

// What a matrix is checked against, taken from its packed weights when they were complete.
struct Checksum {
    Buffer<int64_t> c;         // [k], the sum over n of r[n] * w[n, k]
    Buffer<uint8_t> digests;   // BLAKE3 of each packed panel, 32 bytes
    explicit operator bool() const { return bool(c); }
};

Checksum checksum_of(const Packed& packed);
// Packed panels whose bytes are no longer those of `checksum`.
std::vector<size_t> damaged_panels(const Packed& packed, const Checksum& checksum);

// ---- events, a list for each calling thread ----

struct Corruption {
    std::string linear;
    size_t row;                   // of the call
    bool recomputed;              // false: the second attempt failed, too
    size_t damaged_panels;        // of the weights in memory, looked at after a second failure
};

void remember_corruption(const Corruption& fault);
std::vector<Corruption> take_corruptions();
size_t corruptions_waiting();
// A sentence on this thread's first row that stayed corrupt since forget_corruption(), or "".
const std::string& corruption();
void forget_corruption();

// ---- injection ----

enum FaultKind { FAULT_SUM = 0, FAULT_WEIGHT = 1 };

struct Injection {
    int kind;
    std::string linear;    // Packed::name()
    size_t row, element;   // sums: row of the call and packed output; weights: byte of the packed matrix
    int bit, times;        // how many computations are hit
};

bool injecting_linears();  // anything at all, by one relaxed load
void inject_linear(const Injection& injection);
int end_linear_injection();   // how often it hit
void corrupt_sums(const Packed& packed, size_t panel, size_t first_row, size_t rows, int32_t* sums);
void corrupt_weights(const Packed& packed);

}  // namespace iso
