// An operator as onnxruntime sees it: name, types, operands and shapes. The same for every provider, which adds its
// kernel.
#pragma once

#include "abi/onnxruntime_abi.h"
#include "kernels/norm.h"
#include "ops/layout.h"

namespace normfuse {

// One operator for one element type on one provider. onnxruntime hands the first member back to every callback.
//
// Inputs x, then scale, bias and residual where they are there; outputs y, and the sum x + residual where it is asked
// for. A provider sets CreateKernelV2, KernelComputeV2 and KernelDestroy of the callbacks.
struct Schema {
    ort::CustomOp callbacks;
    Operator op;
    Type type;
    const char* provider;           // null for the CPU
    const ort::Api* api = nullptr;  // of the runtime that it is registered with: shape inference is given none
};

Schema schema(Operator op, Type type, const char* provider);

inline const Schema& schema_of(const ort::CustomOp* callbacks) { return *reinterpret_cast<const Schema*>(callbacks); }

}  // namespace normfuse
