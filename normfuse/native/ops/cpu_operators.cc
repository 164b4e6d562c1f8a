#include "ops/cpu_operators.h"

#include "ops/node.h"
#include "ops/schedule.h"

namespace normfuse {

namespace {

struct CpuKernel {
    Node node;
    const Kernels& kernels;
};

ort::Status* create(const ort::CustomOp* callbacks, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    const Schema& schema = schema_of(callbacks);
    return guarded(*api, where(schema), [&] {
        *kernel = new CpuKernel{{schema, *api, info}, instruction_set().kernels[static_cast<int>(schema.type)]};
    });
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
    const auto& [node, kernels] = *static_cast<const CpuKernel*>(kernel);
    return guarded(node.api, node.where, [&] { compute(node.api, context, kernels, node.prepare(context)); });
}

}  // namespace

std::vector<Schema> cpu_operators() {
    std::vector<Schema> operators = schemas(nullptr);
    for (Schema& entry : operators) {
        entry.callbacks.CreateKernelV2 = create;
        entry.callbacks.KernelComputeV2 = compute;
        entry.callbacks.KernelDestroy = [](void* kernel) { delete static_cast<CpuKernel*>(kernel); };
    }
    return operators;
}

}  // namespace normfuse
