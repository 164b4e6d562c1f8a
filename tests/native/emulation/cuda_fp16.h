// float16 as CUDA's header of that name has it.
#pragma once

#include "cuda_runtime.h"

struct __half {
    _Float16 value;
};
struct __half2 {
    __half x, y;
};
inline float __half2float(__half value) { return static_cast<float>(value.value); }
inline __half __float2half_rn(float value) { return {static_cast<_Float16>(value)}; }
inline __half2 __floats2half2_rn(float first, float second) {
    return {__float2half_rn(first), __float2half_rn(second)};
}
