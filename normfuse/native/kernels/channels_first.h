// Norms whose statistics are those of consecutive elements: group, instance, layer and RMS norm.
//
// One pass over memory gives the statistics: chunks that stay in the first-level cache are summed in the type of
// computation, their moments combined in double. The sums are of x − shift and its square; the shift is zero as long as
// that loses nothing, and a chunk whose mean lies far from it, compared with its spread, is summed again around its
// mean. So the variance is as accurate as that of two passes, whatever the mean.
//
// y = (x − high)·a + b, where high is the mean rounded to the type of computation, and b takes up what rounding left
// over: near the mean the difference is exact, so a large mean costs no accuracy here either.
#pragma once

#include "kernels/activation.h"
#include "kernels/norm.h"
#include "kernels/traversal.h"

namespace normfuse {
namespace {

// A few rows of so many elements stay in the first-level cache, with all that belongs to them.
constexpr std::int64_t kShortRow = 256;
constexpr std::int64_t kShortRows = 8;

struct Sums {
    double linear;
    double squares;
};

// Elements of a chunk: each accumulator adds up 64 values.
template <typename Element>
constexpr std::int64_t kChunk = 64 * kUnrolled * kLanes<Element>;

// Up to which square of mean / deviation a shift of zero will do. float64 is summed in no wider type: it always is
// shifted.
template <typename Element>
constexpr double kNear = sizeof(Element) == sizeof(double) ? 0.0 : 1.0;

template <typename Element, bool centred, bool shifted, bool has_residual>
inline Sums chunk_sums(const Source<Element, has_residual>& source, Element* sum, std::int64_t count,
                       Wide<Element> shift) {
    using Lanes = Vector<Wide<Element>, kLanes<Element>>;
    Lanes linear[kUnrolled] = {}, squares[kUnrolled] = {};
    const auto add = [&](const Lanes& value, int slot) {
        if constexpr (centred) linear[slot] += value;
        squares[slot] += value * value;
    };
    for_registers<Element, kUnrolled>(
        count,
        [&](std::int64_t i, int slot) {
            const Lanes value = source.load_at(i);
            if (has_residual && sum != nullptr) store(sum + i, value);
            add(shifted ? value - shift : value, slot);
        },
        [&](std::int64_t i, std::int64_t left) {
            const Lanes value = source.load_some_at(i, left);
            if (has_residual && sum != nullptr) store_some<Element>(sum + i, value, left);
            add(shifted ? first_lanes<Wide<Element>, kLanes<Element>>(value - shift, left) : value, 0);
        });
    static_assert(kUnrolled == 4);
    return {lanes_sum<Wide<Element>, kLanes<Element>>((linear[0] + linear[1]) + (linear[2] + linear[3])),
            lanes_sum<Wide<Element>, kLanes<Element>>((squares[0] + squares[1]) + (squares[2] + squares[3]))};
}

template <typename Element, bool has_residual>
inline Moments mean_square(Source<Element, has_residual> source, Element* sum, std::int64_t count) {
    Moments total = {static_cast<double>(count), 0.0, 0.0};
    for (std::int64_t begin = 0; begin < count; begin += kChunk<Element>) {
        const std::int64_t size = count - begin < kChunk<Element> ? count - begin : kChunk<Element>;
        Element* kept = sum == nullptr ? nullptr : sum + begin;
        total.deviation += chunk_sums<Element, false, false>(source + begin, kept, size, 0).squares;
    }
    return total;
}

template <typename Element, bool has_residual>
inline Moments mean_and_deviation(Source<Element, has_residual> source, Element* sum, std::int64_t count) {
    Moments total = {};
    bool shifted = false;
    for (std::int64_t begin = 0; begin < count; begin += kChunk<Element>) {
        const std::int64_t size = count - begin < kChunk<Element> ? count - begin : kChunk<Element>;
        const double n = static_cast<double>(size);
        Element* kept = sum == nullptr ? nullptr : sum + begin;
        auto shift = static_cast<Wide<Element>>(total.mean);
        if (!shifted) shift = 0;
        Sums sums = shifted ? chunk_sums<Element, true, true>(source + begin, kept, size, shift)
                            : chunk_sums<Element, true, false>(source + begin, kept, size, shift);
        const double share = 1.0 / n;  // not on the way from the sums to the result
        double mean = sums.linear * share;
        double deviation = sums.squares - sums.linear * mean;
        // Beyond one standard deviation the squares are mostly those of the mean. NaN compares false, and stays.
        if (mean * mean * n > kNear<Element> * deviation) {
            shifted = true;
            shift = static_cast<Wide<Element>>(static_cast<double>(shift) + mean);
            sums = chunk_sums<Element, true, true>(source + begin, kept, size, shift);
            mean = sums.linear * share;
            deviation = sums.squares - sums.linear * mean;
        }
        total = together(total, {n, static_cast<double>(shift) + mean, deviation < 0.0 ? 0.0 : deviation});
    }
    return total;
}

// y = activation((x − high)·a + b), one a and b for all.
template <typename Element, Activation activation, bool has_residual>
inline void apply_line(const Source<Element, has_residual>& source, Element* y, std::int64_t count, bool streams,
                       Wide<Element> high, Wide<Element> a, Wide<Element> b) {
    using Lanes = Vector<Wide<Element>, kLanes<Element>>;
    const auto normalised = [&](const Lanes& value) {
        return activated<activation, Wide<Element>, kLanes<Element>>((value - high) * a + b);
    };
    write<Element, kUnrolledWith<activation>>(
        y, count, streams, [&](std::int64_t i) { return normalised(source.load_at(i)); },
        [&](std::int64_t i, std::int64_t left) { return normalised(source.load_some_at(i, left)); });
}

// y = activation(((x − high)·r + b)·scale + bias), where each element has its own scale and bias.
template <typename Element, Activation activation, bool has_residual>
inline void apply_elements(const Source<Element, has_residual>& source, const Element* scale, const Element* bias,
                           Element* y, std::int64_t count, bool streams, Wide<Element> high, Wide<Element> r,
                           Wide<Element> b) {
    using Lanes = Vector<Wide<Element>, kLanes<Element>>;
    write<Element, kUnrolledWith<activation>>(
        y, count, streams,
        [&](std::int64_t i) {
            Lanes value = (source.load_at(i) - high) * r + b;
            if (scale != nullptr) value *= load(scale + i);
            if (bias != nullptr) value += load(bias + i);
            return activated<activation, Wide<Element>, kLanes<Element>>(value);
        },
        [&](std::int64_t i, std::int64_t left) {
            Lanes value = (source.load_some_at(i, left) - high) * r + b;
            if (scale != nullptr) value *= load_some(scale + i, left);
            if (bias != nullptr) value += load_some(bias + i, left);
            return activated<activation, Wide<Element>, kLanes<Element>>(value);
        });
}

// The rows of one norm, for one combination of what is fixed for a whole call.
template <typename Element, Activation activation, bool has_residual>
struct Rows {
    static Source<Element, has_residual> source(const Norm& norm, std::int64_t row) {
        const std::int64_t offset = row * norm.channels * norm.segment;
        return Source<Element, has_residual>{static_cast<const Element*>(norm.x),
                                             static_cast<const Element*>(norm.residual)} +
               offset;
    }

