// Elements in memory and in registers: float32 in registers for every type, 16 bytes or one element at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/machine.cuh"

namespace normfuse::cuda {

// Elements of a 16-byte access.
template <typename T>
inline constexpr int kWide = 16 / sizeof(T);

template <typename T>
struct Element;

template <>
struct Element<float> {
    static __device__ float wide(float value) { return value; }
    static __device__ float narrow(float value) { return value; }
};

template <>
struct Element<__half> {
    static __device__ float wide(__half value) { return __half2float(value); }
    static __device__ __half narrow(float value) { return __float2half_rn(value); }
    static __device__ __half2 narrow(float first, float second) { return __floats2half2_rn(first, second); }
};

template <>
struct Element<__nv_bfloat16> {
    static __device__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }
    static __device__ __nv_bfloat16 narrow(float value) { return __float2bfloat16_rn(value); }
    static __device__ __nv_bfloat162 narrow(float first, float second) { return __floats2bfloat162_rn(first, second); }
};

// Width elements as they lie in memory: 16 bytes, or one element.
template <typename T, int Width>
using Raw = std::conditional_t<Width == 1, T, uint4>;

template <typename T, int Width>
__device__ void widen(const Raw<T, Width>& raw, float (&values)[Width]) {
    static_assert(Width == 1 || Width == kWide<T>);
    if constexpr (Width > 1 && std::is_same_v<T, __nv_bfloat16>) {
        // A bfloat16 is the upper half of a float32: one cheap instruction each, where the conversion is a slow one.
        const std::uint32_t pairs[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int j = 0; j < Width; j += 2) {
            values[j] = __uint_as_float(pairs[j / 2] << 16);
            values[j + 1] = __uint_as_float(pairs[j / 2] & 0xffff0000u);
        }
    } else {
        const T* elements = reinterpret_cast<const T*>(&raw);
#pragma unroll
        for (int j = 0; j < Width; ++j) values[j] = Element<T>::wide(elements[j]);
    }
}

// Read Width elements at `address`, aligned to their size, of a tensor that is read once: the first-level cache is left
// to scale and bias.
template <int Width, typename T>
__device__ Raw<T, Width> load_raw(const T* address) {
    if constexpr (Width == 1) {
        return __ldg(address);
    } else {
        return load_once(address);
    }
}

template <typename T, int Width>
__device__ void load(const T* address, float (&values)[Width]) {
    widen<T, Width>(load_raw<Width>(address), values);
}

// The same of parameters, which every row reads again.
template <typename T, int Width>
__device__ void load_cached(const T* address, float (&values)[Width]) {
    widen<T, Width>(__ldg(reinterpret_cast<const Raw<T, Width>*>(address)), values);
}

template <typename T, int Width>
__device__ void store(T* address, const float (&values)[Width]) {
    if constexpr (Width == 1) {
        *address = Element<T>::narrow(values[0]);
    } else if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<float4*>(address) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
        uint4 raw;
        auto* pairs = reinterpret_cast<decltype(Element<T>::narrow(0.0f, 0.0f))*>(&raw);
#pragma unroll
        for (int j = 0; j < Width; j += 2) pairs[j / 2] = Element<T>::narrow(values[j], values[j + 1]);
        *reinterpret_cast<uint4*>(address) = raw;
    }
}

}  // namespace normfuse::cuda
