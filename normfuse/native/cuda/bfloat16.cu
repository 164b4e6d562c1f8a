#include "cuda/launch.cuh"

namespace normfuse::cuda {

template cudaError_t run<__nv_bfloat16>(const NormfuseNorm&, const NormfusePlan&, void*, cudaStream_t);

}  // namespace normfuse::cuda
