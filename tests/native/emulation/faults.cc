// Kernels with one fault each, which the emulation has to find.
#include "cuda/machine.cuh"
#include "cuda/reduce.cuh"

namespace {

using namespace normfuse::cuda;

// Every kernel is to write to y[i] what lies at x[i ^ 1].

void right(const float* x, float* y) {
    __shared__ float values[64];
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x ^ 1];
}

void without_barrier(const float* x, float* y) {
    __shared__ float values[64];
    values[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = values[threadIdx.x ^ 1];
}

void overwritten_while_read(const float* x, float* y) {
    __shared__ float values[64];
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = values[threadIdx.x ^ 1];
    values[threadIdx.x] = 0.0f;
}

void part_of_a_warp(const float* x, float* y) {
    if (threadIdx.x % kWarp < 16) y[threadIdx.x] = from_lane(x[threadIdx.x], 1);
}

void misaligned(const float* x, float* y) { y[threadIdx.x] = __uint_as_float(load_once(x + 1 + threadIdx.x % 2).x); }

struct Copied {
    std::uint64_t& barrier;
    float* target;
};

Copied copy(const float* x, std::uint32_t at, std::uint32_t bytes, std::uint64_t& barrier) {
    float* target = reinterpret_cast<float*>(dynamic_shared()) + at;
    if (threadIdx.x == 0) {
        prepare_barrier(barrier);
        publish_barriers();
        expect_bytes(barrier, bytes);
        copy_in(target, x, bytes, barrier);
    }
    __syncthreads();
    return {barrier, target};
}

void copied(const float* x, float* y) {
    __shared__ std::uint64_t barrier;
    const Copied made = copy(x, 0, 256, barrier);
    await_bytes(made.barrier, 0);
    y[threadIdx.x] = made.target[threadIdx.x ^ 1];
}

void not_awaited(const float* x, float* y) {
    __shared__ std::uint64_t barrier;
    const Copied made = copy(x, 0, 256, barrier);
    y[threadIdx.x] = made.target[threadIdx.x ^ 1];
    await_bytes(made.barrier, 0);
}

void awaited_twice(const float* x, float* y) {
    __shared__ std::uint64_t barrier;
    const Copied made = copy(x, 0, 256, barrier);
    await_bytes(made.barrier, 0);
    await_bytes(made.barrier, 1);
    y[threadIdx.x] = made.target[threadIdx.x ^ 1];
}

void copied_past_the_end(const float* x, float* y) {
    __shared__ std::uint64_t barrier;
    const Copied made = copy(x, 4, 256, barrier);
    await_bytes(made.barrier, 0);
    y[threadIdx.x] = made.target[threadIdx.x ^ 1];
}

void copied_in_part(const float* x, float* y) {
    __shared__ std::uint64_t barrier;
    const Copied made = copy(x, 0, 248, barrier);
    await_bytes(made.barrier, 0);
    y[threadIdx.x] = made.target[threadIdx.x ^ 1];
}

// Two blocks, each with half of the values: thread i of one takes what the other has.
void across_blocks(const float* x, float* y, bool waits_before, bool waits_after) {
    __shared__ float values[64];
    values[threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x / 2];
    if (waits_before) sync_cluster();
    const float* theirs = shared_of_block(values, blockIdx.x ^ 1);
    y[blockIdx.x * 64 + threadIdx.x] = theirs[threadIdx.x];
    if (waits_after) sync_cluster();
}

void cluster(const float* x, float* y) { across_blocks(x, y, true, true); }

void ends_while_read(const float* x, float* y) {
    // The first block is gone before the second one looks.
    if (blockIdx.x == 0) return;
    for (int i = 0; i < 1000; ++i) __syncthreads();
    across_blocks(x, y, false, false);
}

void waits_for_nobody(const float* x, float* y) {
    if (blockIdx.x == 1) across_blocks(x, y, true, true);
}

struct Fault {
    const char* name;
    void (*kernel)(const float*, float*);
    unsigned blocks;
};

constexpr Fault kFaults[] = {
    {"right", right, 1},
    {"copied", copied, 1},
    {"cluster", cluster, 2},
    {"without barrier", without_barrier, 1},
    {"overwritten while read", overwritten_while_read, 1},
    {"part of a warp", part_of_a_warp, 1},
    {"misaligned", misaligned, 1},
    {"not awaited", not_awaited, 1},
    {"awaited twice", awaited_twice, 1},
    {"copied past the end", copied_past_the_end, 1},
    {"copied in part", copied_in_part, 1},
    {"ends while read", ends_while_read, 2},
    {"waits for nobody", waits_for_nobody, 2},
};

}  // namespace

extern "C" {

// Run the kernel `name` on 64 values, of a cluster 128; null: no error.
__attribute__((visibility("default"))) const char* emulation_fault(const char* name, const float* x, float* y) {
    for (const Fault& fault : kFaults) {
        if (std::strcmp(fault.name, name) != 0) continue;
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = fault.blocks;
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(fault.blocks);
        config.blockDim = dim3(64);
        config.dynamicSmemBytes = 256;
        config.attrs = &attribute;
        config.numAttrs = 1;
        const auto status = cudaLaunchKernelEx(&config, fault.kernel, x, y);
        return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
    }
    return "no such kernel";
}

}  // extern "C"
