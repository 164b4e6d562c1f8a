// bfloat16 as CUDA's header of that name has it.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
    std::uint16_t bits;
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(std::uint32_t{value.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return {0x7fff};
    return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float first, float second) {
    return {__float2bfloat16_rn(first), __float2bfloat16_rn(second)};
}
