// Prints a digest of what each path of the library computes on fixed inputs: one line an operation, which must be the
// same for all paths and on all machines. For processors on which the test suite cannot run, an emulator included:
//
//   cmake -S kernels -B build/arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
//         -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ && cmake --build build/arm
//   aarch64-linux-gnu-g++ -std=c++17 -O2 -Ikernels/src kernels/verify/same_bits.cpp build/arm/libisonomy_kernels.so -o same_bits
//   qemu-aarch64-static -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=build/arm ./same_bits
//
// Exit status 1: two paths of this machine differ, or a call failed.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "isonomy.h"

namespace {

using Floats = std::vector<float>;

void check(int code) {
    if (code) {
        std::fprintf(stderr, "%s\n", iso_last_error());
        std::exit(1);
    }
}

// Floats from counters by Philox, made of integers and powers of two: the same everywhere. Exponents -span .. span.
Floats floats(size_t n, uint32_t stream, int span) {
    Floats x(n);
    for (size_t i = 0; i < n; i += 4) {
        const uint32_t counter[4] = {uint32_t(i / 4), stream, 0, 0};
        uint32_t word[4];
        check(iso_philox(7, counter, word));
        for (size_t j = 0; j < 4 && i + j < n; ++j)
            x[i + j] = std::ldexp(float(int32_t(word[j] >> 7) - (1 << 24)), int((word[j] & 127) % unsigned(2 * span + 1)) - span - 24);
    }
    return x;
}

std::string digest(const void* data, size_t bytes) {
    uint8_t d[32];
    char text[65];
    check(iso_blake3(data, bytes, d));
    for (int i = 0; i < 32; ++i) std::snprintf(text + 2 * i, 3, "%02x", d[i]);
    return std::string(text, 64);
}

std::string digest(const Floats& x) { return digest(x.data(), x.size() * sizeof(float)); }

std::string linear(int storage, int packed, size_t rows, size_t n, size_t k) {
    const Floats w = floats(n * k, 1, 2), x = floats(rows * k, 2, 3), bias = floats(n, 3, 2);
    std::vector<uint16_t> half(w.size());
    for (size_t i = 0; i < w.size(); ++i) {
        uint32_t bits;
        std::memcpy(&bits, &w[i], 4);
        half[i] = uint16_t(bits >> 16);
    }
    iso_linear* l = nullptr;
    check(iso_linear_new(storage == ISO_BF16 ? static_cast<const void*>(half.data()) : w.data(), storage, nullptr, n, k,
                         bias.data(), packed, packed == ISO_INT8, &l));
    Floats y(rows * n);
    check(iso_linear_apply(l, x.data(), rows, y.data()));
    iso_linear_free(l);
    return digest(y);
}

std::string attention(size_t rows, size_t keys, size_t heads, size_t kv_heads, size_t dim, int64_t window, double cap) {
    const Floats q = floats(rows * heads * dim, 4, 1), k = floats(keys * kv_heads * dim, 5, 1), v = floats(k.size(), 6, 2);
    std::vector<int32_t> positions(rows);
    for (size_t m = 0; m < rows; ++m) positions[m] = int32_t(keys - rows + m);
    Floats y(q.size());
    check(iso_attention(q.data(), k.data(), v.data(), positions.data(), rows, keys, heads, kv_heads, dim, 0.125, window, cap,
                        y.data()));
    return digest(y);
}

std::string function(int which) {
    const Floats x = floats(200000, 8, 6);
    Floats y(x.size());
    check(iso_function(which, x.data(), y.data(), x.size()));
    for (float& value : y)
        if (value != value) value = 0.0f;  // any NaN is as good as another
    return digest(y);
}

std::string norms(size_t n) {
    const Floats x = floats(3 * n, 9, 3), w = floats(n, 10, 1), b = floats(n, 11, 1);
    Floats y(9 * n);
    check(iso_rms_norm(x.data(), w.data(), y.data(), 3, n, 1e-5, 1));
    check(iso_layer_norm(x.data(), w.data(), b.data(), y.data() + 3 * n, 3, n, 1e-5));
    check(iso_softmax(x.data(), y.data() + 6 * n, 3, n));
    return digest(y);
}

std::string rope() {
    Floats cosines(500 * 32), sines(500 * 32);
    std::vector<double> frequencies(32);
    for (int i = 0; i < 32; ++i) frequencies[size_t(i)] = std::ldexp(1.0 + i / 40.0, -i / 3);
    check(iso_rope_tables(frequencies.data(), 32, 500, 1.25, cosines.data(), sines.data()));
    cosines.insert(cosines.end(), sines.begin(), sines.end());
    return digest(cosines);
}

std::string draws() {
    const Floats logits = floats(5003, 12, 2);
    std::vector<int32_t> tokens(64);
    for (size_t i = 0; i < tokens.size(); ++i) {
        const iso_sampling p{0.5 + double(i % 7), i % 3 ? 1.0 : 0.9, i % 4 ? 0.0 : 0.01, 1.0, i, 0, uint32_t(i), i % 5 ? 0 : 40};
        float logprob;
        check(iso_sample(logits.data(), logits.size(), &p, nullptr, 0, nullptr, &tokens[i], &logprob));
    }
    return digest(tokens.data(), tokens.size() * sizeof(int32_t));
}

}  // namespace

int main() {
    std::map<std::string, std::function<std::string()>> operations;
    for (const size_t rows : {1u, 5u, 12u, 13u, 50u}) {
        const std::string name = "linear, " + std::to_string(rows) + " rows, ";
        operations[name + "f32"] = [=] { return linear(ISO_F32, ISO_F32, rows, 70, 600); };
        operations[name + "bf16"] = [=] { return linear(ISO_BF16, ISO_BF16, rows, 70, 600); };
        operations[name + "int8"] = [=] { return linear(ISO_F32, ISO_INT8, rows, 70, 600); };
    }
    operations["attention, prompt"] = [] { return attention(70, 300, 6, 2, 64, 0, 0.0); };
    operations["attention, one row, blocks"] = [] { return attention(1, 900, 6, 2, 80, 0, 30.0); };
    operations["attention, window"] = [] { return attention(9, 700, 4, 4, 33, 300, 0.0); };
    for (int which = ISO_EXP; which <= ISO_FN_GELU_TANH; ++which)
        operations["function " + std::to_string(which)] = [which] { return function(which); };
    operations["norms, 577"] = [] { return norms(577); };
    operations["rope tables"] = rope;
    operations["draws"] = draws;

    int status = 0;
    std::map<std::string, std::string> first;
    std::stringstream paths(iso_isas());
    for (std::string path; std::getline(paths, path, ',');) {
        check(iso_set_isa(path.c_str()));
        for (const auto& [name, operation] : operations) {
            const std::string result = operation();
            const auto [entry, fresh] = first.emplace(name, result);
            if (fresh) continue;
            if (entry->second != result) {
                std::printf("%s: %s differs: %s\n", path.c_str(), name.c_str(), result.c_str());
                status = 1;
            }
        }
    }
    for (const auto& [name, result] : first) std::printf("%-28s %s\n", name.c_str(), result.c_str());
    std::fprintf(stderr, "paths: %s\n", iso_isas());
    return status;
}
