// What this machine can do at this moment, for shares: bytes read a second, float32 fma and int8 dot products.
// Reads a line with the probe's name from standard input, runs it with two threads (or as many as the first argument
// says), and prints one number: bytes, operations (a multiplication and an addition count as two) a second.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <immintrin.h>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBytes = size_t{256} << 20;  // a thread's: far beyond any cache
constexpr double kSeconds = 0.12;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<uint8_t*> buffers;

// Twelve accumulators hide the latency of two units; assembly, because compilers keep an array of them in memory.
#define ACCUMULATORS(type, value) type s0 = value, s1 = value, s2 = value, s3 = value, s4 = value, s5 = value, \
                                       s6 = value, s7 = value, s8 = value, s9 = value, s10 = value, s11 = value
#define TWELVE(instruction, a, b)                                                                                   \
    asm volatile(instruction " %12, %13, %0\n" instruction " %12, %13, %1\n" instruction " %12, %13, %2\n"          \
                 instruction " %12, %13, %3\n" instruction " %12, %13, %4\n" instruction " %12, %13, %5\n"          \
                 instruction " %12, %13, %6\n" instruction " %12, %13, %7\n" instruction " %12, %13, %8\n"          \
                 instruction " %12, %13, %9\n" instruction " %12, %13, %10\n" instruction " %12, %13, %11"          \
                 : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7), "+v"(s8),        \
                   "+v"(s9), "+v"(s10), "+v"(s11)                                                                   \
                 : "v"(a), "v"(b))

// Each repeats a piece of work until the time is up, and returns the rate.
template <class Piece>
double rate(double work, Piece piece) {
    const auto start = Clock::now();
    double done = 0;
    do {
        piece();
        done += work;
    } while (seconds_since(start) < kSeconds);
    return done / seconds_since(start);
}

double read_bytes(int thread) {
    const auto* data = reinterpret_cast<const __m512i*>(buffers[thread]);
    constexpr size_t vectors = kBytes / 64, piece = 1 << 14;
    size_t at = 0;
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    const double found = rate(piece * 64.0, [&] {
        for (size_t i = at; i < at + piece; i += 4) {
            a = _mm512_xor_si512(a, data[i]);
            b = _mm512_xor_si512(b, data[i + 1]);
            c = _mm512_xor_si512(c, data[i + 2]);
            d = _mm512_xor_si512(d, data[i + 3]);
        }
        at = (at + piece) % vectors;
    });
    asm volatile("" ::"v"(a), "v"(b), "v"(c), "v"(d));
    return found;
}

double fma_operations(int) {
    const __m512 a = _mm512_set1_ps(0.5f);
    return rate(4096.0 * 12 * 16 * 2, [&] {
        ACCUMULATORS(__m512, a);
        for (int i = 0; i < 4096; ++i) TWELVE("vfmadd231ps", a, a);
    });
}

double vnni_operations(int) {
#ifdef __AVX512VNNI__
    const __m512i a = _mm512_set1_epi8(1);
    return rate(4096.0 * 12 * 64 * 2, [&] {
        ACCUMULATORS(__m512i, a);
        for (int i = 0; i < 4096; ++i) TWELVE("vpdpbusd", a, a);
    });
#else
    return 0;
#endif
}

}  // namespace

int main(int count, char** arguments) {
    const int threads = count > 1 ? std::atoi(arguments[1]) : 2;
    for (int thread = 0; thread < threads; ++thread) {
        auto* data = static_cast<uint8_t*>(std::aligned_alloc(64, kBytes));
        for (size_t i = 0; i < kBytes; i += 4096) std::memset(data + i, static_cast<int>(i >> 12) + 1, 4096);
        buffers.push_back(data);
    }
    char name[64];
    while (std::fgets(name, sizeof name, stdin)) {
        const std::string probe(name, std::strcspn(name, "\n"));
        const std::function<double(int)> run = probe == "read"  ? read_bytes
                                               : probe == "fma" ? fma_operations
                                                                : vnni_operations;
        std::vector<double> rates(threads);
        std::vector<std::thread> team;
        for (int thread = 0; thread < threads; ++thread) team.emplace_back([&, thread] { rates[thread] = run(thread); });
        for (auto& member : team) member.join();
        double sum = 0;
        for (double rate : rates) sum += rate;
        std::printf("%.6g\n", sum);
        std::fflush(stdout);
    }
}
