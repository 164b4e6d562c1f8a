// What of a GPU the language has no words for, for the CPU; see the file of this name in normfuse/native/cuda.
#pragma once

#include <cuda_runtime.h>

namespace normfuse::cuda {

inline uint4 load_once(const void* address) {
    emulation::require_aligned(address, 16, "load");
    uint4 raw;
    std::memcpy(&raw, address, sizeof raw);
    return raw;
}

inline float without_subnormal(float value) {
    return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

inline float fast_exp2(float value) { return without_subnormal(std::exp2(without_subnormal(value))); }

inline float fast_reciprocal(float value) { return without_subnormal(1.0f / without_subnormal(value)); }

inline uint4* dynamic_shared() { return reinterpret_cast<uint4*>(emulation::Block::current().dynamic_shared()); }

inline void prepare_barrier(std::uint64_t& barrier) {
    barrier = 0;
    emulation::barrier_of(barrier).is_ready = 1;
}

inline void publish_barriers() {}

inline void expect_bytes(std::uint64_t& barrier, std::uint32_t bytes) {
    emulation::ByteBarrier& state = emulation::barrier_of(barrier);
    if (!state.is_ready || state.has_arrived) throw std::runtime_error("a barrier that is in use, or was not prepared");
    state.has_arrived = 1;
    state.bytes += static_cast<std::int32_t>(bytes);
    emulation::settle(state);
}

inline void copy_in(void* target, const void* source, std::uint32_t bytes, std::uint64_t& barrier) {
    emulation::Block::current().copy_in(target, source, bytes, barrier);
}

inline void await_bytes(std::uint64_t& barrier, std::uint32_t turn) {
    emulation::Block::current().wait_until([&] { return emulation::barrier_of(barrier).phase != turn % 2; });
}

inline unsigned blocks_of_cluster() { return emulation::Block::current().cluster().blocks(); }

inline void sync_cluster() { emulation::Block::current().sync_cluster(); }

template <typename Value>
const Value* shared_of_block(Value* shared, unsigned rank) {
    return static_cast<const Value*>(emulation::Block::current().cluster().of_block(shared, rank));
}

}  // namespace normfuse::cuda
