// An operator as onnxruntime sees it: name, types, operands and shapes. The same for every provider, which adds its
// kernel.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "abi/onnxruntime_abi.h"
#include "kernels/norm.h"
#include "ops/operator.h"

namespace normfuse {

// One operator for one element type on one provider. onnxruntime hands the first member back to every callback. A
// provider sets CreateKernelV2, KernelComputeV2 and KernelDestroy of the callbacks.
struct Schema {
    ort::CustomOp callbacks;
    Operator op;
    Type type;
    const char* provider;  // null for the CPU
    std::string name;
    // Of the runtime that it is registered with: shape inference is given none.
    const ort::Api* api;
    bool has_references;  // whether the table reaches to kReferenceVersion
};
static_assert(std::is_standard_layout_v<Schema>, "the address of the callbacks must be that of the schema");

// Every operator for every type, without kernels. A provider registers all of them: one that were missing would fail to
// load instead of running as the function in the file.
std::vector<Schema> schemas(const char* provider);

inline const Schema& schema_of(const ort::CustomOp* callbacks) { return *reinterpret_cast<const Schema*>(callbacks); }

}  // namespace normfuse
