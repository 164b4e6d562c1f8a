#include "ops/node.h"

namespace normfuse {

std::string where(const Schema& schema) { return "ai.normfuse " + schema.name; }

Node::Node(const Schema& schema, const ort::Api& host, const ort::KernelInfo* info)
    : api(host),
      has_references(schema.has_references),
      op(schema.op),
      attributes(read_attributes(api, info)),
      where(normfuse::where(schema) + " '" + node_name(api, info) + "'"),
      scale(constant_shape(api, info, op.scale_at())),
      bias(constant_shape(api, info, op.bias_at())) {}

Norm Node::prepare(ort::KernelContext* context) const {
    const Inputs inputs(api, context, has_references);
    Operands operands;
    operands.x = inputs.at(0);
    if (op.adds_residual) operands.residual = inputs.at(op.residual_at());
    operands.scale = inputs.at(op.scale_at(), scale);
    operands.bias = inputs.at(op.bias_at(), bias);
    Norm norm = lay_out(op, attributes, operands);
    norm.y = output(api, context, 0, operands.x.shape);
    if (op.keeps_sum) norm.sum = output(api, context, 1, operands.x.shape);
    return norm;
}

}  // namespace normfuse
