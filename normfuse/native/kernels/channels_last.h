// Group norms of tensors whose channels lie last: (samples, positions, channels), with the channels of a group side by
// side.
//
// Statistics are summed channel by channel, a register of channels at a time: in the type of computation over a few
// positions, in double beyond. The sums are of x − shift and its square; the shift is zero until the mean of a few
// positions lies beyond a quarter of a standard deviation from it, and moves to that mean then. The moments of a
// group's channels are combined in the end.
#pragma once

#include "kernels/activation.h"
#include "kernels/norm.h"
#include "kernels/traversal.h"

namespace normfuse {
namespace {

constexpr std::int64_t kBlock = 256;     // channels that are treated together: their sums fit the first-level cache
constexpr std::int64_t kPositions = 64;  // positions that are summed in the type of computation
constexpr std::int64_t kTogether = 4;    // positions that share what is loaded of a channel
constexpr double kFar = 16.0;            // how often the square of a mean in the variance is too far from the shift

// Calls use(position, some) for `some` positions from each `position` on: kTogether as long as there are as many.
template <typename Use>
inline void for_positions(std::int64_t begin, std::int64_t end, const Use& use) {
    for (; begin + kTogether <= end; begin += kTogether) use(begin, std::integral_constant<std::int64_t, kTogether>{});
    for (; begin < end; ++begin) use(begin, std::integral_constant<std::int64_t, 1>{});
}

// Sums of up to kBlock channels over `count` positions, of x − shift and its square. Channels beyond a multiple of the
// register are padded with zeros.
template <typename Element>
struct ChannelSums {
    alignas(kVectorBytes) Wide<Element> shift[kBlock] = {};
    alignas(kVectorBytes) double linear[kBlock] = {};
    alignas(kVectorBytes) double squares[kBlock] = {};
    double count = 0.0;

    // The same sums around another shift of one channel.
    void move(std::int64_t channel, Wide<Element> to) {
        const double step = static_cast<double>(to) - static_cast<double>(shift[channel]);
        squares[channel] += step * (count * step - 2.0 * linear[channel]);
        linear[channel] -= count * step;
        shift[channel] = to;
    }
};

// The sums of a few positions, in the type of computation.
template <typename Element>
struct FewSums {
    alignas(kVectorBytes) Wide<Element> linear[kBlock] = {};
    alignas(kVectorBytes) Wide<Element> squares[kBlock] = {};
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
        const double count = static_cast<double>(end - begin);
        FewSums<Element> few = summed(begin, end, sums.shift);
        if (moves(few, count, sums)) few = summed(begin, end, sums.shift);
        for (std::int64_t channel = 0; channel < channels; ++channel) {
            sums.linear[channel] += static_cast<double>(few.linear[channel]);
            sums.squares[channel] += static_cast<double>(few.squares[channel]);
        }
        sums.count += count;
    }

    // Moves the shifts that lie beyond a quarter of a standard deviation of `few` to their mean, and says whether there
    // are any.
    bool moves(const FewSums<Element>& few, double count, ChannelSums<Element>& sums) const {
        bool any = false;
        for (std::int64_t channel = 0; channel < channels; ++channel) {
            const double linear = static_cast<double>(few.linear[channel]);
            const double square = linear * linear;
            if ((1.0 + kFar) * square > count * static_cast<double>(few.squares[channel])) {
                sums.move(channel, static_cast<Wide<Element>>(sums.shift[channel] + linear / count));
                any = true;
            }
        }
        return any;
    }

    static void keep(Element* to, const Vector<Wide<Element>, kLanes<Element>>& value, std::int64_t left) {
        if (left < kLanes<Element>) return store_some<Element>(to, value, left);
        store(to, value);
    }

