// Sweeps all 2^32 arguments of exp, log, tanh and erf on every instruction set that this machine runs, and compares
// each result with a correctly rounded reference (reference.hpp). Prints, a function: the number of arguments, how many
// MPFR decided, the mismatches of each path with the first of them, and each path's digest. See README.md.
//
// Digest: arguments in ascending order of their bits, in blocks of 2^20. In a block word i goes to lane i mod 8, each
// lane an FNV-1a of 64 bits fed whole words: h = (h ^ word) * 0x100000001b3 from 0xcbf29ce484222325. The eight lanes of
// a block, and then the 4096 blocks, are folded by the same step in ascending order. Each step is a bijection of the
// word that enters it, so a single wrong result always changes the digest.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

#include "paths.hpp"
#include "reference.hpp"

namespace {

constexpr std::uint32_t kBlockBits = 20;
constexpr std::uint32_t kBlock = 1u << kBlockBits;
constexpr std::uint32_t kBlocks = 1u << (32 - kBlockBits);
constexpr std::uint32_t kPiece = 1u << 13;  // arguments evaluated at a time, so that buffers stay in the cache
constexpr std::size_t kShown = 10;
constexpr std::uint64_t kDigestStart = 0xcbf29ce484222325u;
constexpr std::uint64_t kDigestPrime = 0x100000001b3u;

struct Options {
    std::vector<Function> functions;
    std::string isa = "all";
    unsigned threads = 2;
    bool digest_only = false;
};

struct Mismatch {
    std::uint32_t argument;
    std::uint32_t result;
    std::uint32_t expected;
};

struct PathReport {
    std::vector<std::uint64_t> block_digests = std::vector<std::uint64_t>(kBlocks);
    std::uint64_t mismatches = 0;
    std::vector<Mismatch> first;
};

struct FunctionReport {
    std::vector<PathReport> paths;
    std::uint64_t decided_by_mpfr = 0;
    std::uint64_t bound_broken = 0;
};

std::uint64_t fold(std::uint64_t digest, std::uint64_t word) { return (digest ^ word) * kDigestPrime; }

struct BlockDigest {
    std::uint64_t lanes[8] = {kDigestStart, kDigestStart, kDigestStart, kDigestStart,
                              kDigestStart, kDigestStart, kDigestStart, kDigestStart};
    void add(const std::uint32_t* words, std::size_t n) {  // n is a multiple of 8
        for (std::size_t i = 0; i < n; i += 8) {
            for (std::size_t j = 0; j < 8; ++j) lanes[j] = fold(lanes[j], words[i + j]);
        }
    }
    std::uint64_t value() const {
        std::uint64_t digest = kDigestStart;
        for (const std::uint64_t lane : lanes) digest = fold(digest, lane);
        return digest;
    }
};

class Sweep {
   public:
    Sweep(Function function, const std::vector<const Path*>& paths, const Options& options)
        : function_(function), paths_(paths), options_(options) {
        report_.paths.resize(paths.size());
    }

    FunctionReport run() {
        std::vector<std::thread> workers;
        for (unsigned i = 0; i < options_.threads; ++i) workers.emplace_back([this] { work(); });
        for (std::thread& worker : workers) worker.join();
        if (progress_) std::fprintf(stderr, "\r%30s\r", "");
        for (PathReport& path : report_.paths) {
            std::sort(path.first.begin(), path.first.end(),
                      [](const Mismatch& a, const Mismatch& b) { return a.argument < b.argument; });
        }
        return std::move(report_);
    }

