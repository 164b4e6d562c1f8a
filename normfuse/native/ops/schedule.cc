#include "ops/schedule.h"

#include <algorithm>

namespace normfuse {

namespace {

// How many threads onnxruntime has cannot be asked. So tasks are small enough to keep many busy, and large enough that
// handing one out (about a microsecond) does not count.
constexpr std::int64_t kTask = 16 * 1024;  // elements
constexpr std::int64_t kManyRows = 16;     // with fewer rows than this, threads share each row
constexpr std::int64_t kParts = 64;        // of one row
constexpr std::int64_t kBlockChannels = 256;
constexpr std::int64_t kLastParts = 16;
constexpr std::int64_t kLastTask = 64 * 1024;  // as many moments as channels are put together for each part

std::int64_t divided(std::int64_t total, std::int64_t size) { return (total + size - 1) / size; }

void compute_rows(const ort::Api& api, const ort::KernelContext* context, const Kernels& kernels, const Norm& norm) {
    const std::int64_t length = norm.channels * norm.segment;
    const std::int64_t rows = std::max<std::int64_t>(1, kTask / length);
    parallel(api, context, divided(norm.rows, rows),
             [&](std::int64_t task) { kernels.normalise(norm, task * rows, std::min(norm.rows, (task + 1) * rows)); });
}

// One row after the other, so that it is still in a cache when it is written.
void compute_shared_rows(const ort::Api& api, const ort::KernelContext* context, const Kernels& kernels,
                         const Norm& norm) {
    const std::int64_t length = norm.channels * norm.segment;
    const std::int64_t size = std::max(kTask, divided(divided(length, kParts), kTask) * kTask);
    const std::int64_t parts = divided(length, size);
    for (std::int64_t row = 0; row < norm.rows; ++row) {
        Moments moments[kParts] = {};
        parallel(api, context, parts, [&](std::int64_t part) {
            moments[part] = kernels.measure(norm, row, part * size, std::min(length, (part + 1) * size));
        });
        Moments whole = {};
        for (std::int64_t part = 0; part < parts; ++part) whole = together(whole, moments[part]);
        parallel(api, context, parts, [&](std::int64_t task) {
            const std::int64_t part = parts - 1 - task;
            kernels.apply(norm, row, part * size, std::min(length, (part + 1) * size), whole);
        });
    }
}

void compute_last(const ort::Api& api, const ort::KernelContext* context, const Kernels& kernels, const Norm& norm) {
    const std::int64_t groups = norm.rows / norm.samples;
    const std::int64_t together_ = std::clamp<std::int64_t>(kBlockChannels / norm.channels, 1, groups);
    const std::int64_t blocks = divided(groups, together_);
    const std::int64_t tasks = norm.samples * blocks;
    const std::int64_t elements = norm.positions * norm.channels * together_;
    if (tasks >= kManyRows || elements < 2 * kTask) {
        parallel(api, context, tasks, [&](std::int64_t task) {
            Moments moments[kBlockChannels];
            const std::int64_t sample = task / blocks, first = task % blocks * together_;
            const std::int64_t last = std::min(groups, first + together_);
            kernels.measure_last(norm, sample, first, last, 0, norm.positions, moments);
            kernels.apply_last(norm, sample, first, last, 0, norm.positions, moments);
        });
        return;
    }
    const std::int64_t size = divided(norm.positions, std::min(kLastParts, divided(elements, kLastTask)));
    const std::int64_t parts = divided(norm.positions, size);
    for (std::int64_t task = 0; task < tasks; ++task) {
        Moments moments[kLastParts][kBlockChannels];
        const std::int64_t sample = task / blocks, first = task % blocks * together_;
        const std::int64_t last = std::min(groups, first + together_);
        parallel(api, context, parts, [&](std::int64_t part) {
            kernels.measure_last(norm, sample, first, last, part * size, std::min(norm.positions, (part + 1) * size),
                                 moments[part]);
        });
        for (std::int64_t part = 1; part < parts; ++part) {
            for (std::int64_t group = 0; group < last - first; ++group) {
                moments[0][group] = together(moments[0][group], moments[part][group]);
            }
        }
        parallel(api, context, parts, [&](std::int64_t task_) {
            const std::int64_t part = parts - 1 - task_;  // what was measured last is still in a cache
            kernels.apply_last(norm, sample, first, last, part * size, std::min(norm.positions, (part + 1) * size),
                               moments[0]);
        });
    }
}

}  // namespace

void compute(const ort::Api& api, const ort::KernelContext* context, const Kernels& kernels, const Norm& norm) {
    const std::int64_t length = norm.channels * norm.segment * norm.positions;
    if (norm.rows == 0 || length == 0) return;
    // Channels that lie last, with one position or one channel, are channels that lie first.
    if (norm.positions > 1) return compute_last(api, context, kernels, norm);
    if (norm.rows < kManyRows && length >= 2 * kTask) return compute_shared_rows(api, context, kernels, norm);
    compute_rows(api, context, kernels, norm);
}

}  // namespace normfuse
