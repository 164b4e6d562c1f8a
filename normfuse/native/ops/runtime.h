// What the operators use of onnxruntime, with errors as C++ exceptions inside and as statuses at the border.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "abi/onnxruntime_abi.h"
#include "kernels/norm.h"

namespace normfuse {

// Dimensions in a fixed place: Compute allocates nothing.
struct Shape {
    static constexpr std::size_t kMaximalRank = 16;
    std::int64_t dimensions[kMaximalRank] = {};
    std::size_t rank = 0;

    std::int64_t product(std::size_t begin, std::size_t end) const;
    bool operator==(const Shape& other) const;
    std::string text() const;  // (2, 3, 4)
};

struct Tensor {
    const void* data = nullptr;  // null where the operand is absent
    Shape shape;
};

// Throws std::runtime_error with onnxruntime's message unless `status` is null; releases it.
void require(const ort::Api& api, ort::Status* status);

// Calls `work`, and returns what it throws as a status that names `where`.
template <typename Work>
ort::Status* guarded(const ort::Api& api, const std::string& where, Work&& work) {
    try {
        std::forward<Work>(work)();
        return nullptr;
    } catch (const std::invalid_argument& error) {
        return api.CreateStatus(ort::ErrorCode::kInvalidArgument, (where + ": " + error.what()).c_str());
    } catch (const std::exception& error) {
        return api.CreateStatus(ort::ErrorCode::kFail, (where + ": " + error.what()).c_str());
    }
}

// Attributes of a node, or their defaults. An attribute that is absent is an error to onnxruntime, not to us.
float attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, float absent);
std::int64_t attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, std::int64_t absent);
std::string attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, const char* absent);
std::string node_name(const ort::Api& api, const ort::KernelInfo* info);

// The shape of an input that is an initializer; nothing where it is computed, may be overridden, or is absent.
std::optional<Shape> constant_shape(const ort::Api& api, const ort::KernelInfo* info, std::size_t index);

// The inputs of one call. has_references: whether `api` reaches to kReferenceVersion.
class Inputs {
  public:
    Inputs(const ort::Api& api, const ort::KernelContext* context, bool has_references);

    // An absent one has no data. shape: what is known of it.
    Tensor at(std::size_t index, const std::optional<Shape>& shape = std::nullopt) const;

  private:
    const ort::Api& api_;
    const ort::KernelContext* context_;
    bool has_references_;
    std::size_t count_ = 0;
};

void* output(const ort::Api& api, ort::KernelContext* context, std::size_t index, const Shape& shape);

// Calls task(i) for i < tasks on onnxruntime's threads.
template <typename Task>
void parallel(const ort::Api& api, const ort::KernelContext* context, std::int64_t tasks, const Task& task) {
    if (tasks == 1) return task(0);
    const auto call = [](void* data, std::size_t index) {
        (*static_cast<const Task*>(data))(static_cast<std::int64_t>(index));
    };
    require(api, api.KernelContext_ParallelFor(context, call, static_cast<std::size_t>(tasks), 0,
                                               const_cast<void*>(static_cast<const void*>(&task))));
}

}  // namespace normfuse
