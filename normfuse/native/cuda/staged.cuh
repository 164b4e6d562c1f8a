// Norms of contiguous groups that fit in the shared memory of a cluster of blocks: memory is read once.
//
// Each block of a cluster holds its share of a row as pieces in a ring of slots, filled by the bulk copy engine. It
// walks over its pieces twice, for the moments and to apply them; a slot that was applied is filled at once with a
// piece of the cluster's next row, so that reading goes on while results are written. The blocks exchange their moments
// through distributed shared memory. Two blocks to a multiprocessor, so that one computes while the other waits, and as
// many clusters as run at once.
#pragma once

#include "cuda/affine.cuh"
#include "cuda/machine.cuh"
#include "cuda/reduce.cuh"

namespace normfuse::cuda {

inline constexpr int kStagedBlock = 512;
inline constexpr int kSlots = 6;
inline constexpr int kSlotBytes = 16 * 1024;

struct StagedShape {
    std::uint32_t rows;
    std::uint32_t length;
    std::uint32_t share;     // elements of one block
    std::uint32_t channels;  // of one row
    FastDivide groups;
    FastDivide spatial;
    std::uint32_t team;  // blocks of a cluster
};

#if __CUDA_ARCH__ >= 900

// y = (h − shift) · slope + bias for the elements of one channel.
struct ChannelSlope {
    float slope;
    float bias;
};

// Combine the moments of the blocks of a cluster; every warp does it for itself.
__device__ inline Moments moments_of_cluster(const Moments& own, Moments& shared, std::uint32_t length) {
    if (threadIdx.x == 0) shared = own;
    sync_cluster();
    const unsigned lane = threadIdx.x % kWarp;
    Moments part{0.0, 0.0, 0.0};
    if (lane < blocks_of_cluster()) part = *shared_of_block(&shared, lane);
    const double mean = sum_of_lanes(part.count * part.mean) / length;
    const double step = part.mean - mean;
    return {mean, sum_of_lanes(part.m2 + part.count * step * step), static_cast<double>(length)};
}

#endif

template <typename T>
__global__ void __launch_bounds__(kStagedBlock, 2)
    norm_staged(const __grid_constant__ Operands<T> operands, const __grid_constant__ StagedShape shape) {
#if __CUDA_ARCH__ >= 900  // the plan takes it from there on
    constexpr int Width = kWide<T>;
    uint4* const slots = dynamic_shared();
    __shared__ std::uint64_t filled[kSlots];
    __shared__ float sums[kWarp];
    __shared__ Pair pairs[kWarp];
    __shared__ Moments moments[2];
    __shared__ ChannelSlope slopes[kStagedBlock];
    constexpr std::uint32_t kSlotVectors = kSlotBytes / sizeof(uint4);
    // A slot holds a piece of x and, behind it, the same piece of the residual.
    const std::uint32_t piece = operands.residual ? kSlotVectors / 2 : kSlotVectors;
    const std::uint32_t cluster = blockIdx.x / shape.team;
    const std::uint32_t clusters = gridDim.x / shape.team;
    const std::uint32_t first = min(blockIdx.x % shape.team * shape.share, shape.length);
    const std::uint32_t vectors = (min(first + shape.share, shape.length) - first) / Width;
    const std::uint32_t pieces = (vectors + piece - 1) / piece;
    const std::uint32_t turns = cluster < shape.rows ? (shape.rows - cluster + clusters - 1) / clusters : 0;

    // Pieces are numbered through all rows of the cluster.
    const auto fetch = [&](std::uint32_t number) {
        const std::uint32_t turn = number / pieces;
        if (turn >= turns) return;
        const std::uint32_t begin = number % pieces * piece;
        const std::uint32_t bytes = min(piece, vectors - begin) * sizeof(uint4);
        const std::int64_t at =
            static_cast<std::int64_t>(cluster + turn * clusters) * shape.length + first + begin * Width;
        std::uint64_t& barrier = filled[number % kSlots];
        uint4* slot = slots + number % kSlots * kSlotVectors;
        expect_bytes(barrier, operands.residual ? 2 * bytes : bytes);
        copy_in(slot, operands.x + at, bytes, barrier);
        if (operands.residual) copy_in(slot + piece, operands.residual + at, bytes, barrier);
    };
    const auto read = [&](const uint4* slot, std::uint32_t v, float (&values)[Width]) {
        widen<T, Width>(slot[v], values);
        if (!operands.residual) return;
        float addend[Width];
        widen<T, Width>(slot[piece + v], addend);
#pragma unroll
        for (int j = 0; j < Width; ++j) values[j] += addend[j];
    };

    if (threadIdx.x == 0) {
        for (std::uint64_t& barrier : filled) prepare_barrier(barrier);
        publish_barriers();
        if (pieces > 0) {
            for (std::uint32_t number = 0; number < kSlots; ++number) fetch(number);
        }
    }
    __syncthreads();

    // Where a vector lies in one channel and the channels are few, thread c makes the slope of channel c for all.
    const bool has_slopes =
        shape.spatial.divisor > 1 && shape.spatial.divisor % Width == 0 && shape.channels <= kStagedBlock;

    for (std::uint32_t turn = 0; turn < turns; ++turn) {
        const std::uint32_t row = cluster + turn * clusters;
        const std::uint32_t channel = shape.groups.remainder(row) * shape.channels;
        float own_scale = 1.0f;
        float own_bias = 0.0f;
        if (has_slopes && threadIdx.x < shape.channels) {
            if (operands.scale) own_scale = Element<T>::wide(__ldg(operands.scale + channel + threadIdx.x));
            if (operands.bias) own_bias = Element<T>::wide(__ldg(operands.bias + channel + threadIdx.x));
        }
        const std::int64_t base = static_cast<std::int64_t>(row) * shape.length + first;
        const float count = vectors * static_cast<float>(Width);

        // Deviations are taken from the mean of a sample, each thread's first vector. Where the sample lies far from
        // the rest it widens the variance as well, so that what cancels stays near the rounding of the sums.
        float shift = 0.0f;
        if (operands.centred && pieces > 0) {
            const std::uint32_t number = turn * pieces;
            await_bytes(filled[number % kSlots], number / kSlots);
            float total = 0.0f;
            if (threadIdx.x < vectors) {
                float values[Width];
                read(slots + number % kSlots * kSlotVectors, threadIdx.x, values);
#pragma unroll
                for (int j = 0; j < Width; ++j) total += values[j];
            }
            shift = sum_of_block(total, sums) / (min(vectors, static_cast<std::uint32_t>(kStagedBlock)) * Width);
        }
        Pair deviations;
        for (std::uint32_t p = 0; p < pieces; ++p) {
            const std::uint32_t number = turn * pieces + p;
            const uint4* slot = slots + number % kSlots * kSlotVectors;
            const std::uint32_t here = min(piece, vectors - p * piece);
            await_bytes(filled[number % kSlots], number / kSlots);
#pragma unroll 2
            for (std::uint32_t v = threadIdx.x; v < here; v += kStagedBlock) {
                float values[Width];
                read(slot, v, values);
                if (operands.sum) store(operands.sum + base + (p * piece + v) * Width, values);
                Pair of_vector;
#pragma unroll
                for (int j = 0; j < Width; ++j) {
                    const float deviation = values[j] - shift;
                    of_vector += Pair{deviation, deviation * deviation};
                }
                deviations += of_vector;
            }
        }
        deviations = sum_of_block(deviations, pairs);
        const float rest = operands.centred && count > 0.0f ? deviations.first / count : 0.0f;
        const float m2 = operands.centred ? deviations.second - rest * deviations.first : deviations.second;
        Statistics own{shift, rest, inverse_deviation(m2 / count, operands.epsilon)};
        if (shape.team > 1) {
            // Two in turn: a block that is ahead by a row writes the other one.
            const Moments whole = moments_of_cluster(
                {static_cast<double>(shift) + static_cast<double>(rest), m2, count}, moments[turn % 2], shape.length);
            own = statistics(whole.mean, whole.m2 / whole.count, operands.epsilon);
        }

        if (has_slopes) {
            if (threadIdx.x < shape.channels) {
                const float slope = own_scale * own.inverse;
                slopes[threadIdx.x] = {slope, fmaf(-own.rest, slope, own_bias)};
            }
            __syncthreads();
        }
        for (std::uint32_t p = 0; p < pieces; ++p) {
            const std::uint32_t number = turn * pieces + p;
            const uint4* slot = slots + number % kSlots * kSlotVectors;
            const std::uint32_t here = min(piece, vectors - p * piece);
#pragma unroll 2
            for (std::uint32_t v = threadIdx.x; v < here; v += kStagedBlock) {
                const std::uint32_t offset = (p * piece + v) * Width;
                float values[Width];
                read(slot, v, values);
                if (has_slopes) {
                    const ChannelSlope map = slopes[shape.spatial.quotient(first + offset)];
#pragma unroll
                    for (int j = 0; j < Width; ++j) values[j] = fmaf(values[j] - own.shift, map.slope, map.bias);
                } else {
                    float scale[Width];
                    float bias[Width];
                    load_affine(operands, shape.spatial, channel, first + offset, scale, bias);
#pragma unroll
                    for (int j = 0; j < Width; ++j) {
                        const float slope = scale[j] * own.inverse;
                        values[j] = fmaf(values[j] - own.shift, slope, fmaf(-own.rest, slope, bias[j]));
                    }
                }
                activate(operands.activation, values);
                store(operands.y + base + offset, values);
            }
            __syncthreads();
            if (threadIdx.x == 0) fetch(number + kSlots);
        }
    }
    // A block that ended would take its moments with it.
    if (shape.team > 1) sync_cluster();
#endif
}

}  // namespace normfuse::cuda
