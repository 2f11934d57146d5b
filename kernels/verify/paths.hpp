// The functions under test, as each instruction set's compilation of kernels/src/functions.hpp offers them.
#pragma once

#include <cstddef>

enum Function { kExp, kLog, kTanh, kErf, kFunctions };
constexpr const char* kFunctionNames[kFunctions] = {"exp", "log", "tanh", "erf"};

using ArrayFunction = void (*)(const float*, float*, std::size_t);

struct Path {
    const char* name;
    ArrayFunction apply[kFunctions];
};

extern const Path kScalarPath;
#ifdef VERIFY_X86
extern const Path kAvx2Path;
extern const Path kAvx512Path;
#endif
