// What follows the statistics: scale and bias, then the activation.
#pragma once

#include "cuda/element.cuh"
#include "cuda/machine.cuh"
#include "cuda/norm.h"

namespace normfuse::cuda {

template <typename T>
struct Operands {
    const T* x;
    const T* scale;
    const T* bias;
    const T* residual;
    T* y;
    T* sum;
    float epsilon;
    int activation;
    bool centred;
};

// n / divisor for n < 2^31 by one multiplication (Granlund and Montgomery 1994).
struct FastDivide {
    std::uint32_t divisor;
    std::uint32_t multiplier;
    std::uint32_t shift;

    static FastDivide by(std::uint32_t divisor) {
        std::uint32_t shift = 0;
        while ((std::uint64_t{1} << shift) < divisor) ++shift;
        const std::uint64_t multiplier = (((std::uint64_t{1} << shift) - divisor) << 32) / divisor + 1;
        return {divisor, static_cast<std::uint32_t>(multiplier), shift};
    }
    __device__ std::uint32_t quotient(std::uint32_t n) const { return (__umulhi(n, multiplier) + n) >> shift; }
    __device__ std::uint32_t remainder(std::uint32_t n) const { return n - quotient(n) * divisor; }
};

// Read scale and bias of the Width elements at `offset` of a run of positions that starts with channel `channel`.
template <typename T, int Width>
__device__ void load_affine(const Operands<T>& operands, const FastDivide& spatial, std::uint32_t channel,
                            std::uint32_t offset, float (&scale)[Width], float (&bias)[Width]) {
#pragma unroll
    for (int j = 0; j < Width; ++j) {
        scale[j] = 1.0f;
        bias[j] = 0.0f;
    }
    if (spatial.divisor == 1) {
        if (operands.scale) load_cached<T, Width>(operands.scale + channel + offset, scale);
        if (operands.bias) load_cached<T, Width>(operands.bias + channel + offset, bias);
        return;
    }
    const std::uint32_t first = channel + spatial.quotient(offset);
    const std::uint32_t last = channel + spatial.quotient(offset + Width - 1);
    if (first == last) {
        const float one_scale = operands.scale ? Element<T>::wide(__ldg(operands.scale + first)) : 1.0f;
        const float one_bias = operands.bias ? Element<T>::wide(__ldg(operands.bias + first)) : 0.0f;
#pragma unroll
        for (int j = 0; j < Width; ++j) {
            scale[j] = one_scale;
            bias[j] = one_bias;
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < Width; ++j) {
        const std::uint32_t own = channel + spatial.quotient(offset + j);
        if (operands.scale) scale[j] = Element<T>::wide(__ldg(operands.scale + own));
        if (operands.bias) bias[j] = Element<T>::wide(__ldg(operands.bias + own));
    }
}

// v · sigmoid(v), which is 0 where sigmoid(v) is below 1e-37.
__device__ inline float silu(float value) { return value * fast_reciprocal(1.0f + fast_exp2(value * -1.44269504f)); }

template <int Width>
__device__ void activate(int activation, float (&values)[Width]) {
    switch (activation) {
        case kNormfuseRelu:
#pragma unroll
            for (int j = 0; j < Width; ++j) values[j] = values[j] < 0.0f ? 0.0f : values[j];  // NaN stays
            break;
        case kNormfuseSilu:
#pragma unroll
            for (int j = 0; j < Width; ++j) values[j] = silu(values[j]);
            break;
        case kNormfuseGelu:
#pragma unroll
            for (int j = 0; j < Width; ++j) values[j] = 0.5f * values[j] * (1.0f + erff(values[j] * 0.70710678f));
            break;
        default:
            break;
    }
}

}  // namespace normfuse::cuda
