// The plain interface between the operators and the kernels: what is to be normalised, and who can do it.
#pragma once

#include <cstdint>

namespace normfuse {

enum class Activation : int { kNone, kRelu, kSilu, kGelu };

// One call's work: y = activation((x + residual − μ) / sqrt(σ² + ε) · scale + bias), sum = x + residual.
//
// Channels first, x is seen as (rows, channels, segment), where each row has its own statistics, and element (r, c, s)
// takes the parameter at (r · channels + c) mod parameters. A group norm has rows N·G of C/G channels, an instance norm
// rows N·C of one channel; a layer norm has segment 1 and as many channels as elements along the normalised axes.
//
// Channels last, x is seen as (samples, positions, parameters) with rows / samples groups of `channels` next to each
// other.
//
// Pointers that are null stand for operands that are absent. All tensors have one type; float16 and bfloat16 are
// computed in float32 and rounded once. The uncentred norm (RMS) has μ = 0 and the mean square in the place of σ².
struct Norm {
    const void* x;
    const void* residual;
    const void* scale;
    const void* bias;
    void* y;
    void* sum;
    std::int64_t rows;
    std::int64_t channels;
    std::int64_t segment;
    std::int64_t parameters;
    std::int64_t samples;
    std::int64_t positions;
    double epsilon;
    Activation activation;
    bool centred;
    bool streams;  // y is larger than the caches that a core has for itself: float32 is written past them
};

// What is known of a set of values: how many, their mean, and the sum of their squared deviations from it.
struct Moments {
    double count;
    double mean;
    double deviation;
};

// The union of two disjoint sets (Chan, Golub and LeVeque 1979).
static inline Moments together(const Moments& a, const Moments& b) {
    if (a.count == 0) return b;
    if (b.count == 0) return a;
    const double count = a.count + b.count;
    const double delta = b.mean - a.mean;
    return {count, a.mean + delta * (b.count / count),
            a.deviation + b.deviation + delta * delta * (a.count * b.count / count)};
}

// The kernels of one element type, compiled for one instruction set. Ranges are [begin, end).
struct Kernels {
    // Channels first: whole rows; or a part of one row, measured and applied apart so that threads can share a row.
    void (*normalise)(const Norm& norm, std::int64_t first_row, std::int64_t last_row);
    Moments (*measure)(const Norm& norm, std::int64_t row, std::int64_t begin, std::int64_t end);
    void (*apply)(const Norm& norm, std::int64_t row, std::int64_t begin, std::int64_t end, const Moments& moments);

    // Channels last: groups of one sample over a range of positions, with one Moments a group.
    void (*measure_last)(const Norm& norm, std::int64_t sample, std::int64_t first_group, std::int64_t last_group,
                         std::int64_t begin, std::int64_t end, Moments* moments);
    void (*apply_last)(const Norm& norm, std::int64_t sample, std::int64_t first_group, std::int64_t last_group,
                       std::int64_t begin, std::int64_t end, const Moments* moments);
};

enum class Type : int { kFloat, kDouble, kFloat16, kBFloat16 };
inline constexpr int kTypes = 4;

// Everything that was compiled for one instruction set.
struct InstructionSet {
    const char* name;
    const Kernels* kernels;  // by Type
};

// The instruction set in use: the widest that this processor has, or a narrower one that the environment variable
// NORMFUSE_INSTRUCTION_SET names.
const InstructionSet& instruction_set();

}  // namespace normfuse