   private:
    void work() {
        Reference reference;
        std::vector<float> arguments(kPiece);
        std::vector<std::uint32_t> expected(kPiece);
        std::vector<std::vector<float>> results(paths_.size(), std::vector<float>(kPiece));
        for (std::uint32_t block = next_++; block < kBlocks; block = next_++) {
            std::vector<BlockDigest> digests(paths_.size());
            for (std::uint32_t start = 0; start < kBlock; start += kPiece) {
                const std::uint32_t base = (block << kBlockBits) + start;
                for (std::uint32_t i = 0; i < kPiece; ++i) {
                    const std::uint32_t bits = base + i;
                    std::memcpy(&arguments[i], &bits, sizeof bits);
                    if (!options_.digest_only) expected[i] = reference(function_, bits);
                }
                for (std::size_t p = 0; p < paths_.size(); ++p) {
                    paths_[p]->apply[function_](arguments.data(), results[p].data(), kPiece);
                    std::uint32_t words[kPiece];
                    std::memcpy(words, results[p].data(), sizeof words);
                    digests[p].add(words, kPiece);
                    if (!options_.digest_only && std::memcmp(words, expected.data(), sizeof words) != 0) {
                        compare(reference, p, base, words, expected.data());
                    }
                }
            }
            for (std::size_t p = 0; p < paths_.size(); ++p) {
                report_.paths[p].block_digests[block] = digests[p].value();
            }
            if (progress_ && block % 32 == 0) {
                std::fprintf(stderr, "\r%s %3u %%", kFunctionNames[function_], block * 100 / kBlocks);
            }
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        report_.decided_by_mpfr += reference.decided_by_mpfr();
        report_.bound_broken += reference.bound_broken();
    }

    void compare(Reference& reference, std::size_t p, std::uint32_t base, const std::uint32_t* words,
                 const std::uint32_t* expected) {
        for (std::uint32_t i = 0; i < kPiece; ++i) {
            if (words[i] == expected[i]) continue;
            const std::uint32_t truth = reference.exact(function_, base + i);
            if (truth != expected[i]) reference.count_broken_bound();
            if (truth == words[i]) continue;
            const std::lock_guard<std::mutex> lock(mutex_);
            PathReport& path = report_.paths[p];
            ++path.mismatches;
            // The lowest arguments are kept, whichever thread met them first.
            path.first.push_back({base + i, words[i], truth});
            if (path.first.size() > kShown) {
                path.first.erase(std::max_element(
                    path.first.begin(), path.first.end(),
                    [](const Mismatch& a, const Mismatch& b) { return a.argument < b.argument; }));
            }
        }
    }

    Function function_;
    const std::vector<const Path*>& paths_;
    const Options& options_;
    FunctionReport report_;
    std::mutex mutex_;
    std::atomic<std::uint32_t> next_{0};
    bool progress_ = isatty(2) != 0;
};

std::vector<const Path*> available_paths() {
    std::vector<const Path*> paths = {&kScalarPath};
#ifdef VERIFY_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) paths.push_back(&kAvx2Path);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        paths.push_back(&kAvx512Path);
    }
#endif
    return paths;
}

[[noreturn]] void usage(const char* problem) {
    std::fprintf(stderr,
                 "verify-math: %s\n"
                 "usage: verify-math [--function exp|log|tanh|erf|all] [--isa scalar|avx2|avx512|all]\n"
                 "                   [--threads N] [--digest-only]\n"
                 "  --function     one function; all four by default\n"
                 "  --isa          one path; by default every path that this machine runs\n"
                 "  --threads      2 by default\n"
                 "  --digest-only  no reference: prints the digests, to be compared with those of a full run\n",
                 problem);
    std::exit(2);
}

Options parse(int argc, char** argv) {
    Options options;
    std::string function = "all";
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--digest-only") {
            options.digest_only = true;
            continue;
        }
        if (i + 1 >= argc) usage(("unknown option or missing value: " + name).c_str());
        const std::string value = argv[++i];
        if (name == "--function") {
            function = value;
        } else if (name == "--isa") {
            options.isa = value;
        } else if (name == "--threads") {
            const int threads = std::atoi(value.c_str());
            if (threads < 1 || threads > 1024) usage("--threads must be from 1 to 1024");
            options.threads = static_cast<unsigned>(threads);
        } else {
            usage(("unknown option: " + name).c_str());
        }
    }
    for (int f = 0; f < kFunctions; ++f) {
        if (function == "all" || function == kFunctionNames[f]) options.functions.push_back(static_cast<Function>(f));
    }
    if (options.functions.empty()) usage(("unknown function: " + function).c_str());
    return options;
}

// True where every path agrees with the reference and all digests are the same.
bool show(Function function, const std::vector<const Path*>& paths, const FunctionReport& report, bool digest_only,
          double seconds) {
    std::printf("%s\n  arguments        4294967296\n", kFunctionNames[function]);
    if (!digest_only) {
        std::printf("  decided by MPFR  %" PRIu64 "\n", report.decided_by_mpfr);
        if (report.bound_broken != 0) {
            std::printf("  platform library outside its bound: %" PRIu64 " times (MPFR decided those)\n",
                        report.bound_broken);
        }
    }
    bool good = true;
    std::uint64_t common = 0;
    for (std::size_t p = 0; p < paths.size(); ++p) {
        const PathReport& path = report.paths[p];
        std::uint64_t digest = kDigestStart;
        for (const std::uint64_t block : path.block_digests) digest = fold(digest, block);
        if (p == 0) common = digest;
        good = good && path.mismatches == 0 && digest == common;
        std::printf("  %-6s  digest fnv1a64x8:%016" PRIx64, paths[p]->name, digest);
        if (!digest_only) std::printf("  mismatches %" PRIu64, path.mismatches);
        std::printf("%s\n", digest == common ? "" : "  DIFFERS from the first path's digest");
        for (const Mismatch& mismatch : path.first) {
            std::printf("    argument 0x%08" PRIx32 "  result 0x%08" PRIx32 "  correct 0x%08" PRIx32 "\n",
                        mismatch.argument, mismatch.result, mismatch.expected);
        }
    }
    std::printf("  %.0f s\n", seconds);
    std::fflush(stdout);
    return good;
}

}  // namespace

int main(int argc, char** argv) {
    const Options options = parse(argc, argv);
    std::vector<const Path*> paths = available_paths();
    if (options.isa != "all") {
        const auto found = std::find_if(paths.begin(), paths.end(),
                                        [&](const Path* path) { return options.isa == path->name; });
        if (found == paths.end()) usage(("this machine or this build lacks the path " + options.isa).c_str());
        paths = {*found};
    }
    bool good = true;
    for (const Function function : options.functions) {
        const auto start = std::chrono::steady_clock::now();
        const FunctionReport report = Sweep(function, paths, options).run();
        const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
        good = show(function, paths, report, options.digest_only, elapsed.count()) && good;
    }
    std::printf("%s\n", !good                 ? "FAILED"
                        : options.digest_only ? "digests agree between the paths (nothing compared with the reference)"
                                              : "every result is correctly rounded");
    return good ? 0 : 1;
}
