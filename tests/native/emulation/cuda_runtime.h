// The part of CUDA that the kernels are written in, for the CPU; see block.h. Found in place of the header of that
// name.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "block.h"

#define __CUDA_ARCH__ 900

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local

using uint3 = emulation::Index;
extern thread_local emulation::Index threadIdx;
extern thread_local emulation::Index blockIdx;
extern thread_local emulation::Index blockDim;
extern thread_local emulation::Index gridDim;

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename First, typename Second>
std::common_type_t<First, Second> min(First first, Second second) {
    using Common = std::common_type_t<First, Second>;
    return std::min<Common>(first, second);
}

template <typename Value>
Value __ldg(const Value* address) {
    emulation::require_aligned(address, alignof(Value), "load");
    return *address;
}

inline unsigned __umulhi(unsigned first, unsigned second) {
    return static_cast<unsigned>(std::uint64_t{first} * second >> 32);
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void __syncthreads() { emulation::Block::current().sync_threads(); }

template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int distance) {
    static_assert(sizeof(Value) <= 8);
    if (mask != 0xffffffffu) throw std::runtime_error("only whole warps are emulated");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = emulation::Block::current().exchange(bits, distance);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The runtime.

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
using cudaStream_t = struct EmulatedStream*;

struct dim3 : emulation::Index {
    dim3() : emulation::Index{1, 1, 1} {}
    explicit dim3(unsigned count) : emulation::Index{count, 1, 1} {}
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        emulation::Index clusterDim;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim;
    dim3 blockDim;
    std::size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute* attrs = nullptr;
    unsigned numAttrs = 0;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace emulation {

// Dynamic shared memory that a kernel may ask for.
void allow_shared(const void* kernel, std::size_t bytes);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> call);
int clusters_at_once(const cudaLaunchConfig_t& config);

}  // namespace emulation

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
    emulation::allow_shared(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(bytes));
    return cudaSuccess;
}

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*)(Parameters...), const cudaLaunchConfig_t* config) {
    *clusters = emulation::clusters_at_once(*config);
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
    return emulation::launch(*config, reinterpret_cast<const void*>(kernel),
                             [=] { kernel(static_cast<Parameters>(arguments)...); });
}
