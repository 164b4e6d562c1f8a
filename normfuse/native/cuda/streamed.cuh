// Norms of contiguous groups that do not fit on the chip: one pass for the moments of chunks, a second one that
// applies.
//
// The second pass takes the chunks in reverse: what was read last is still in the second-level cache.
#pragma once

#include "cuda/affine.cuh"
#include "cuda/reduce.cuh"

namespace normfuse::cuda {

inline constexpr int kStreamedBlock = 256;
inline constexpr int kStreamedElements = 16;  // of one thread and tile
inline constexpr int kStreamedTile = kStreamedBlock * kStreamedElements;

struct StreamShape {
    std::int64_t length;
    std::int64_t chunk;  // elements of a chunk, whole tiles
    std::uint32_t chunks;
    std::uint32_t channels;  // of one row
    FastDivide groups;
    FastDivide spatial;
};

// Read the tile at `start`: x, or x + residual.
template <typename T, int Width, int Vectors>
__device__ void load_tile(const Operands<T>& operands, std::int64_t start, int elements,
                          float (&values)[Vectors][Width]) {
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
        const int offset = (v * kStreamedBlock + threadIdx.x) * Width;
        if (offset < elements) {
            load(operands.x + start + offset, values[v]);
        } else {
#pragma unroll
            for (int j = 0; j < Width; ++j) values[v][j] = 0.0f;
        }
    }
    if (!operands.residual) return;
#pragma unroll
    for (int v = 0; v < Vectors; ++v) {
        const int offset = (v * kStreamedBlock + threadIdx.x) * Width;
        if (offset >= elements) continue;
        float addend[Width];
        load(operands.residual + start + offset, addend);
#pragma unroll
        for (int j = 0; j < Width; ++j) values[v][j] += addend[j];
    }
}

template <typename T, int Width>
__global__ void __launch_bounds__(kStreamedBlock)
    chunk_moments(const __grid_constant__ Operands<T> operands, const __grid_constant__ StreamShape shape,
                  Moments* __restrict__ partials) {
    constexpr int Vectors = kStreamedElements / Width;
    __shared__ float sums[kWarp];
    __shared__ Pair pairs[kWarp];
    const std::uint32_t row = blockIdx.x / shape.chunks;
    const std::int64_t begin = (blockIdx.x % shape.chunks) * shape.chunk;
    const std::int64_t end = min(begin + shape.chunk, shape.length);
    Moments chunk{0.0, 0.0, 0.0};
    for (std::int64_t tile = begin; tile < end; tile += kStreamedTile) {
        const int elements = static_cast<int>(min(end - tile, static_cast<std::int64_t>(kStreamedTile)));
        const std::int64_t start = row * shape.length + tile;
        float values[Vectors][Width];
        load_tile<T, Width, Vectors>(operands, start, elements, values);
        float shift = 0.0f;
        if (operands.centred) {
            float total = 0.0f;
#pragma unroll
            for (int v = 0; v < Vectors; ++v) {
#pragma unroll
                for (int j = 0; j < Width; ++j) total += values[v][j];
            }
            shift = sum_of_block(total, sums) / elements;
        }
        Pair deviations;
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
            const int offset = (v * kStreamedBlock + threadIdx.x) * Width;
            if (offset >= elements) continue;
            if (operands.sum) store(operands.sum + start + offset, values[v]);
#pragma unroll
            for (int j = 0; j < Width; ++j) {
                const float deviation = values[v][j] - shift;
                deviations += Pair{deviation, deviation * deviation};
            }
        }
        deviations = sum_of_block(deviations, pairs);
        const double rest = operands.centred ? static_cast<double>(deviations.first) / elements : 0.0;
        const Moments own{shift + rest, deviations.second - rest * rest * elements, static_cast<double>(elements)};
        const double count = chunk.count + own.count;
        const double step = own.mean - chunk.mean;
        chunk.m2 += own.m2 + step * step * chunk.count * own.count / count;
        chunk.mean += step * own.count / count;
        chunk.count = count;
        __syncthreads();  // the next tile writes `sums` and `pairs`
    }
    if (threadIdx.x == 0) partials[blockIdx.x] = chunk;
}

template <typename T, int Width>
__global__ void __launch_bounds__(kStreamedBlock, 3)
    apply_chunks(const __grid_constant__ Operands<T> operands, const __grid_constant__ StreamShape shape,
                 const Moments* __restrict__ partials) {
    constexpr int Vectors = kStreamedElements / Width;
    __shared__ double means[kWarp];
    __shared__ double squares[kWarp];
    const std::uint32_t block = gridDim.x - 1 - blockIdx.x;
    const std::uint32_t row = block / shape.chunks;
    const Moments* of_row = partials + static_cast<std::int64_t>(row) * shape.chunks;
    double total = 0.0;
    for (std::uint32_t c = threadIdx.x; c < shape.chunks; c += kStreamedBlock)
        total += of_row[c].count * of_row[c].mean;
    const double mean = sum_of_block(total, means) / shape.length;
    double m2 = 0.0;
    for (std::uint32_t c = threadIdx.x; c < shape.chunks; c += kStreamedBlock) {
        const double shift = of_row[c].mean - mean;
        m2 += of_row[c].m2 + of_row[c].count * shift * shift;
    }
    const Statistics own = statistics(mean, sum_of_block(m2, squares) / shape.length, operands.epsilon);

    const std::int64_t begin = (block % shape.chunks) * shape.chunk;
    const std::int64_t end = min(begin + shape.chunk, shape.length);
    const std::uint32_t channel = shape.groups.remainder(row) * shape.channels;
    for (std::int64_t tile = begin; tile < end; tile += kStreamedTile) {
        const int elements = static_cast<int>(min(end - tile, static_cast<std::int64_t>(kStreamedTile)));
        const std::int64_t start = row * shape.length + tile;
        const std::uint32_t first_channel = channel + static_cast<std::uint32_t>(tile / shape.spatial.divisor);
        const std::uint32_t position = static_cast<std::uint32_t>(tile % shape.spatial.divisor);
        float values[Vectors][Width];
        load_tile<T, Width, Vectors>(operands, start, elements, values);
#pragma unroll
        for (int v = 0; v < Vectors; ++v) {
            const int offset = (v * kStreamedBlock + threadIdx.x) * Width;
            if (offset >= elements) continue;
            float scale[Width];
            float bias[Width];
            load_affine(operands, shape.spatial, first_channel, position + offset, scale, bias);
#pragma unroll
            for (int j = 0; j < Width; ++j) {
                const float slope = scale[j] * own.inverse;
                values[v][j] = fmaf(values[v][j] - own.shift, slope, fmaf(-own.rest, slope, bias[j]));
            }
            activate(operands.activation, values[v]);
            store(operands.y + start + offset, values[v]);
        }
    }
}

}  // namespace normfuse::cuda
