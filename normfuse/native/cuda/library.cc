// What the library for GPUs shows to the outside: the entry that onnxruntime looks for, which registers every operator
// on the CPU and on CUDA, and the instruction set for `normfuse doctor`. The interface of norm.h is shown as well.
#include "cuda/operators.h"
#include "kernels/norm.h"
#include "ops/cpu_operators.h"
#include "ops/registration.h"

#define NORMFUSE_EXPORT extern "C" __attribute__((visibility("default")))

NORMFUSE_EXPORT normfuse::ort::Status* RegisterCustomOps(normfuse::ort::SessionOptions* options,
                                                         const normfuse::ort::ApiBase* base) {
    std::vector<normfuse::Schema> operators = normfuse::cpu_operators();
    for (normfuse::Schema& entry : normfuse::cuda::operators()) operators.push_back(entry);
    return normfuse::register_operators(options, base, operators);
}

NORMFUSE_EXPORT const char* normfuse_instruction_set() { return normfuse::instruction_set().name; }
