// The operators of ai.normfuse: one for each combination of what a node can say without numbers, and its name.
#pragma once

#include <string>
#include <vector>

#include "kernels/norm.h"

namespace normfuse {

enum class Family : int { kGroupNorm, kInstanceNorm, kLayerNorm, kRmsNorm };

// [Add](GroupNorm | InstanceNorm | LayerNorm | RMSNorm)[Relu | Silu | Gelu][ChannelsLast][WithSum]
//
// Inputs (x, scale, bias), or (x, residual, scale, bias) with Add; RMSNorm has no bias. A scale or bias may be absent.
// Outputs (y), or (y, x + residual) with WithSum. Attributes: epsilon; num_groups of GroupNorm; axis of LayerNorm and
// RMSNorm, which normalise from it on. emit/custom.py writes the same names.
struct Operator {
    Family family;
    Activation activation;
    bool adds_residual;
    bool keeps_sum;
    bool channels_last;

    std::string name() const;
    bool has_channels() const { return family == Family::kGroupNorm || family == Family::kInstanceNorm; }

    // Positions of the inputs; x is the first.
    std::size_t residual_at() const { return 1; }
    std::size_t scale_at() const { return adds_residual ? 2 : 1; }
    std::size_t bias_at() const { return scale_at() + 1; }
    std::size_t inputs() const { return bias_at() + (family == Family::kRmsNorm ? 0 : 1); }
    std::size_t outputs() const { return keeps_sum ? 2 : 1; }
};

// All of them.
std::vector<Operator> operators();

}  // namespace normfuse
