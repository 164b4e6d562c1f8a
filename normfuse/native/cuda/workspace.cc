#include "cuda/workspace.h"

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>

namespace normfuse::cuda {

namespace {

void require(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// A pool of our own for each device, which keeps what it once had: the device's own pool gives it back, and that is the
// application's to decide.
cudaMemPool_t pool() {
    static std::mutex mutex;
    static auto& pools = *new std::map<int, cudaMemPool_t>;
    int device = 0;
    require(cudaGetDevice(&device));
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = pools.find(device);
    if (known != pools.end()) return known->second;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t fresh = nullptr;
    require(cudaMemPoolCreate(&fresh, &properties));
    std::uint64_t everything = UINT64_MAX;
    require(cudaMemPoolSetAttribute(fresh, cudaMemPoolAttrReleaseThreshold, &everything));
    return pools[device] = fresh;
}

}  // namespace

Workspace::Workspace(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
    if (bytes > 0) require(cudaMallocFromPoolAsync(&data_, bytes, pool(), stream));
}

Workspace::~Workspace() {
    if (data_ != nullptr) cudaFreeAsync(data_, stream_);
}

}  // namespace normfuse::cuda
