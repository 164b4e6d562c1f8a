#include "ops/schema.h"

#include <cstdint>
#include <vector>

namespace normfuse {

namespace {

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

ort::Characteristic input_characteristic(const ort::CustomOp* callbacks, std::size_t index) {
    return index < schema_of(callbacks).op.scale_at() ? ort::Characteristic::kRequired : ort::Characteristic::kOptional;
}

// Whether every axis has a size or a name. What has no axis is of unknown rank: no norm takes a scalar, and onnxruntime
// says 0 of both.
ort::Status* know_every_axis(const ort::Api& api, const ort::TensorTypeAndShapeInfo* x, bool* known) {
    std::size_t rank = 0;
    if (ort::Status* status = api.GetDimensionsCount(x, &rank)) return status;
    std::vector<std::int64_t> sizes(rank);
    std::vector<const char*> names(rank, "");
    if (ort::Status* status = api.GetDimensions(x, sizes.data(), rank)) return status;
    if (ort::Status* status = api.GetSymbolicDimensions(x, names.data(), rank)) return status;
    *known = rank > 0;
    for (std::size_t axis = 0; axis < rank; ++axis) {
        if (sizes[axis] < 0 && (names[axis] == nullptr || *names[axis] == '\0')) *known = false;
    }
    return nullptr;
}

// Every output has the shape of x, symbolic dimensions included. Nothing is said of an unknown rank, which
// onnxruntime would take for that of a scalar, nor where an axis has neither size nor name: it would take the −1 that
// stands for it as its size, and compute with it what reads the shape.
ort::Status* infer_shapes(const ort::CustomOp* callbacks, ort::ShapeInferContext* context) {
    const ort::Api& api = *schema_of(callbacks).api;
    ort::TensorTypeAndShapeInfo* x = nullptr;  // belongs to the context
    if (ort::Status* status = api.ShapeInferContext_GetInputTypeShape(context, 0, &x)) return status;
    bool known = false;
    if (ort::Status* status = know_every_axis(api, x, &known)) return status;
    if (!known) return nullptr;
    for (std::size_t index = 0; index < schema_of(callbacks).op.outputs(); ++index) {
        if (ort::Status* status = api.ShapeInferContext_SetOutputTypeShape(context, index, x)) return status;
    }
    return nullptr;
}

Schema schema(const Operator& op, Type type, const char* provider) {
    ort::CustomOp callbacks = {};
    callbacks.version = ort::kApiVersion;
    callbacks.GetName = [](const ort::CustomOp* self) { return schema_of(self).name.c_str(); };
    callbacks.GetExecutionProviderType = [](const ort::CustomOp* self) { return schema_of(self).provider; };
    callbacks.GetInputType = element_type;
    callbacks.GetInputTypeCount = [](const ort::CustomOp* self) { return schema_of(self).op.inputs(); };
    callbacks.GetOutputType = element_type;
    callbacks.GetOutputTypeCount = [](const ort::CustomOp* self) { return schema_of(self).op.outputs(); };
    callbacks.GetInputCharacteristic = input_characteristic;
    callbacks.GetOutputCharacteristic = [](const ort::CustomOp*, std::size_t) {
        return ort::Characteristic::kRequired;
    };
    callbacks.GetInputMemoryType = [](const ort::CustomOp*, std::size_t) { return ort::MemoryType::kDefault; };
    callbacks.InferOutputShapeFn = infer_shapes;
    // No last version: onnxruntime gives nodes of later versions of the domain to this one whatever it says.
    callbacks.GetStartVersion = [](const ort::CustomOp*) { return 1; };
    return {callbacks, op, type, provider, op.name(), nullptr, false};
}

}  // namespace

std::vector<Schema> schemas(const char* provider) {
    std::vector<Schema> all;
    for (const Operator& op : operators()) {
        for (int type = 0; type < kTypes; ++type) all.push_back(schema(op, static_cast<Type>(type), provider));
    }
    return all;
}

}  // namespace normfuse
