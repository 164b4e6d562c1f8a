// Launches, errors and the attributes of the emulated device.
#include <map>
#include <mutex>
#include <string>

#include "cuda_runtime.h"

namespace {

// As an H200 has it, so that plans are those of a real device.
constexpr int kMultiprocessors = 132;
constexpr int kMajor = 9;
constexpr std::size_t kSharedBytes = 227 * 1024;  // of a multiprocessor
constexpr std::size_t kUnasked = 48 * 1024;       // of a launch that was not allowed more
constexpr unsigned kThreads = 1024;               // of a block
constexpr unsigned kClusterBlocks = 8;

std::mutex mutex;
std::map<const void*, std::size_t> allowed;
std::uint64_t seed = 0;
std::string failure = "no failure";

}  // namespace

extern "C" {

// What a GPU leaves open is drawn from `value`; 0: threads in order, copies as late as may be.
__attribute__((visibility("default"))) void emulation_seed(std::uint64_t value) { seed = value; }
}

namespace emulation {

void allow_shared(const void* kernel, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    allowed[kernel] = bytes;
}

int clusters_at_once(const cudaLaunchConfig_t& config) {
    const unsigned team = config.attrs[0].val.clusterDim.x;
    if (team > kClusterBlocks) return 0;
    const std::size_t of_one = kSharedBytes / (config.dynamicSmemBytes + 1024);
    return static_cast<int>(kMultiprocessors * of_one / team);
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> call) {
    const unsigned cluster = config.numAttrs == 0 ? 1 : config.attrs[0].val.clusterDim.x;
    std::size_t shared = kUnasked;
    if (const auto found = allowed.find(kernel); found != allowed.end()) shared = found->second;
    const unsigned threads = config.blockDim.x;
    if (config.gridDim.x == 0 || config.gridDim.x >= 1u << 31 || threads == 0 || threads > kThreads ||
        threads % 32 != 0 || cluster == 0 || cluster > kClusterBlocks || config.gridDim.x % cluster != 0 ||
        config.dynamicSmemBytes > shared || shared > kSharedBytes) {
        return cudaErrorInvalidConfiguration;
    }
    try {
        run({config.gridDim, config.blockDim, config.dynamicSmemBytes, cluster, seed, std::move(call)});
    } catch (const std::exception& error) {
        failure = error.what();
        return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

}  // namespace emulation

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount ? kMultiprocessors : kMajor;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        default:
            return failure.c_str();
    }
}