    FewSums<Element> summed(std::int64_t begin, std::int64_t end, const Wide<Element>* shifts) const {
        constexpr int lanes = kLanes<Element>;
        using Lanes = Vector<Wide<Element>, lanes>;
        FewSums<Element> few;
        for_positions(begin, end, [&](std::int64_t position, auto some) {
            for (std::int64_t channel = 0; channel < channels; channel += lanes) {
                const Lanes shift = load(shifts + channel);
                Lanes linear = {}, squares = {};
                for (std::int64_t at = position; at < position + some; ++at) {
                    const Lanes value = value_at(at, channel);
                    if (has_residual && sum != nullptr) keep(sum + at * stride + channel, value, channels - channel);
                    linear += value - shift;
                    squares += (value - shift) * (value - shift);
                }
                // Some by some, the sums of float64 round less often.
                store(few.linear + channel, load(few.linear + channel) + linear);
                store(few.squares + channel, load(few.squares + channel) + squares);
            }
        });
        return few;
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
        for (std::int64_t block = first_group * norm.channels; block < last; block += kBlock) {
            const std::int64_t channels = last - block < kBlock ? last - block : kBlock;
            const ChannelSums<Element> sums = block_sums(tile(norm, sample, block, channels), begin, end);
            for_groups(norm, block, channels, [&](std::int64_t group, std::int64_t from, std::int64_t to) {
                Moments& known = moments[group - first_group];
                known = together(known, of_channels(sums, from, to));
            });
        }
    }

    // Calls use(group, from, to) for the channels [from, to) of each group within a block, counted from its beginning.
    template <typename Use>
    static void for_groups(const Norm& norm, std::int64_t block, std::int64_t channels, const Use& use) {
        std::int64_t group = block / norm.channels;
        for (std::int64_t from = 0; from < channels; ++group) {
            const std::int64_t end = (group + 1) * norm.channels - block;
            const std::int64_t to = end < channels ? end : channels;
            use(group, from, to);
            from = to;
        }
    }

    // The union of channels with equally many values: their means around one mean, and what each deviates by itself.
    static Moments of_channels(const ChannelSums<Element>& sums, std::int64_t from, std::int64_t to) {
        const double count = sums.count, share = 1.0 / count;
        double means[kBlock];
        double total = 0.0;
        for (std::int64_t channel = from; channel < to; ++channel) {
            means[channel] = static_cast<double>(sums.shift[channel]) + sums.linear[channel] * share;
            total += means[channel];
        }
        const double mean = total / static_cast<double>(to - from);
        double deviation = 0.0;
        for (std::int64_t channel = from; channel < to; ++channel) {
            const double own = sums.squares[channel] - sums.linear[channel] * sums.linear[channel] * share;
            const double apart = means[channel] - mean;
            deviation += (own < 0.0 ? 0.0 : own) + count * apart * apart;
        }
        return {count * static_cast<double>(to - from), mean, deviation};
    }

    static ChannelSums<Element> block_sums(const LastTile<Element, has_residual>& tile, std::int64_t begin,
                                           std::int64_t end) {
        ChannelSums<Element> sums;
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
        for_groups(norm, block, channels, [&](std::int64_t group, std::int64_t from, std::int64_t to) {
            const Moments& known = moments[group - first_group];
            const double r = inverse_deviation(known, norm.epsilon);
            const auto mean = static_cast<Scalar>(known.mean);
            const double low = known.mean - static_cast<double>(mean);
            for (std::int64_t channel = from; channel < to; ++channel) {
                const double factor = r * parameter<Element>(norm.scale, block + channel, 1.0);
                high[channel] = mean;
                a[channel] = static_cast<Scalar>(factor);
                b[channel] = static_cast<Scalar>(parameter<Element>(norm.bias, block + channel, 0.0) - low * factor);
            }
        });
        const LastTile<Element, has_residual> from = tile(norm, sample, block, channels);
        Element* y = static_cast<Element*>(norm.y) + sample * norm.positions * norm.parameters + block;
        for_positions(begin, end, [&](std::int64_t position, auto some) {
            const auto normalised = [&](std::int64_t at, std::int64_t i) {
                const Lanes value = (from.value_at(at, i) - load(high + i)) * load(a + i) + load(b + i);
                return activated<activation, Scalar, lanes>(value);
            };
            for_registers<Element, 1>(
                channels,
                [&](std::int64_t i, int) {
                    for (std::int64_t at = position; at < position + some; ++at) {
                        store(y + at * norm.parameters + i, normalised(at, i));
                    }
                },
                [&](std::int64_t i, std::int64_t left) {
                    for (std::int64_t at = position; at < position + some; ++at) {
                        store_some<Element>(y + at * norm.parameters + i, normalised(at, i), left);
                    }
                });
        });
    }
};

}  // namespace
}  // namespace normfuse
