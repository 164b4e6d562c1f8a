#include "cuda/launch.cuh"

namespace normfuse::cuda {

template cudaError_t run<float>(const NormfuseNorm&, const NormfusePlan&, void*, cudaStream_t);

template int clusters_at_once<float>(int);

}  // namespace normfuse::cuda
