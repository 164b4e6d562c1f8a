#include "cuda/operators.h"

#include <cuda_runtime.h>

#include "cuda/norm.h"
#include "cuda/workspace.h"
#include "ops/node.h"

namespace normfuse::cuda {

namespace {

void require(int error) {
    if (error != cudaSuccess) throw std::runtime_error(normfuse_cuda_error(error));
}

int32_t number_of(Type type) {
    switch (type) {
        case Type::kFloat16:
            return kNormfuseFloat16;
        case Type::kBFloat16:
            return kNormfuseBFloat16;
        default:
            return kNormfuseFloat;
    }
}

// Rows are normalised with all of their channels; which of the two layouts tells the count of positions.
NormfuseNorm norm_of(const Norm& norm, Type type) {
    const std::int64_t groups = norm.samples == 0 ? 0 : norm.rows / norm.samples;
    const bool is_last = norm.positions != 1;
    return {number_of(type),
            static_cast<int32_t>(norm.activation),
            norm.centred,
            is_last,
            static_cast<float>(norm.epsilon),
            norm.samples,
            groups,
            norm.channels,
            is_last ? norm.positions : norm.segment,
            norm.x,
            norm.scale,
            norm.bias,
            norm.residual,
            norm.y,
            norm.sum};
}
static_assert(static_cast<int>(Activation::kRelu) == kNormfuseRelu);
static_assert(static_cast<int>(Activation::kSilu) == kNormfuseSilu);
static_assert(static_cast<int>(Activation::kGelu) == kNormfuseGelu);

struct CudaKernel {
    Node node;
    Type type;

    void compute(ort::KernelContext* context) const {
        const NormfuseNorm call = norm_of(node.prepare(context), type);
        void* queue = nullptr;
        normfuse::require(node.api, node.api.KernelContext_GetGPUComputeStream(context, &queue));
        NormfusePlan plan;
        require(normfuse_cuda_plan(&call, &plan));
        const Workspace workspace(static_cast<std::size_t>(plan.workspace), static_cast<cudaStream_t>(queue));
        require(normfuse_cuda_run(&call, &plan, workspace.data(), queue));
    }
};

ort::Status* create(const ort::CustomOp* callbacks, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    const Schema& schema = schema_of(callbacks);
    return guarded(*api, where(schema), [&] { *kernel = new CudaKernel{{schema, *api, info}, schema.type}; });
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
    const CudaKernel& self = *static_cast<const CudaKernel*>(kernel);
    return guarded(self.node.api, self.node.where, [&] { self.compute(context); });
}

}  // namespace

std::vector<Schema> operators() {
    std::vector<Schema> all;
    for (Schema& entry : schemas("CUDAExecutionProvider")) {
        if (entry.type == Type::kDouble) continue;
        entry.callbacks.CreateKernelV2 = create;
        entry.callbacks.KernelComputeV2 = compute;
        entry.callbacks.KernelDestroy = [](void* kernel) { delete static_cast<CudaKernel*>(kernel); };
        all.push_back(entry);
    }
    return all;
}

}  // namespace normfuse::cuda
