// Which strategy is the fastest for a norm on the current device.
#include <algorithm>
#include <array>
#include <mutex>

#include "cuda/launch.cuh"
#include "cuda/plan.h"

namespace normfuse::cuda {

extern template int clusters_at_once<float>(int);  // compiled in float.cu

namespace {

// Clusters of 1, 2, 4 and 8 blocks. With 16, which some devices have, reading twice was faster.
inline constexpr int kTeams = 4;

struct Device {
    std::int64_t multiprocessors;
    std::array<int, kTeams> clusters;  // of 2^i blocks of norm_staged, at once; 0 where the device has none
};

cudaError_t read_device(int number, Device& device) {
    int multiprocessors = 0;
    int major = 0;
    auto status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, number);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number);
    if (status != cudaSuccess) return status;
    device = {multiprocessors, {}};
    // One type's answer holds for all: what limits the blocks is shared memory, the same for each.
    for (int i = 0; i < kTeams && major >= 9; ++i) device.clusters[i] = clusters_at_once<float>(1 << i);
    return cudaSuccess;
}

// The attributes of the current device, asked for once.
cudaError_t current_device(Device& device) {
    static std::mutex mutex;
    static std::array<Device, 64> known{};
    int number = 0;
    auto status = cudaGetDevice(&number);
    if (status != cudaSuccess) return status;
    if (number >= static_cast<int>(known.size())) return read_device(number, device);
    const std::lock_guard<std::mutex> lock(mutex);
    if (known[number].multiprocessors == 0) status = read_device(number, known[number]);
    device = known[number];
    return status;
}

inline constexpr std::int64_t kMostChunks = 1024;    // of a row
inline constexpr std::int64_t kLongestAlone = 8192;  // elements of a row that one block takes even if others idle

std::int64_t divided_up(std::int64_t value, std::int64_t divisor) { return (value + divisor - 1) / divisor; }

bool is_aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

// Elements of one access: 16 bytes' worth where every run of `run` elements begins and ends on such a border.
int width_of(const NormfuseNorm& norm, std::int64_t run) {
    const int wide = norm.type == kNormfuseFloat ? kWide<float> : kWide<__half>;
    bool is_wide = run % wide == 0 && is_aligned(norm.x) && is_aligned(norm.residual) && is_aligned(norm.y) &&
                   is_aligned(norm.sum);
    if (norm.spatial == 1) is_wide = is_wide && is_aligned(norm.scale) && is_aligned(norm.bias);
    return is_wide ? wide : 1;
}

NormfusePlan plan_channels_last(const NormfuseNorm& norm, const Device& device) {
    const std::int64_t all_channels = norm.groups * norm.channels;
    NormfusePlan plan{kNormfuseChannelsLast, width_of(norm, all_channels), 0, kChannelsLastBlock, 0, 0, 0, 0};
    const std::int64_t vectors = all_channels / plan.width;
    const std::int64_t slab = std::min<std::int64_t>(vectors, kChannelsLastBlock);
    const std::int64_t walkers = kChannelsLastBlock / slab;
    const std::int64_t wanted = divided_up(4 * device.multiprocessors, norm.batch * divided_up(vectors, slab));
    const std::int64_t of_walker = divided_up(norm.spatial, wanted * walkers);
    plan.chunk = walkers * std::clamp<std::int64_t>(of_walker, 1, kChannelsLastPositions);
    const std::int64_t chunks = divided_up(norm.spatial, plan.chunk);
    plan.workspace =
        norm.batch * all_channels * static_cast<std::int64_t>(sizeof(ChannelMap) + chunks * sizeof(ChannelMoments));
    return plan;
}

