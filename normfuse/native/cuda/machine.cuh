// What of a GPU the language has no words for: accesses past a cache, approximate functions, copies by the bulk copy
// engine and what waits for them, and the blocks of a cluster. Everything else in this folder is plain C++ for CUDA.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace normfuse::cuda {

// Read 16 bytes, aligned to 16, of a tensor that is read once: past the first-level cache.
__device__ inline uint4 load_once(const void* address) {
    uint4 raw;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(raw.x), "=r"(raw.y), "=r"(raw.z), "=r"(raw.w)
                 : "l"(address));
    return raw;
}

// 2^value and 1 / value, each within 2 units in the last place; subnormal inputs and results are 0.
__device__ inline float fast_exp2(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}

__device__ inline float fast_reciprocal(float value) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(value));
    return reciprocal;
}

// The shared memory whose size the launch says.
__device__ inline uint4* dynamic_shared() {
    extern __shared__ uint4 memory[];
    return memory;
}

#if __CUDA_ARCH__ >= 900

__device__ inline std::uint32_t shared_address(const void* pointer) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// A barrier in shared memory at which one thread arrives, with the count of bytes that are to come.
__device__ inline void prepare_barrier(std::uint64_t& barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barrier)));
}

// Let the bulk copy engine see the barriers that were prepared.
__device__ inline void publish_barriers() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void expect_bytes(std::uint64_t& barrier, std::uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}

// Start a copy of `bytes`, a multiple of 16, between addresses aligned to 16, which `barrier` hears of.
__device__ inline void copy_in(void* target, const void* source, std::uint32_t bytes, std::uint64_t& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(target)),
                 "l"(source), "r"(bytes), "r"(shared_address(&barrier))
                 : "memory");
}

// Wait until the bytes of the `turn`-th use of `barrier`, counted from 0, have come.
__device__ inline void await_bytes(std::uint64_t& barrier, std::uint32_t turn) {
    std::uint32_t is_done = 0;
    while (!is_done) {
        asm volatile(
            "{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
            : "=r"(is_done)
            : "r"(shared_address(&barrier)), "r"(turn % 2)
            : "memory");
    }
}

__device__ inline unsigned blocks_of_cluster() { return cooperative_groups::this_cluster().num_blocks(); }

// Wait for every thread of the cluster.
__device__ inline void sync_cluster() { cooperative_groups::this_cluster().sync(); }

// Where block `rank` of the cluster keeps what this block keeps at `shared`.
template <typename Value>
__device__ const Value* shared_of_block(Value* shared, unsigned rank) {
    return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
}

#endif

}  // namespace normfuse::cuda
