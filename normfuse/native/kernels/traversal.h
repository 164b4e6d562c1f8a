// How the kernels walk over elements: whole registers, several at a time, and the rest of less than one.
#pragma once

#include "kernels/memory.h"
#include "kernels/norm.h"

namespace normfuse {
namespace {

// Registers in flight: the sums need several accumulators to hide the latency of an addition. An activation has enough
// to do within one register.
constexpr int kUnrolled = 4;
template <Activation activation>
constexpr int kUnrolledWith = activation == Activation::kNone || activation == Activation::kRelu ? kUnrolled : 1;

// The values that are normalised: x, or x + residual.
template <typename Element, bool has_residual>
struct Source {
    const Element* x;
    const Element* residual;

    auto load_at(std::int64_t i) const {
        if constexpr (has_residual) return load(x + i) + load(residual + i);
        if constexpr (!has_residual) return load(x + i);
    }
    auto load_some_at(std::int64_t i, std::int64_t count) const {
        if constexpr (has_residual) return load_some(x + i, count) + load_some(residual + i, count);
        if constexpr (!has_residual) return load_some(x + i, count);
    }
    Source operator+(std::int64_t offset) const { return {x + offset, has_residual ? residual + offset : nullptr}; }
};

// Calls whole(i, slot) for every full register of [0, count), slot < unrolled, and part(i, n) for the n elements left.
template <typename Element, int unrolled, typename Whole, typename Part>
inline void for_registers(std::int64_t count, const Whole& whole, const Part& part) {
    constexpr int lanes = kLanes<Element>;
    std::int64_t i = 0;
    if constexpr (unrolled > 1) {
        for (; i + unrolled * lanes <= count; i += unrolled * lanes) {
            for (int slot = 0; slot < unrolled; ++slot) whole(i + slot * lanes, slot);
        }
    }
    for (; i + lanes <= count; i += lanes) whole(i, 0);
    if (i < count) part(i, count - i);
}

// Writes y[i] = value(i), or value_some(i, n) where only n elements are left; past the caches where `streams` says so.
template <typename Element, int unrolled, typename Value, typename ValueOfSome>
inline void write(Element* y, std::int64_t count, bool streams, const Value& value, const ValueOfSome& value_some) {
    const auto part = [&](std::int64_t i, std::int64_t left) { store_some<Element>(y + i, value_some(i, left), left); };
    if constexpr (kStreams<Element>) {
        if (streams) {
            // What comes before the first aligned address is less than a register.
            const auto past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(y) % kVectorBytes);
            const std::int64_t lead =
                past == 0 ? 0 : (kVectorBytes - past) / static_cast<std::int64_t>(sizeof(Element));
            const std::int64_t head = lead < count ? lead : count;
            if (head > 0) part(0, head);
            for_registers<Element, unrolled>(
                count - head, [&](std::int64_t i, int) { stream(y + head + i, value(head + i)); },
                [&](std::int64_t i, std::int64_t left) { part(head + i, left); });
            return;
        }
    }
    for_registers<Element, unrolled>(count, [&](std::int64_t i, int) { store(y + i, value(i)); }, part);
}

// A parameter of the norm, or what stands for it where it is absent.
template <typename Element>
inline double parameter(const void* values, std::int64_t index, double absent) {
    if (values == nullptr) return absent;
    return static_cast<double>(load_some(static_cast<const Element*>(values) + index, 1)[0]);
}

inline double inverse_deviation(const Moments& moments, double epsilon) {
    return 1.0 / __builtin_sqrt(moments.deviation / moments.count + epsilon);
}

}  // namespace
}  // namespace normfuse
