// Sums over the lanes of a warp and over a block, and the moments of a part of a group.
#pragma once

#include <cuda_runtime.h>

namespace normfuse::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

struct Pair {
    float first = 0.0f;
    float second = 0.0f;

    __device__ Pair& operator+=(const Pair& other) {
        first += other.first;
        second += other.second;
        return *this;
    }
};

template <typename Value>
__device__ Value from_lane(Value value, int distance) {
    return __shfl_xor_sync(kAllLanes, value, distance);
}

__device__ inline Pair from_lane(Pair value, int distance) {
    return {from_lane(value.first, distance), from_lane(value.second, distance)};
}

// The sum over teams of `lanes` neighbouring lanes, a power of two; every lane of the warp takes part.
template <typename Value>
__device__ Value sum_of_lanes(Value value, int lanes = kWarp) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) value += from_lane(value, distance);
    return value;
}

// The sum over the block, whole warps, for every thread. `shared` is free again after the next barrier.
template <typename Value>
__device__ Value sum_of_block(Value value, Value (&shared)[kWarp]) {
    const unsigned lane = threadIdx.x % kWarp;
    value = sum_of_lanes(value);
    if (lane == 0) shared[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = lane < blockDim.x / kWarp ? shared[lane] : Value{};
    return sum_of_lanes(value);
}

// The moments of a part of a group: m2 = Σ (x − mean)², or Σ x² where the norm takes the mean as 0.
//
// The mean is a double since the mean of a float32 group with mean/deviation 1e4 is no float32: that rounding alone
// would shift every result by 6e-4 deviations. Parts of a and b elements combine to mean = (a·mean_a + b·mean_b) / (a +
// b), m2 = m2_a + m2_b + a·(mean_a − mean)² + b·(mean_b − mean)² (Chan, Golub, LeVeque 1979).
struct Moments {
    double mean;
    double m2;
    double count;
};

// How a thread holds the statistics of its group: (x − shift) − rest is x − mean, the first difference exact to the
// last bit of its result.
struct Statistics {
    float shift;
    float rest;
    float inverse;  // 1 / sqrt(variance + epsilon)
};

// 1 / sqrt(variance + epsilon). A variance that rounding made negative is 0; NaN stays NaN.
__device__ inline float inverse_deviation(float variance, float epsilon) {
    return 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + epsilon);
}

__device__ inline Statistics statistics(double mean, double variance, float epsilon) {
    const float shift = static_cast<float>(mean);
    return {shift, static_cast<float>(mean - shift), inverse_deviation(static_cast<float>(variance), epsilon)};
}

}  // namespace normfuse::cuda