NormfusePlan plan_streamed(const NormfuseNorm& norm, const Device& device, int width) {
    const std::int64_t rows = norm.batch * norm.groups;
    const std::int64_t length = norm.channels * norm.spatial;
    // Chunks of one to three tiles, so that the device is full; but few enough that every block can combine those of a
    // row.
    const std::int64_t tiles = divided_up(length, kStreamedTile);
    const std::int64_t wanted = std::clamp<std::int64_t>(rows * tiles / (8 * device.multiprocessors), 1, 3);
    NormfusePlan plan{kNormfuseStreamed, width, 0, kStreamedBlock, 0, 0, 0, 0};
    plan.chunk = std::max(wanted, divided_up(tiles, kMostChunks)) * kStreamedTile;
    plan.workspace = rows * divided_up(length, plan.chunk) * static_cast<std::int64_t>(sizeof(Moments));
    return plan;
}

// The smallest cluster that holds a row: the fewer blocks wait for each other, the better. Returns false where none
// does, or where its rows would leave much of the device idle.
bool plan_staged(const NormfuseNorm& norm, const Device& device, NormfusePlan& plan) {
    const std::int64_t rows = norm.batch * norm.groups;
    const std::int64_t bytes = norm.channels * norm.spatial / plan.width * 16 * (norm.residual ? 2 : 1);
    for (int i = 0; i < kTeams && device.clusters[i] > 0; ++i) {
        const int team = 1 << i;
        if (divided_up(bytes, 16 * team) * 16 > kSlots * kSlotBytes) continue;
        if (rows * team < device.multiprocessors * 3 / 4) return false;
        const auto clusters = std::min<std::int64_t>(rows, device.clusters[i]);
        plan = {kNormfuseCluster, plan.width, 0, kStagedBlock, team, static_cast<int>(clusters), 0, 0};
        return true;
    }
    return false;
}

// As few threads as keep the device full: each then has more to do between two barriers.
NormfusePlan plan_block(std::int64_t rows, std::int64_t length, const Device& device, int width) {
    const auto threads_of = [&](int elements) { return divided_up(divided_up(length, elements), kWarp) * kWarp; };
    int elements = width == 1 ? kMostScalars : kMostElements;
    while (elements > 8 && rows * threads_of(elements) < device.multiprocessors * 512 &&
           threads_of(elements / 2) <= kLargestBlock) {
        elements /= 2;
    }
    return {kNormfuseBlock, width, elements, static_cast<int>(threads_of(elements)), 1, 0, 0, 0};
}

NormfusePlan plan_rows(const NormfuseNorm& norm, const Device& device) {
    const std::int64_t rows = norm.batch * norm.groups;
    const std::int64_t length = norm.channels * norm.spatial;
    const int width = width_of(norm, length);
    if (length <= kLongestInLanes) {
        const int elements = length <= 8 * kWarp ? 8 : 16;
        int lanes = 1;
        while (lanes * elements < length) lanes *= 2;
        return {kNormfuseLanes, width, elements, kLanesBlock, lanes, 0, 0, 0};
    }
    const bool fits_in_block = length <= kLargestBlock * (width == 1 ? kMostScalars : kMostElements);
    const bool leaves_idle = rows < device.multiprocessors / 2 && length > kLongestAlone;
    if (fits_in_block && !leaves_idle) return plan_block(rows, length, device, width);
    NormfusePlan plan{kNormfuseStreamed, width, 0, 0, 0, 0, 0, 0};
    if (width > 1 && plan_staged(norm, device, plan)) return plan;
    return plan_streamed(norm, device, width);
}

}  // namespace

cudaError_t plan_for(const NormfuseNorm& norm, NormfusePlan& plan) {
    plan = {};
    const std::int64_t length = norm.channels * norm.spatial;
    if (norm.batch * norm.groups * length == 0) return cudaSuccess;
    const bool walks_planes = norm.channels_last && norm.spatial > 1;
    if (norm.batch * norm.groups >= std::int64_t{1} << 31 || norm.spatial >= std::int64_t{1} << 30 ||
        length >= std::int64_t{1} << 40 || (walks_planes && !norm.centred)) {
        return cudaErrorInvalidValue;
    }
    Device device{};
    const auto status = current_device(device);
    if (status != cudaSuccess) return status;
    plan = walks_planes ? plan_channels_last(norm, device) : plan_rows(norm, device);
    return cudaSuccess;
}

}  // namespace normfuse::cuda
