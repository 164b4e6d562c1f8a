// Norms of x of (batch, spatial, groups, channels): a pass for the moments of every channel in chunks of positions, a
// small one that makes them scale and shift, and a pass that applies.
//
// A thread keeps its channels and walks over positions, so that a warp reads whole stretches of memory whatever the
// size of a group. It sums deviations from the mean of its first few values: members of the group, so that however far
// out one lies, it widens the variance as well, and what cancels stays near the rounding of a thread's few values.
#pragma once

#include "cuda/affine.cuh"
#include "cuda/reduce.cuh"

namespace normfuse::cuda {

inline constexpr int kChannelsLastBlock = 256;
inline constexpr int kChannelsLastPositions = 32;  // of one thread and chunk, at most
inline constexpr int kSample = 4;                  // values whose mean deviations are taken from

struct PlaneShape {
    std::uint32_t spatial;
    std::uint32_t all_channels;  // groups · channels
    std::uint32_t groups;
    FastDivide channels;  // of one group
    std::uint32_t chunk;  // positions
    std::uint32_t chunks;
    std::uint32_t slab;  // vectors of channels that a block holds
    std::uint32_t slabs;
    std::uint32_t walkers;  // threads that share a vector of channels
};

// The moments of one channel over some positions: its mean is shift + rest.
struct ChannelMoments {
    float shift;
    float rest;
    float m2;

