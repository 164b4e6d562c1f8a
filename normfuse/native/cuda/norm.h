// The norms on a GPU behind a plain C interface: no runtime, no framework, no C++ type crosses it.
//
// Every norm of domain ai.normfuse is one question: which elements of x share their statistics? x is seen as
// (batch, groups, channels, spatial), or (batch, spatial, groups, channels) where the channels are last, and the
// elements of one (batch, group) share theirs. scale and bias hold groups·channels numbers.
//   LayerNorm, RMSNorm of rows of length L:  (rows, 1, L, 1)
//   GroupNorm of (N, C, *positions):         (N, G, C / G, positions)
//   InstanceNorm of (N, C, *positions):      (N, C, 1, positions)
//
//   h = x + residual,   y = activation((h − mean(h)) / sqrt(var(h) + epsilon) · scale + bias)
//
// RMSNorm takes the mean as 0. Statistics and arithmetic are float32 for every type; y and h are rounded once.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum NormfuseType { kNormfuseFloat = 1, kNormfuseFloat16 = 10, kNormfuseBFloat16 = 16 };  // TensorProto's numbers

enum NormfuseActivation { kNormfuseNone = 0, kNormfuseRelu = 1, kNormfuseSilu = 2, kNormfuseGelu = 3 };

// How one call runs. kLanes, kBlock: a group lies in the registers of some lanes of a warp, of a block; kCluster: in
// the shared memory of a cluster of blocks; memory is read once. kStreamed, kChannelsLast: memory is read twice.
enum NormfuseStrategy { kNormfuseLanes, kNormfuseBlock, kNormfuseCluster, kNormfuseStreamed, kNormfuseChannelsLast };

struct NormfuseNorm {
    int32_t type;           // NormfuseType of every pointer below
    int32_t activation;     // NormfuseActivation
    int32_t centred;        // 0: RMSNorm
    int32_t channels_last;  // the layout
    float epsilon;
    int64_t batch;
    int64_t groups;
    int64_t channels;  // of one group
    int64_t spatial;
    const void* x;         // device pointers, aligned to one element
    const void* scale;     // null: 1
    const void* bias;      // null: 0
    const void* residual;  // null: none
    void* y;               // overlaps no input
    void* sum;             // null, or where h goes
};

struct NormfusePlan {
    int32_t strategy;   // NormfuseStrategy
    int32_t width;      // elements of one access: 16 bytes' worth, or 1
    int32_t elements;   // kLanes, kBlock: elements that one thread holds
    int32_t threads;    // of a block
    int32_t team;       // kLanes: lanes of one row; kCluster: blocks of one row
    int32_t clusters;   // kCluster: that run at once
    int64_t chunk;      // two-pass strategies: elements, or positions, that one block reads
    int64_t workspace;  // bytes of device memory that the call needs
};

// Fill `plan` with the fastest way known for `norm` on the current device. Returns a cudaError_t: cudaErrorInvalidValue
// for an unknown type, a row of 2^40 elements or more, 2^30 positions of one channel or more, or 2^31 groups or more.
int normfuse_cuda_plan(const struct NormfuseNorm* norm, struct NormfusePlan* plan);

// Enqueue `norm` on `stream` (a cudaStream_t) as `plan` says. Never synchronises, never allocates. `workspace`:
// plan->workspace bytes, aligned to 16, of use until the work is done. Returns a cudaError_t.
int normfuse_cuda_run(const struct NormfuseNorm* norm, const struct NormfusePlan* plan, void* workspace, void* stream);

// The text of a cudaError_t that the two functions above returned.
const char* normfuse_cuda_error(int error);

#ifdef __cplusplus
}
#endif
