#include "ops/cpu_operators.h"

#include <string>

#include "ops/layout.h"
#include "ops/runtime.h"
#include "ops/schedule.h"

namespace normfuse {

namespace {

// A node of the graph. Shared by all threads that run the session: Compute changes nothing of it.
struct CpuKernel {
    const ort::Api& api;
    Operator op;
    const Kernels& kernels;
    Attributes attributes;
    std::string where;

    void compute(ort::KernelContext* context) const {
        Operands operands;
        operands.x = input(api, context, 0);
        if (op.adds_residual) operands.residual = input(api, context, op.residual_at());
        operands.scale = input(api, context, op.scale_at());
        operands.bias = input(api, context, op.bias_at());
        Norm norm = lay_out(op, attributes, operands);
        norm.y = output(api, context, 0, operands.x.shape);
        if (op.keeps_sum) norm.sum = output(api, context, 1, operands.x.shape);
        normfuse::compute(api, context, kernels, norm);
    }
};

ort::Status* create(const ort::CustomOp* callbacks, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    const Schema& schema = schema_of(callbacks);
    const std::string where = "ai.normfuse " + schema.name;
    return guarded(*api, where, [&] {
        const Kernels& kernels = instruction_set().kernels[static_cast<int>(schema.type)];
        *kernel = new CpuKernel{*api, schema.op, kernels, read_attributes(*api, info),
                                where + " '" + node_name(*api, info) + "'"};
    });
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
    const CpuKernel& self = *static_cast<const CpuKernel*>(kernel);
    return guarded(self.api, self.where, [&] { self.compute(context); });
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