    __device__ double mean() const { return static_cast<double>(shift) + static_cast<double>(rest); }
};

// y = (h − shift) · slope + bias
struct alignas(16) ChannelMap {
    float shift;
    float slope;
    float bias;
    float unused;
};

// Where a thread of either pass stands; `vector` is no channel where it is past the last one.
struct Walk {
    std::uint32_t sample;
    std::uint32_t chunk;
    std::uint32_t vector;
    std::uint32_t walker;
    std::uint32_t begin;  // positions
    std::uint32_t end;
};

__device__ inline Walk walk_of(const PlaneShape& shape, std::uint32_t block) {
    const std::uint32_t slab = block % shape.slabs;
    const std::uint32_t chunk = block / shape.slabs % shape.chunks;
    const std::uint32_t begin = chunk * shape.chunk;
    return {block / shape.slabs / shape.chunks, chunk, slab * shape.slab + threadIdx.x % shape.slab,
            threadIdx.x / shape.slab,           begin, min(begin + shape.chunk, shape.spatial)};
}

// Read x, or x + residual.
template <typename T, int Width>
__device__ void load_sum(const Operands<T>& operands, std::int64_t at, float (&values)[Width]) {
    load(operands.x + at, values);
    if (!operands.residual) return;
    float addend[Width];
    load(operands.residual + at, addend);
#pragma unroll
    for (int j = 0; j < Width; ++j) values[j] += addend[j];
}

template <typename T, int Width>
__global__ void __launch_bounds__(kChannelsLastBlock, 3)
    channel_moments(const __grid_constant__ Operands<T> operands, const __grid_constant__ PlaneShape shape,
                    ChannelMoments* __restrict__ partials) {
    __shared__ ChannelMoments of_thread[kChannelsLastBlock * Width];
    const Walk walk = walk_of(shape, blockIdx.x);
    const std::int64_t sample = static_cast<std::int64_t>(walk.sample) * shape.spatial * shape.all_channels;
    const bool is_real = walk.walker < shape.walkers && walk.vector * Width < shape.all_channels;
    if (is_real) {
        const std::int64_t column = sample + walk.vector * Width;
        const auto at = [&](std::uint32_t position) {
            return column + static_cast<std::int64_t>(position) * shape.all_channels;
        };
        float shift[Width]{};
        Pair deviations[Width];
        std::uint32_t position = walk.begin + walk.walker;
        float count = 0.0f;
        for (int i = 0; i < kSample && position + i * shape.walkers < walk.end; ++i) {
            float values[Width];
            load_sum(operands, at(position + i * shape.walkers), values);
#pragma unroll
            for (int j = 0; j < Width; ++j) shift[j] += (values[j] - shift[j]) / (i + 1);
        }
#pragma unroll 4
        for (; position < walk.end; position += shape.walkers) {
            float values[Width];
            load_sum(operands, at(position), values);
            if (operands.sum) store(operands.sum + at(position), values);
#pragma unroll
            for (int j = 0; j < Width; ++j) {
                const float deviation = values[j] - shift[j];
                deviations[j] += Pair{deviation, deviation * deviation};
            }
            count += 1.0f;
        }
        const std::uint32_t slot = (walk.walker * shape.slab + walk.vector % shape.slab) * Width;
#pragma unroll
        for (int j = 0; j < Width; ++j) {
            const float rest = deviations[j].first / count;
            // A walker without a position writes NaN that nobody reads.
            of_thread[slot + j] = {shift[j], rest, deviations[j].second - rest * deviations[j].first};
        }
    }
    __syncthreads();

    // One thread for each channel of the slab combines its walkers.
    const std::uint32_t first = (walk.vector - walk.vector % shape.slab) * Width;
    const std::uint32_t own = min(shape.slab * Width, shape.all_channels - first);
    const std::uint32_t positions = walk.end - walk.begin;
    for (std::uint32_t c = threadIdx.x; c < own; c += kChannelsLastBlock) {
        double mean = 0.0;
        double m2 = 0.0;
        double count = 0.0;
        for (std::uint32_t walker = 0; walker < min(shape.walkers, positions); ++walker) {
            const ChannelMoments part = of_thread[walker * shape.slab * Width + c];
            const double more = (positions - walker + shape.walkers - 1) / shape.walkers;
            const double step = part.mean() - mean;
            m2 += part.m2 + step * step * count * more / (count + more);
            count += more;
            mean += step * more / count;
        }
        const std::int64_t slot =
            (static_cast<std::int64_t>(walk.sample) * shape.chunks + walk.chunk) * shape.all_channels + first + c;
        const float near = static_cast<float>(mean);
        partials[slot] = {near, static_cast<float>(mean - near), static_cast<float>(m2)};
    }
}

// One block for each (sample, group). RMSNorm has no channels-last form: this one is centred.
template <typename T>
__global__ void __launch_bounds__(kChannelsLastBlock)
    group_maps(const __grid_constant__ Operands<T> operands, const __grid_constant__ PlaneShape shape,
               const ChannelMoments* __restrict__ partials, ChannelMap* __restrict__ maps) {
    __shared__ double means[kWarp];
    __shared__ double squares[kWarp];
    const std::uint32_t sample = blockIdx.x / shape.groups;
    const std::uint32_t channels = shape.channels.divisor;
    const std::uint32_t first = blockIdx.x % shape.groups * channels;
    const ChannelMoments* of_sample = partials + static_cast<std::int64_t>(sample) * shape.chunks * shape.all_channels;
    const auto each = [&](auto&& visit) {
        for (std::uint32_t i = threadIdx.x; i < shape.chunks * channels; i += kChannelsLastBlock) {
            const std::uint32_t chunk = shape.channels.quotient(i);
            const std::uint32_t channel = first + shape.channels.remainder(i);
            const std::uint32_t begin = chunk * shape.chunk;
            visit(of_sample[static_cast<std::int64_t>(chunk) * shape.all_channels + channel],
                  static_cast<double>(min(begin + shape.chunk, shape.spatial) - begin));
        }
    };
    const double elements = static_cast<double>(shape.spatial) * channels;
    double total = 0.0;
    each([&](const ChannelMoments& part, double count) { total += count * part.mean(); });
    const double mean = sum_of_block(total, means) / elements;
    double m2 = 0.0;
    each([&](const ChannelMoments& part, double count) {
        const double step = part.mean() - mean;
        m2 += part.m2 + count * step * step;
    });
    const Statistics own = statistics(mean, sum_of_block(m2, squares) / elements, operands.epsilon);
    for (std::uint32_t c = first + threadIdx.x; c < first + channels; c += kChannelsLastBlock) {
        const float scale = operands.scale ? Element<T>::wide(operands.scale[c]) : 1.0f;
        const float bias = operands.bias ? Element<T>::wide(operands.bias[c]) : 0.0f;
        const float slope = scale * own.inverse;
        maps[static_cast<std::int64_t>(sample) * shape.all_channels + c] = {own.shift, slope,
                                                                            fmaf(-own.rest, slope, bias), 0.0f};
    }
}

template <typename T, int Width>
__global__ void __launch_bounds__(kChannelsLastBlock)
    apply_maps(const __grid_constant__ Operands<T> operands, const __grid_constant__ PlaneShape shape,
               const ChannelMap* __restrict__ maps) {
    // In reverse: what the first pass read last is still in the second-level cache.
    const Walk walk = walk_of(shape, gridDim.x - 1 - blockIdx.x);
    if (walk.walker >= shape.walkers || walk.vector * Width >= shape.all_channels) return;
    ChannelMap map[Width];
#pragma unroll
    for (int j = 0; j < Width; ++j) {
        map[j] = maps[static_cast<std::int64_t>(walk.sample) * shape.all_channels + walk.vector * Width + j];
    }
    const std::int64_t column =
        static_cast<std::int64_t>(walk.sample) * shape.spatial * shape.all_channels + walk.vector * Width;
#pragma unroll 4
    for (std::uint32_t position = walk.begin + walk.walker; position < walk.end; position += shape.walkers) {
        const std::int64_t at = column + static_cast<std::int64_t>(position) * shape.all_channels;
        float values[Width];
        load_sum(operands, at, values);
#pragma unroll
        for (int j = 0; j < Width; ++j) values[j] = fmaf(values[j] - map[j].shift, map[j].slope, map[j].bias);
        activate(operands.activation, values);
        store(operands.y + at, values);
    }
}

}  // namespace normfuse::cuda
