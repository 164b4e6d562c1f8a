// Norms of contiguous groups that fit in the registers of a team, lanes of a warp or a block: memory is read once.
//
// Two passes over the registers: the mean, then the deviations from it and their squares, so that neither a large mean
// nor an outlier costs accuracy.
#pragma once

#include "cuda/affine.cuh"
#include "cuda/reduce.cuh"

namespace normfuse::cuda {

inline constexpr int kLanesBlock = 128;    // threads of a block whose warps hold rows
inline constexpr int kLargestBlock = 512;  // threads of a block that holds a row
inline constexpr int kMostElements = 32;   // of one thread,
inline constexpr int kMostScalars = 16;    // ... and where it reads them one by one
inline constexpr int kLongestInLanes = 512;

// Blocks of the largest size that a multiprocessor should hold at once, which caps the registers where none spills.
constexpr int blocks_at_once(NormfuseStrategy strategy, int width) {
    if (strategy == kNormfuseLanes) return width == 1 ? 4 : 6;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return 1;  // two would spill
#else
    return width > 1 ? 2 : 1;
#endif
}

struct RowShape {
    std::uint32_t rows;
    std::uint32_t length;
    std::uint32_t channels;  // of one row
    FastDivide groups;       // rows of one sample
    FastDivide spatial;
    int team;  // lanes of one row
};

// The row of a team, as `vectors` that are dealt out in turn to `threads` threads, of which this is number `thread`.
struct Part {
    std::uint32_t row;
    std::uint32_t vectors;
    std::uint32_t thread;
    std::uint32_t threads;

    // How many of at most `most` vectors this thread holds.
    template <int most>
    __device__ int held() const {
        int count = 0;
#pragma unroll
        for (int v = 0; v < most; ++v) count += thread + v * threads < vectors;
        return count;
    }
};

template <NormfuseStrategy strategy, int Width>
__device__ Part part_of(const RowShape& shape) {
    const std::uint32_t vectors = shape.length / Width;
    if constexpr (strategy == kNormfuseLanes) {
        const std::uint32_t team = shape.team;
        const std::uint32_t row = blockIdx.x * (blockDim.x / team) + threadIdx.x / team;
        // Lanes past the last row stay for the shuffles of their warp and hold nothing.
        return {row, row < shape.rows ? vectors : 0, threadIdx.x % team, team};
    } else {
        return {blockIdx.x, vectors, threadIdx.x, blockDim.x};
    }
}

template <NormfuseStrategy strategy, typename Value>
__device__ Value sum_of_team(Value value, int team, Value (&shared)[kWarp]) {
    if constexpr (strategy == kNormfuseLanes) {
        return sum_of_lanes(value, team);
    } else {
        return sum_of_block(value, shared);
    }
}

template <typename T, int Width, int Vectors, NormfuseStrategy strategy>
__global__ void __launch_bounds__(strategy == kNormfuseLanes ? kLanesBlock : kLargestBlock,
                                  blocks_at_once(strategy, Width))
    norm_rows(const __grid_constant__ Operands<T> operands, const __grid_constant__ RowShape shape) {
    __shared__ float sums[kWarp];
    __shared__ Pair pairs[kWarp];
    const Part part = part_of<strategy, Width>(shape);
    const int held = part.held<Vectors>();
    // Where in the row this thread's vector v starts.
    const auto offset = [&](int v) { return (part.thread + v * part.threads) * Width; };
    const std::int64_t base = static_cast<std::int64_t>(part.row) * shape.length;

    // Half types: all loads of both tensors are under way before the first is used.
    float values[Vectors][Width];
    Raw<T, Width> raw[Vectors];
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
        if (v < held) raw[v] = load_raw<Width>(operands.x + base + offset(v));
    }
    if (operands.residual) {
        Raw<T, Width> addend[Vectors];
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
            if (v < held) addend[v] = load_raw<Width>(operands.residual + base + offset(v));
        }
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
            float more[Width];
            widen<T, Width>(raw[v], values[v]);
            widen<T, Width>(addend[v], more);
#pragma unroll
            for (int j = 0; j < Width; ++j) values[v][j] = v < held ? values[v][j] + more[j] : 0.0f;
        }
    } else {
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
            widen<T, Width>(raw[v], values[v]);
#pragma unroll
            for (int j = 0; j < Width; ++j) values[v][j] = v < held ? values[v][j] : 0.0f;
        }
    }
    if (operands.sum) {
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
            if (v < held) store(operands.sum + base + offset(v), values[v]);
        }
    }

    const float count = part.vectors * static_cast<float>(Width);
    float shift = 0.0f;
    if (operands.centred) {
        float total = 0.0f;
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
#pragma unroll
            for (int j = 0; j < Width; ++j) total += values[v][j];
        }
        total = sum_of_team<strategy>(total, shape.team, sums);
        shift = total / count;
    }
    Pair deviations;
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
        if (v >= held) continue;
#pragma unroll
        for (int j = 0; j < Width; ++j) {
            const float deviation = values[v][j] - shift;
            deviations += Pair{deviation, deviation * deviation};
        }
    }
    deviations = sum_of_team<strategy>(deviations, shape.team, pairs);
    // The mean of the deviations from `shift`, which is the mean but for rounding.
    const float rest = operands.centred ? deviations.first / count : 0.0f;
    const float m2 = operands.centred ? deviations.second - rest * deviations.first : deviations.second;

    const Statistics own{shift, rest, inverse_deviation(m2 / count, operands.epsilon)};

    const std::uint32_t channel = shape.groups.remainder(part.row) * shape.channels;
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
        if (v >= held) continue;
        float scale[Width];
        float bias[Width];
        load_affine(operands, shape.spatial, channel, offset(v), scale, bias);
#pragma unroll
        for (int j = 0; j < Width; ++j) {
            const float slope = scale[j] * own.inverse;
            values[v][j] = fmaf(values[v][j] - own.shift, slope, fmaf(-own.rest, slope, bias[j]));
        }
        activate(operands.activation, values[v]);
        store(operands.y + base + offset(v), values[v]);
    }
}

}  // namespace normfuse::cuda
