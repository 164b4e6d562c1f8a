// Which strategy is the fastest for a norm on the current device; see norm.h.
#pragma once

#include <cuda_runtime.h>

#include "cuda/norm.h"

namespace normfuse::cuda {

cudaError_t plan_for(const NormfuseNorm& norm, NormfusePlan& plan);

}  // namespace normfuse::cuda
