// What the library shows to the outside: the entry that onnxruntime looks for, and the instruction set for `normfuse
// doctor`.
#include "kernels/norm.h"
#include "ops/cpu_operators.h"
#include "ops/registration.h"

#if defined(_WIN32)
#define NORMFUSE_EXPORT extern "C" __declspec(dllexport)
#else
#define NORMFUSE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

NORMFUSE_EXPORT normfuse::ort::Status* RegisterCustomOps(normfuse::ort::SessionOptions* options,
                                                         const normfuse::ort::ApiBase* base) {
    return normfuse::register_operators(options, base, normfuse::cpu_operators());
}

NORMFUSE_EXPORT const char* normfuse_instruction_set() { return normfuse::instruction_set().name; }
