// How an operator sees its tensors: from attributes and shapes to a Norm.
#pragma once

#include <cstdint>

#include "kernels/norm.h"
#include "ops/operator.h"
#include "ops/runtime.h"

namespace normfuse {

struct Attributes {
    double epsilon;
    std::int64_t num_groups;  // GroupNorm
    std::int64_t axis;        // LayerNorm, RMSNorm
};

Attributes read_attributes(const ort::Api& api, const ort::KernelInfo* info);

struct Operands {
    Tensor x, residual, scale, bias;
};

// Returns the work without its outputs. Throws std::invalid_argument with all shapes where they do not fit together.
Norm lay_out(const Operator& op, const Attributes& attributes, const Operands& operands);

}  // namespace normfuse
