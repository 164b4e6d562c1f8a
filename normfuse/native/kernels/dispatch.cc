// Chooses the instruction set, once. Compiled for the oldest processor, unlike the kernels.
#include <cstdlib>
#include <cstring>

#include "kernels/norm.h"

namespace normfuse {

#if defined(__x86_64__)
extern const Kernels x86_64_v4[kTypes], x86_64_v3[kTypes], x86_64_v2[kTypes];
#elif defined(__aarch64__)
extern const Kernels aarch64[kTypes];
#else
extern const Kernels generic[kTypes];
#endif

namespace {

struct Candidate {
    InstructionSet set;
    bool (*runs_here)();
};

// The widest first; the last runs everywhere.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {{"x86-64-v4", x86_64_v4},
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl");
     }},
    // Processors with AVX2 have F16C, which compilers cannot ask for by name before version 11.
    {{"x86-64-v3", x86_64_v3},
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") != 0;
     }},
    {{"x86-64-v2", x86_64_v2}, [] { return true; }},
#elif defined(__aarch64__)
    {{"aarch64", aarch64}, [] { return true; }},
#else
    {{"generic", generic}, [] { return true; }},
#endif
};

const InstructionSet& choose() {
    const char* wanted = std::getenv("NORMFUSE_INSTRUCTION_SET");
    const InstructionSet* widest = nullptr;
    for (const Candidate& candidate : kCandidates) {
        if (!candidate.runs_here()) continue;
        if (wanted != nullptr && std::strcmp(wanted, candidate.set.name) == 0) return candidate.set;
        if (widest == nullptr) widest = &candidate.set;
    }
    return *widest;
}

}  // namespace

const InstructionSet& instruction_set() {
    static const InstructionSet& set = choose();
    return set;
}

}  // namespace normfuse
