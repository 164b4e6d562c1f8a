#include "ops/cpu_operators.h"

#include <string>

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
        const Operands operands = {input(api, context, 0), input(api, context, 1), input(api, context, 2),
                                   input(api, context, 3)};
        Norm norm = lay_out(op, attributes, operands);
        norm.y = output(api, context, 0, operands.x.shape);
        if (output_count(api, context) > 1) {
            norm.sum = output(api, context, 1, operands.x.shape);
            if (norm.sum != nullptr && norm.residual == nullptr) {
                throw std::invalid_argument("the second output is x + residual, and there is no residual");
            }
        }
        normfuse::compute(api, context, kernels, norm);
    }
};

ort::Status* create(const ort::CustomOp* callbacks, const ort::Api* api, const ort::KernelInfo* info, void** kernel) {
    const Schema& schema = schema_of(callbacks);
    return guarded(*api, std::string("ai.normfuse ") + name_of(schema.op), [&] {
        const std::string where = std::string("ai.normfuse ") + name_of(schema.op) + " '" + node_name(*api, info) + "'";
        const Kernels& kernels = instruction_set().kernels[static_cast<int>(schema.type)];
        *kernel = new CpuKernel{*api, schema.op, kernels, read_attributes(*api, info), where};
    });
}

ort::Status* compute(void* kernel, ort::KernelContext* context) {
    const CpuKernel& self = *static_cast<const CpuKernel*>(kernel);
    return guarded(self.api, self.where, [&] { self.compute(context); });
}

}  // namespace

std::vector<Schema> cpu_operators() {
    std::vector<Schema> operators;
    for (int op = 0; op < kOperators; ++op) {
        for (int type = 0; type < kTypes; ++type) {
            Schema entry = schema(static_cast<Operator>(op), static_cast<Type>(type), nullptr);
            entry.callbacks.CreateKernelV2 = create;
            entry.callbacks.KernelComputeV2 = compute;
            entry.callbacks.KernelDestroy = [](void* kernel) { delete static_cast<CpuKernel*>(kernel); };
            operators.push_back(entry);
        }
    }
    return operators;
}

}  // namespace normfuse
