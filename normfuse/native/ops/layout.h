// The four operators of ai.normfuse, and how each sees its tensors: from attributes and shapes to a Norm.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/norm.h"
#include "ops/runtime.h"

namespace normfuse {

enum class Operator : int { kGroupNorm, kInstanceNorm, kLayerNorm, kRmsNorm };
inline constexpr int kOperators = 4;

const char* name_of(Operator op);

struct Attributes {
    double epsilon = 1e-5;
    std::int64_t num_groups = 1;  // GroupNorm
    std::int64_t axis = -1;       // LayerNorm, RMSNorm: they normalise from it on
    bool channels_last = false;   // GroupNorm, InstanceNorm
    Activation activation = Activation::kNone;
};

// Throws std::invalid_argument where an attribute has no meaning.
Attributes read_attributes(const ort::Api& api, const ort::KernelInfo* info);

struct Operands {
    Tensor x, scale, bias, residual;
};

// Returns the work without its outputs. Throws std::invalid_argument with all shapes where they do not fit together.
Norm lay_out(Operator op, const Attributes& attributes, const Operands& operands);

}  // namespace normfuse