    // Of short rows a division would be a good part.
    static std::int64_t first_parameter(const Norm& norm, std::int64_t row) {
        const std::int64_t channel = row * norm.channels;
        if (norm.channels == norm.parameters) return 0;
        return channel < norm.parameters ? channel : channel % norm.parameters;
    }

    static Moments measure(const Norm& norm, std::int64_t row, std::int64_t begin, std::int64_t end) {
        const std::int64_t offset = row * norm.channels * norm.segment + begin;
        Element* sum = norm.sum == nullptr ? nullptr : static_cast<Element*>(norm.sum) + offset;
        const auto values = source(norm, row) + begin;
        return norm.centred ? mean_and_deviation(values, sum, end - begin) : mean_square(values, sum, end - begin);
    }

    static void apply(const Norm& norm, std::int64_t row, std::int64_t begin, std::int64_t end,
                      const Moments& moments) {
        const double r = inverse_deviation(moments, norm.epsilon);
        const auto high = static_cast<Wide<Element>>(moments.mean);
        const double low = moments.mean - static_cast<double>(high);
        const auto values = source(norm, row);
        Element* y = static_cast<Element*>(norm.y) + row * norm.channels * norm.segment;
        const std::int64_t first = first_parameter(norm, row);
        if (norm.segment == 1) {
            const auto* scale = static_cast<const Element*>(norm.scale);
            const auto* bias = static_cast<const Element*>(norm.bias);
            apply_elements<Element, activation>(values + begin, scale == nullptr ? nullptr : scale + first + begin,
                                                bias == nullptr ? nullptr : bias + first + begin, y + begin,
                                                end - begin, norm.streams, high, static_cast<Wide<Element>>(r),
                                                static_cast<Wide<Element>>(-low * r));
            return;
        }
        // From the end: what was measured last is still in the cache.
        for (std::int64_t channel = norm.channels == 1 ? 0 : (end - 1) / norm.segment; end > begin; --channel) {
            const std::int64_t from = channel * norm.segment > begin ? channel * norm.segment : begin;
            const double a = r * parameter<Element>(norm.scale, first + channel, 1.0);
            const double b = parameter<Element>(norm.bias, first + channel, 0.0) - low * a;
            apply_line<Element, activation>(values + from, y + from, end - from, norm.streams, high,
                                            static_cast<Wide<Element>>(a), static_cast<Wide<Element>>(b));
            end = from;
        }
    }

    // What is measured does not depend on the activation: one function for all.
    static Moments measured(const Norm& norm, std::int64_t row) {
        return Rows<Element, Activation::kNone, has_residual>::measure(norm, row, 0, norm.channels * norm.segment);
    }

    // Short rows by several: until the deviation of one is divided and its root taken, others can be measured.
    static void normalise(const Norm& norm, std::int64_t first_row, std::int64_t last_row) {
        const std::int64_t length = norm.channels * norm.segment;
        const std::int64_t step = length <= kShortRow ? kShortRows : 1;
        Moments moments[kShortRows];
        for (std::int64_t begin = first_row; begin < last_row; begin += step) {
            const std::int64_t count = last_row - begin < step ? last_row - begin : step;
            for (std::int64_t i = 0; i < count; ++i) moments[i] = measured(norm, begin + i);
            for (std::int64_t i = 0; i < count; ++i) apply_sum(norm, begin + i, 0, length, moments[i]);
        }
    }

    // Where the sum was written without rounding, it is read again in the place of its two parts.
    static void apply_sum(const Norm& norm, std::int64_t row, std::int64_t begin, std::int64_t end,
                          const Moments& moments) {
        if constexpr (has_residual && sizeof(Element) == sizeof(Wide<Element>)) {
            if (norm.sum != nullptr) {
                Norm summed = norm;
                summed.x = norm.sum;
                return Rows<Element, activation, false>::apply(summed, row, begin, end, moments);
            }
        }
        apply(norm, row, begin, end, moments);
    }
};

}  // namespace
}  // namespace normfuse
