// From a plan to launches, for one type of element.
#pragma once

#include "cuda/channels_last.cuh"
#include "cuda/rows.cuh"
#include "cuda/staged.cuh"
#include "cuda/streamed.cuh"

namespace normfuse::cuda {

template <typename T>
cudaError_t run(const NormfuseNorm& norm, const NormfusePlan& plan, void* workspace, cudaStream_t stream);

template <typename T>
int clusters_at_once(int team);

template <typename T>
Operands<T> operands_of(const NormfuseNorm& norm) {
    return {static_cast<const T*>(norm.x),
            static_cast<const T*>(norm.scale),
            static_cast<const T*>(norm.bias),
            static_cast<const T*>(norm.residual),
            static_cast<T*>(norm.y),
            static_cast<T*>(norm.sum),
            norm.epsilon,
            norm.activation,
            norm.centred != 0};
}

// Enqueue `blocks` blocks of a kernel.
template <typename... Parameters, typename... Arguments>
cudaError_t enqueue(void (*kernel)(Parameters...), std::uint32_t blocks, int threads, cudaStream_t stream,
                    const Arguments&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename T, int Width, int Vectors, NormfuseStrategy strategy>
cudaError_t launch_rows(const NormfuseNorm& norm, const NormfusePlan& plan, cudaStream_t stream) {
    auto* kernel = norm_rows<T, Width, Vectors, strategy>;
    const auto rows = static_cast<std::uint32_t>(norm.batch * norm.groups);
    const RowShape shape{rows,
                         static_cast<std::uint32_t>(norm.channels * norm.spatial),
                         static_cast<std::uint32_t>(norm.channels),
                         FastDivide::by(static_cast<std::uint32_t>(norm.groups)),
                         FastDivide::by(static_cast<std::uint32_t>(norm.spatial)),
                         plan.team};
    std::uint32_t blocks = rows;
    if constexpr (strategy == kNormfuseLanes) {
        const std::uint32_t rows_of_block = plan.threads / plan.team;
        blocks = (rows + rows_of_block - 1) / rows_of_block;
    }
    return enqueue(kernel, blocks, plan.threads, stream, operands_of<T>(norm), shape);
}

template <typename T, int Width, int Vectors>
cudaError_t launch_rows(const NormfuseNorm& norm, const NormfusePlan& plan, cudaStream_t stream) {
    return plan.strategy == kNormfuseLanes ? launch_rows<T, Width, Vectors, kNormfuseLanes>(norm, plan, stream)
                                           : launch_rows<T, Width, Vectors, kNormfuseBlock>(norm, plan, stream);
}

// How norm_staged is launched: in clusters of `team` blocks.
struct ClusterLaunch {
    cudaLaunchConfig_t config{};
    cudaLaunchAttribute attribute{};

    ClusterLaunch(int team, int clusters, cudaStream_t stream) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = team;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        config.gridDim = dim3(team * clusters);
        config.blockDim = dim3(kStagedBlock);
        config.dynamicSmemBytes = kSlots * kSlotBytes;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    ClusterLaunch(const ClusterLaunch&) = delete;
};

// Allow norm_staged more shared memory than a kernel has by itself.
template <typename T>
cudaError_t prepare_staged() {
    return cudaFuncSetAttribute(norm_staged<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSlots * kSlotBytes);
}

// How many clusters of `team` blocks of norm_staged the current device runs at once; 0 where it has none of that size.
template <typename T>
int clusters_at_once(int team) {
    int clusters = 0;
    const ClusterLaunch launch(team, 1, nullptr);
    if (prepare_staged<T>() == cudaSuccess &&
        cudaOccupancyMaxActiveClusters(&clusters, norm_staged<T>, &launch.config) == cudaSuccess) {
        return clusters;
    }
    cudaGetLastError();  // asking was no error of the caller's
    return 0;
}

template <typename T>
cudaError_t launch_staged(const NormfuseNorm& norm, const NormfusePlan& plan, cudaStream_t stream) {
    const std::int64_t length = norm.channels * norm.spatial;
    const std::int64_t vectors = length / kWide<T>;
    const StagedShape shape{static_cast<std::uint32_t>(norm.batch * norm.groups),
                            static_cast<std::uint32_t>(length),
                            static_cast<std::uint32_t>((vectors + plan.team - 1) / plan.team * kWide<T>),
                            static_cast<std::uint32_t>(norm.channels),
                            FastDivide::by(static_cast<std::uint32_t>(norm.groups)),
                            FastDivide::by(static_cast<std::uint32_t>(norm.spatial)),
                            static_cast<std::uint32_t>(plan.team)};
    const auto status = prepare_staged<T>();
    if (status != cudaSuccess) return status;
    const ClusterLaunch launch(plan.team, plan.clusters, stream);
    return cudaLaunchKernelEx(&launch.config, norm_staged<T>, operands_of<T>(norm), shape);
}

template <typename T, int Width>
cudaError_t launch_streamed(const NormfuseNorm& norm, const NormfusePlan& plan, void* workspace, cudaStream_t stream) {
    const std::int64_t length = norm.channels * norm.spatial;
    const auto chunks = static_cast<std::uint32_t>((length + plan.chunk - 1) / plan.chunk);
    const StreamShape shape{length,
                            plan.chunk,
                            chunks,
                            static_cast<std::uint32_t>(norm.channels),
                            FastDivide::by(static_cast<std::uint32_t>(norm.groups)),
                            FastDivide::by(static_cast<std::uint32_t>(norm.spatial))};
    const auto blocks = static_cast<std::uint32_t>(norm.batch * norm.groups * chunks);
    const auto operands = operands_of<T>(norm);
    auto* partials = static_cast<Moments*>(workspace);
    const auto status = enqueue(chunk_moments<T, Width>, blocks, kStreamedBlock, stream, operands, shape, partials);
    if (status != cudaSuccess) return status;
    return enqueue(apply_chunks<T, Width>, blocks, kStreamedBlock, stream, operands, shape, partials);
}

template <typename T, int Width>
cudaError_t launch_channels_last(const NormfuseNorm& norm, const NormfusePlan& plan, void* workspace,
                                 cudaStream_t stream) {
    const auto all_channels = static_cast<std::uint32_t>(norm.groups * norm.channels);
    const auto spatial = static_cast<std::uint32_t>(norm.spatial);
    const auto chunk = static_cast<std::uint32_t>(plan.chunk);
    const std::uint32_t vectors = all_channels / Width;
    const std::uint32_t slab = vectors < kChannelsLastBlock ? vectors : kChannelsLastBlock;
    const PlaneShape shape{spatial,
                           all_channels,
                           static_cast<std::uint32_t>(norm.groups),
                           FastDivide::by(static_cast<std::uint32_t>(norm.channels)),
                           chunk,
                           (spatial + chunk - 1) / chunk,
                           slab,
                           (vectors + slab - 1) / slab,
                           kChannelsLastBlock / slab};
    const auto batch = static_cast<std::uint32_t>(norm.batch);
    const std::uint32_t blocks = batch * shape.chunks * shape.slabs;
    const auto operands = operands_of<T>(norm);
    auto* maps = static_cast<ChannelMap*>(workspace);
    auto* partials = reinterpret_cast<ChannelMoments*>(maps + static_cast<std::size_t>(batch) * all_channels);
    auto status = enqueue(channel_moments<T, Width>, blocks, kChannelsLastBlock, stream, operands, shape, partials);
    if (status != cudaSuccess) return status;
    const std::uint32_t all_groups = batch * shape.groups;
    status = enqueue(group_maps<T>, all_groups, kChannelsLastBlock, stream, operands, shape, partials, maps);
    if (status != cudaSuccess) return status;
    return enqueue(apply_maps<T, Width>, blocks, kChannelsLastBlock, stream, operands, shape, maps);
}

template <typename T>
cudaError_t run(const NormfuseNorm& norm, const NormfusePlan& plan, void* workspace, cudaStream_t stream) {
    constexpr int wide = kWide<T>;
    if (plan.strategy == kNormfuseChannelsLast) {
        return plan.width == 1 ? launch_channels_last<T, 1>(norm, plan, workspace, stream)
                               : launch_channels_last<T, wide>(norm, plan, workspace, stream);
    }
    if (plan.strategy == kNormfuseStreamed) {
        return plan.width == 1 ? launch_streamed<T, 1>(norm, plan, workspace, stream)
                               : launch_streamed<T, wide>(norm, plan, workspace, stream);
    }
    if (plan.strategy == kNormfuseCluster) return launch_staged<T>(norm, plan, stream);
    if (plan.width == 1) {
        return plan.elements == 8 ? launch_rows<T, 1, 8>(norm, plan, stream)
                                  : launch_rows<T, 1, 16>(norm, plan, stream);
    }
    switch (plan.elements) {
        case 8:
            return launch_rows<T, wide, 8 / wide>(norm, plan, stream);
        case 16:
            return launch_rows<T, wide, 16 / wide>(norm, plan, stream);
        default:
            return launch_rows<T, wide, 32 / wide>(norm, plan, stream);
    }
}

}  // namespace normfuse::cuda
