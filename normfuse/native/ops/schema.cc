#include "ops/schema.h"

namespace normfuse {

namespace {

constexpr std::size_t kInputs = 4, kOutputs = 2;

ort::ElementType element_type(const ort::CustomOp* callbacks, std::size_t) {
    switch (schema_of(callbacks).type) {
        case Type::kFloat:
            return ort::ElementType::kFloat;
        case Type::kDouble:
            return ort::ElementType::kDouble;
        case Type::kFloat16:
            return ort::ElementType::kFloat16;
        case Type::kBFloat16:
            return ort::ElementType::kBFloat16;
    }
    return ort::ElementType::kUndefined;
}

ort::Characteristic characteristic(const ort::CustomOp*, std::size_t index) {
    return index == 0 ? ort::Characteristic::kRequired : ort::Characteristic::kOptional;
}

// Every output has the shape of x, symbolic dimensions included; a node without a sum has no second output to set.
ort::Status* infer_shapes(const ort::CustomOp* callbacks, ort::ShapeInferContext* context) {
    const ort::Api& api = *schema_of(callbacks).api;
    ort::TensorTypeAndShapeInfo* x = nullptr;  // belongs to the context
    if (ort::Status* status = api.ShapeInferContext_GetInputTypeShape(context, 0, &x)) return status;
    if (ort::Status* status = api.ShapeInferContext_SetOutputTypeShape(context, 0, x)) return status;
    if (ort::Status* status = api.ShapeInferContext_SetOutputTypeShape(context, 1, x)) api.ReleaseStatus(status);
    return nullptr;
}

}  // namespace

Schema schema(Operator op, Type type, const char* provider) {
    ort::CustomOp callbacks = {};
    callbacks.version = ort::kApiVersion;
    callbacks.GetName = [](const ort::CustomOp* self) { return name_of(schema_of(self).op); };
    callbacks.GetExecutionProviderType = [](const ort::CustomOp* self) { return schema_of(self).provider; };
    callbacks.GetInputType = element_type;
    callbacks.GetInputTypeCount = [](const ort::CustomOp*) { return kInputs; };
    callbacks.GetOutputType = element_type;
    callbacks.GetOutputTypeCount = [](const ort::CustomOp*) { return kOutputs; };
    callbacks.GetInputCharacteristic = characteristic;
    callbacks.GetOutputCharacteristic = characteristic;
    callbacks.GetInputMemoryType = [](const ort::CustomOp*, std::size_t) { return ort::MemoryType::kDefault; };
    callbacks.GetStartVersion = [](const ort::CustomOp*) { return 1; };
    callbacks.GetEndVersion = [](const ort::CustomOp*) { return 1; };
    callbacks.InferOutputShapeFn = infer_shapes;
    return {callbacks, op, type, provider, nullptr};
}

}  // namespace normfuse
