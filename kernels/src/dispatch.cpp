// Which instruction-set path runs: the tables are filled once at load, the best path that processor and operating system
// support is chosen, and iso_set_isa may name another. Changing it changes speed, never bits.
#include <string.h>

#include <atomic>
#include <string>

#include "failure.hpp"
#include "kernels.hpp"

namespace iso {

namespace scalar {
void fill(Kernels&);
}
#if defined(ISO_HAVE_X86_PATHS)
namespace avx2 {
void fill(Kernels&);
}
namespace avx512 {
void fill(Kernels&);
}
namespace avx512vnni {
void fill_linear_int8(Kernels&);
}
#endif

#if defined(ISO_HAVE_NEON_PATH)
namespace neon {
void fill(Kernels&);
}
#endif

namespace {

struct Path {
    const char* name;
    void (*fill)(Kernels&);
    bool (*runs_here)();
    Kernels table;
};

bool always() { return true; }
#if defined(ISO_HAVE_X86_PATHS)
// The compiler's runtime asks CPUID, and XGETBV whether the operating system saves the registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

// AVX-512 but for the int8 products, which have an instruction of their own.
void fill_vnni(Kernels& table) {
    avx512::fill(table);
    avx512vnni::fill_linear_int8(table);
    table.name = "avx512vnni";
}
#endif

Path paths[] = {  // best last
    {"scalar", scalar::fill, always, {}},
#if defined(ISO_HAVE_X86_PATHS)
    {"avx2", avx2::fill, has_avx2, {}},
    {"avx512", avx512::fill, has_avx512, {}},
    {"avx512vnni", fill_vnni, has_vnni, {}},
#endif
#if defined(ISO_HAVE_NEON_PATH)
    {"neon", neon::fill, always, {}},
#endif
};

std::atomic<const Kernels*> in_use{nullptr};
char names_runnable[64] = "", names_built[64] = "";

void append(char* list, const char* name) {
    if (*list) strcat(list, ",");
    strcat(list, name);
}

__attribute__((constructor)) void fill_tables() {
#if defined(ISO_HAVE_X86_PATHS)
    __builtin_cpu_init();
#endif
    for (Path& path : paths) {
        append(names_built, path.name);
        if (!path.runs_here()) continue;
        append(names_runnable, path.name);
        path.fill(path.table);
        in_use.store(&path.table);
    }
}

}  // namespace

const Kernels& kernels() { return *in_use.load(std::memory_order_relaxed); }

}  // namespace iso

extern "C" {

const char* iso_isas(void) { return iso::names_runnable; }
const char* iso_isas_built(void) { return iso::names_built; }
const char* iso_isa(void) { return iso::kernels().name; }

int iso_set_isa(const char* name) {
    return iso::guarded([&] {
        for (iso::Path& path : iso::paths)
            if (name && path.table.name && !strcmp(name, path.name)) return iso::in_use.store(&path.table);
        throw iso::Failure{ISO_UNSUPPORTED, std::string("instruction set '") + (name ? name : "") +
                                                "' is not available here: this machine and build run " +
                                                iso::names_runnable + " (built: " + iso::names_built + ")"};
    });
}

}  // extern "C"
