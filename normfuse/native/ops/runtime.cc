#include "ops/runtime.h"

#include <algorithm>

namespace normfuse {

std::int64_t Shape::product(std::size_t begin, std::size_t end) const {
    std::int64_t result = 1;
    for (std::size_t axis = begin; axis < end; ++axis) result *= dimensions[axis];
    return result;
}

bool Shape::operator==(const Shape& other) const {
    if (rank != other.rank) return false;
    for (std::size_t axis = 0; axis < rank; ++axis) {
        if (dimensions[axis] != other.dimensions[axis]) return false;
    }
    return true;
}

std::string Shape::text() const {
    std::string result = "(";
    for (std::size_t axis = 0; axis < rank; ++axis) {
        result += (axis == 0 ? "" : ", ") + std::to_string(dimensions[axis]);
    }
    return result + ")";
}

void require(const ort::Api& api, ort::Status* status) {
    if (status == nullptr) return;
    const std::string message = api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    throw std::runtime_error(message);
}

namespace {

// Whether a call succeeded; what it reports is released.
bool succeeded(const ort::Api& api, ort::Status* status) {
    if (status != nullptr) api.ReleaseStatus(status);
    return status == nullptr;
}

// Reads a string by onnxruntime's protocol: first the size with its final zero, then the characters.
template <typename Read>
bool read_string(const ort::Api& api, const Read& read, std::string& text) {
    std::size_t size = 0;
    if (!succeeded(api, read(nullptr, &size)) || size == 0) return false;
    std::string buffer(size, '\0');
    if (!succeeded(api, read(buffer.data(), &size))) return false;
    buffer.resize(size - 1);
    text = std::move(buffer);
    return true;
}

}  // namespace

float attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, float absent) {
    float value = absent;
    return succeeded(api, api.KernelInfoGetAttribute_float(info, name, &value)) ? value : absent;
}

std::int64_t attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, std::int64_t absent) {
    std::int64_t value = absent;
    return succeeded(api, api.KernelInfoGetAttribute_int64(info, name, &value)) ? value : absent;
}

std::string attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, const char* absent) {
    std::string text = absent;
    read_string(
        api, [&](char* out, std::size_t* size) { return api.KernelInfoGetAttribute_string(info, name, out, size); },
        text);
    return text;
}

std::string node_name(const ort::Api& api, const ort::KernelInfo* info) {
    std::string text;
    read_string(api, [&](char* out, std::size_t* size) { return api.KernelInfo_GetNodeName(info, out, size); }, text);
    return text;
}

namespace {

Shape shape_of(const std::int64_t* dimensions, std::size_t rank) {
    if (rank > Shape::kMaximalRank) {
        throw std::invalid_argument("tensors have at most 16 axes; got " + std::to_string(rank));
    }
    Shape shape;
    shape.rank = rank;
    std::copy_n(dimensions, rank, shape.dimensions);
    return shape;
}

// onnxruntime allocates what it tells, but where it can refer to what it holds.
Shape shape_of(const ort::Api& api, const ort::Value* value, bool has_references) {
    const std::int64_t* dimensions = nullptr;
    std::size_t rank = 0;
    if (has_references) {
        auto type = ort::ElementType::kUndefined;
        require(api, api.GetTensorElementTypeAndShapeDataReference(value, &type, &dimensions, &rank));
        return shape_of(dimensions, rank);
    }
    ort::TensorTypeAndShapeInfo* info = nullptr;
    require(api, api.GetTensorTypeAndShape(value, &info));
    std::int64_t copied[Shape::kMaximalRank];
    ort::Status* status = api.GetDimensionsCount(info, &rank);
    if (status == nullptr && rank <= Shape::kMaximalRank) status = api.GetDimensions(info, copied, rank);
    api.ReleaseTensorTypeAndShapeInfo(info);
    require(api, status);
    return shape_of(copied, rank);
}

}  // namespace

std::optional<Shape> constant_shape(const ort::Api& api, const ort::KernelInfo* info, std::size_t index) {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    if (!succeeded(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value))) return {};
    if (is_constant == 0 || value == nullptr) return {};
    return shape_of(api, value, false);
}

Inputs::Inputs(const ort::Api& api, const ort::KernelContext* context, bool has_references)
    : api_(api), context_(context), has_references_(has_references) {
    require(api, api.KernelContext_GetInputCount(context, &count_));
}

Tensor Inputs::at(std::size_t index, const std::optional<Shape>& shape) const {
    const ort::Value* value = nullptr;
    if (index < count_) require(api_, api_.KernelContext_GetInput(context_, index, &value));
    if (value == nullptr) return {};
    void* data = nullptr;
    require(api_, api_.GetTensorMutableData(const_cast<ort::Value*>(value), &data));
    // An empty tensor may have no memory; it is present all the same.
    static const char nothing = 0;
    return {data == nullptr ? &nothing : data, shape ? *shape : shape_of(api_, value, has_references_)};
}

void* output(const ort::Api& api, ort::KernelContext* context, std::size_t index, const Shape& shape) {
    ort::Value* value = nullptr;
    require(api, api.KernelContext_GetOutput(context, index, shape.dimensions, shape.rank, &value));
    if (value == nullptr) return nullptr;
    void* data = nullptr;
    require(api, api.GetTensorMutableData(value, &data));
    return data;
}

}  // namespace normfuse
