// The operators of ai.normfuse on a GPU.
#pragma once

#include <vector>

#include "ops/schema.h"

namespace normfuse::cuda {

// Every operator with its kernels for onnxruntime's CUDA provider, for the types that they compute in float32: a
// float64 node runs on the twin that the CPU has of each.
std::vector<Schema> operators();

}  // namespace normfuse::cuda
