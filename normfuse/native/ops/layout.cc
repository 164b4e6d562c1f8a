#include "ops/layout.h"

namespace normfuse {

namespace {

// From where on y is written past the caches, in elements: 8 MiB of float32 do not stay in the cache of one core, and
// what follows a norm is as fast with either (measured with Relu and Conv). Short lines would begin and end within
// cache lines.
constexpr std::int64_t kStreamed = 2 * 1024 * 1024;
constexpr std::int64_t kStreamedLine = 256;

void check_parameter(const char* name, const Tensor& parameter, const Shape& wanted, const Tensor& x) {
    if (parameter.data == nullptr || parameter.shape == wanted) return;
    throw std::invalid_argument(std::string(name) + " must have the shape " + wanted.text() + "; it has " +
                                parameter.shape.text() + ", and x has " + x.shape.text());
}

// Group and instance norm: (N, C, ...), or (N, ..., C) where the channels lie last.
void lay_out_channels(Norm& norm, Shape& parameter, std::int64_t groups, bool grouped, bool last, const Shape& x) {
    if (x.rank < 2) throw std::invalid_argument("x must have a batch axis and a channel axis; it has " + x.text());
    const std::size_t axis = last ? x.rank - 1 : 1;
    const std::int64_t channels = x.dimensions[axis];
    if (!grouped) groups = channels;
    if (groups <= 0 || channels % groups != 0) {
        if (channels != 0 || groups != 0) {
            throw std::invalid_argument(
                "the channels must be divisible by num_groups; got C=" + std::to_string(channels) +
                ", num_groups=" + std::to_string(groups) + ", x of " + x.text());
        }
        groups = 1;  // no channels, nothing to do
    }
    norm.samples = x.dimensions[0];
    norm.rows = norm.samples * groups;
    norm.channels = channels / groups;
    norm.segment = last ? 1 : x.product(2, x.rank);
    norm.positions = last ? x.product(1, x.rank - 1) : 1;
    norm.parameters = channels;
    parameter.rank = 1;
    parameter.dimensions[0] = channels;
}

// Layer and RMS norm: the axes from `axis` on are normalised together.
void lay_out_trailing(Norm& norm, Shape& parameter, std::int64_t axis, const Shape& x) {
    const auto rank = static_cast<std::int64_t>(x.rank);
    const std::int64_t first = axis < 0 ? axis + rank : axis;
    if (first < 0 || first >= rank) {
        throw std::invalid_argument("axis " + std::to_string(axis) + " is not one of x, which has " + x.text());
    }
    const auto begin = static_cast<std::size_t>(first);
    norm.samples = norm.rows = x.product(0, begin);
    norm.channels = norm.parameters = x.product(begin, x.rank);
    norm.segment = norm.positions = 1;
    parameter.rank = x.rank - begin;
    for (std::size_t at = begin; at < x.rank; ++at) parameter.dimensions[at - begin] = x.dimensions[at];
}

}  // namespace

Attributes read_attributes(const ort::Api& api, const ort::KernelInfo* info) {
    return {static_cast<double>(attribute(api, info, "epsilon", 1e-5f)),
            attribute(api, info, "num_groups", std::int64_t{1}), attribute(api, info, "axis", std::int64_t{-1})};
}

Norm lay_out(const Operator& op, const Attributes& attributes, const Operands& operands) {
    const Tensor& x = operands.x;
    if (x.data == nullptr) throw std::invalid_argument("x is missing");
    if (op.adds_residual && operands.residual.data == nullptr) throw std::invalid_argument("the residual is missing");
    Norm norm = {};
    Shape parameter;
    if (op.has_channels()) {
        lay_out_channels(norm, parameter, attributes.num_groups, op.family == Family::kGroupNorm, op.channels_last,
                         x.shape);
    } else {
        lay_out_trailing(norm, parameter, attributes.axis, x.shape);
    }
    check_parameter("scale", operands.scale, parameter, x);
    check_parameter("bias", operands.bias, parameter, x);
    check_parameter("residual", operands.residual, x.shape, x);
    norm.x = x.data;
    norm.residual = operands.residual.data;
    norm.scale = operands.scale.data;
    norm.bias = operands.bias.data;
    norm.epsilon = attributes.epsilon;
    norm.activation = op.activation;
    norm.centred = op.family != Family::kRmsNorm;
    norm.streams = x.shape.product(0, x.shape.rank) >= kStreamed &&
                   (norm.segment == 1 ? norm.channels : norm.segment) >= kStreamedLine;
    return norm;
}

}  // namespace normfuse
