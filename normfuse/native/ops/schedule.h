// Divides a norm among onnxruntime's threads.
#pragma once

#include "kernels/norm.h"
#include "ops/runtime.h"

namespace normfuse {

// Computes `norm` with `kernels`; nothing is done for an empty tensor.
void compute(const ort::Api& api, const ort::KernelContext* context, const Kernels& kernels, const Norm& norm);

}  // namespace normfuse
