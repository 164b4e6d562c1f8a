// Group norms of tensors whose channels lie last: (samples, positions, channels), with the channels of a group side by
// side.
//
// Statistics are summed channel by channel, a register of channels at a time: around the mean of the first positions,
// in the type of computation over a few positions, in double beyond. The moments of a group's channels are then
// combined.
#pragma once

#include "kernels/activation.h"
#include "kernels/norm.h"
#include "kernels/traversal.h"

namespace normfuse {
namespace {

constexpr std::int64_t kBlock = 256;     // channels that are treated together: their sums fit the first-level cache
constexpr std::int64_t kPositions = 64;  // positions that are summed in the type of computation

// Sums of up to kBlock channels. Channels beyond a multiple of the register are padded with zeros.
template <typename Element>
struct ChannelSums {
    alignas(kVectorBytes) Wide<Element> shift[kBlock] = {};
    alignas(kVectorBytes) double linear[kBlock] = {};
    alignas(kVectorBytes) double squares[kBlock] = {};
};

template <typename Element, bool has_residual>
struct LastTile {
    Source<Element, has_residual> source;  // at the first channel of the block, first position
    Element* sum;
    std::int64_t stride;    // from one position to the next
    std::int64_t channels;  // of the block

    auto value_at(std::int64_t position, std::int64_t channel) const {
        const std::int64_t left = channels - channel;
        return left >= kLanes<Element> ? source.load_at(position * stride + channel)
                                       : source.load_some_at(position * stride + channel, left);
    }

    // Adds the positions [begin, end), at most kPositions of them, to `sums`.
    void add(std::int64_t begin, std::int64_t end, ChannelSums<Element>& sums) const {
        constexpr int lanes = kLanes<Element>;
        using Lanes = Vector<Wide<Element>, lanes>;
        alignas(kVectorBytes) Wide<Element> linear[kBlock] = {};
        alignas(kVectorBytes) Wide<Element> squares[kBlock] = {};
        for (std::int64_t position = begin; position < end; ++position) {
            for (std::int64_t channel = 0; channel < channels; channel += lanes) {
                const Lanes value = value_at(position, channel);
                if (has_residual && sum != nullptr) {
                    store_some<Element>(sum + position * stride + channel, value,
                                        channels - channel < lanes ? channels - channel : lanes);
                }
                const Lanes difference = value - load(sums.shift + channel);
                store(linear + channel, load(linear + channel) + difference);
                store(squares + channel, load(squares + channel) + difference * difference);
            }
        }
        for (std::int64_t channel = 0; channel < channels; ++channel) {
            sums.linear[channel] += static_cast<double>(linear[channel]);
            sums.squares[channel] += static_cast<double>(squares[channel]);
        }
    }
};

template <typename Element, Activation activation, bool has_residual>
struct LastGroups {
    static LastTile<Element, has_residual> tile(const Norm& norm, std::int64_t sample, std::int64_t channel,
                                                std::int64_t channels) {
        const std::int64_t offset = sample * norm.positions * norm.parameters + channel;
        const Source<Element, has_residual> source = {static_cast<const Element*>(norm.x),
                                                      static_cast<const Element*>(norm.residual)};
        Element* sum = norm.sum == nullptr ? nullptr : static_cast<Element*>(norm.sum) + offset;
        return {source + offset, sum, norm.parameters, channels};
    }

    static void measure(const Norm& norm, std::int64_t sample, std::int64_t first_group, std::int64_t last_group,
                        std::int64_t begin, std::int64_t end, Moments* moments) {
        for (std::int64_t group = first_group; group < last_group; ++group) moments[group - first_group] = {};
        const std::int64_t last = last_group * norm.channels;
        const double count = static_cast<double>(end - begin);
        for (std::int64_t block = first_group * norm.channels; block < last; block += kBlock) {
            const std::int64_t channels = last - block < kBlock ? last - block : kBlock;
            const ChannelSums<Element> sums = block_sums(tile(norm, sample, block, channels), begin, end);
            for (std::int64_t channel = 0; channel < channels; ++channel) {
                const double mean = sums.linear[channel] / count;
                const double deviation = sums.squares[channel] - sums.linear[channel] * mean;
                Moments& group = moments[(block + channel) / norm.channels - first_group];
                group = together(
                    group, {count, static_cast<double>(sums.shift[channel]) + mean, deviation < 0.0 ? 0.0 : deviation});
            }
        }
    }

    static ChannelSums<Element> block_sums(const LastTile<Element, has_residual>& tile, std::int64_t begin,
                                           std::int64_t end) {
        const std::int64_t few = end - begin < kPositions ? end : begin + kPositions;
        ChannelSums<Element> first, sums;
        tile.add(begin, few, first);
        for (std::int64_t channel = 0; channel < tile.channels; ++channel) {
            sums.shift[channel] = static_cast<Wide<Element>>(first.linear[channel] / static_cast<double>(few - begin));
        }
        for (std::int64_t position = begin; position < end; position += kPositions) {
            tile.add(position, end - position < kPositions ? end : position + kPositions, sums);
        }
        return sums;
    }

    static void apply(const Norm& norm, std::int64_t sample, std::int64_t first_group, std::int64_t last_group,
                      std::int64_t begin, std::int64_t end, const Moments* moments) {
        const std::int64_t last = last_group * norm.channels;
        for (std::int64_t block = first_group * norm.channels; block < last; block += kBlock) {
            const std::int64_t channels = last - block < kBlock ? last - block : kBlock;
            apply_block(norm, sample, block, channels, begin, end, first_group, moments);
        }
    }

    static void apply_block(const Norm& norm, std::int64_t sample, std::int64_t block, std::int64_t channels,
                            std::int64_t begin, std::int64_t end, std::int64_t first_group, const Moments* moments) {
        constexpr int lanes = kLanes<Element>;
        using Scalar = Wide<Element>;
        using Lanes = Vector<Scalar, lanes>;
        alignas(kVectorBytes) Scalar high[kBlock] = {};
        alignas(kVectorBytes) Scalar a[kBlock] = {};
        alignas(kVectorBytes) Scalar b[kBlock] = {};
        for (std::int64_t channel = 0; channel < channels; ++channel) {
            const Moments& group = moments[(block + channel) / norm.channels - first_group];
            high[channel] = static_cast<Scalar>(group.mean);
            const double factor =
                inverse_deviation(group, norm.epsilon) * parameter<Element>(norm.scale, block + channel, 1.0);
            const double low = group.mean - static_cast<double>(high[channel]);
            a[channel] = static_cast<Scalar>(factor);
            b[channel] = static_cast<Scalar>(parameter<Element>(norm.bias, block + channel, 0.0) - low * factor);
        }
        const LastTile<Element, has_residual> from = tile(norm, sample, block, channels);
        Element* y = static_cast<Element*>(norm.y) + sample * norm.positions * norm.parameters + block;
        for (std::int64_t position = begin; position < end; ++position) {
            Element* to = y + position * norm.parameters;
            const auto normalised = [&](std::int64_t i) {
                const Lanes value = (from.value_at(position, i) - load(high + i)) * load(a + i) + load(b + i);
                return activated<activation, Scalar, lanes>(value);
            };
            for_registers<Element, kUnrolledWith<activation>>(
                channels, [&](std::int64_t i, int) { store(to + i, normalised(i)); },
                [&](std::int64_t i, std::int64_t left) { store_some<Element>(to + i, normalised(i), left); });
        }
    }
};

}  // namespace
}  // namespace normfuse
