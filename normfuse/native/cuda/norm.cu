// The plain C interface: checks, and the choice of the type.
#include "cuda/norm.h"

#include "cuda/launch.cuh"
#include "cuda/plan.h"

namespace normfuse::cuda {

// Each is compiled in the file of its type.
extern template cudaError_t run<float>(const NormfuseNorm&, const NormfusePlan&, void*, cudaStream_t);
extern template cudaError_t run<__half>(const NormfuseNorm&, const NormfusePlan&, void*, cudaStream_t);
extern template cudaError_t run<__nv_bfloat16>(const NormfuseNorm&, const NormfusePlan&, void*, cudaStream_t);

}  // namespace normfuse::cuda

extern "C" {

__attribute__((visibility("default"))) int normfuse_cuda_plan(const NormfuseNorm* norm, NormfusePlan* plan) {
    return normfuse::cuda::plan_for(*norm, *plan);
}

__attribute__((visibility("default"))) int normfuse_cuda_run(const NormfuseNorm* norm, const NormfusePlan* plan,
                                                             void* workspace, void* stream) {
    if (norm->batch * norm->groups * norm->channels * norm->spatial == 0) return cudaSuccess;
    auto* queue = static_cast<cudaStream_t>(stream);
    switch (norm->type) {
        case kNormfuseFloat:
            return normfuse::cuda::run<float>(*norm, *plan, workspace, queue);
        case kNormfuseFloat16:
            return normfuse::cuda::run<__half>(*norm, *plan, workspace, queue);
        case kNormfuseBFloat16:
            return normfuse::cuda::run<__nv_bfloat16>(*norm, *plan, workspace, queue);
        default:
            return cudaErrorInvalidValue;
    }
}

__attribute__((visibility("default"))) const char* normfuse_cuda_error(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // extern "C"
