// The table of kernels of one instruction set: compiled once for each, with NORMFUSE_ISA as the name of the table.
#include <type_traits>

#include "kernels/channels_first.h"
#include "kernels/channels_last.h"
#include "kernels/norm.h"

namespace normfuse {
namespace {

// Calls use.template operator()<activation, has_residual>() with what `norm` has of both.
template <typename Use>
inline auto chosen(const Norm& norm, const Use& use) {
    const auto with = [&](auto residual) {
        constexpr bool has_residual = decltype(residual)::value;
        switch (norm.activation) {
            case Activation::kRelu:
                return use.template operator()<Activation::kRelu, has_residual>();
            case Activation::kSilu:
                return use.template operator()<Activation::kSilu, has_residual>();
            case Activation::kGelu:
                return use.template operator()<Activation::kGelu, has_residual>();
            case Activation::kNone:
                break;
        }
        return use.template operator()<Activation::kNone, has_residual>();
    };
    return norm.residual != nullptr ? with(std::true_type{}) : with(std::false_type{});
}

template <typename Element>
struct Entry {
    struct Normalise {
        template <Activation activation, bool has_residual>
        auto operator()() const {
            return &Rows<Element, activation, has_residual>::normalise;
        }
    };
    struct Apply {
        template <Activation activation, bool has_residual>
        auto operator()() const {
            return &Rows<Element, activation, has_residual>::apply_sum;
        }
    };
    struct ApplyLast {
        template <Activation activation, bool has_residual>
        auto operator()() const {
            return &LastGroups<Element, activation, has_residual>::apply;
        }
    };

    static void normalise(const Norm& norm, std::int64_t first_row, std::int64_t last_row) {
        chosen(norm, Normalise{})(norm, first_row, last_row);
        if (norm.streams) finish_streams();
    }
    static Moments measure(const Norm& norm, std::int64_t row, std::int64_t begin, std::int64_t end) {
        if (norm.residual != nullptr) return Rows<Element, Activation::kNone, true>::measure(norm, row, begin, end);
        return Rows<Element, Activation::kNone, false>::measure(norm, row, begin, end);
    }
    static void apply(const Norm& norm, std::int64_t row, std::int64_t begin, std::int64_t end,
                      const Moments& moments) {
        chosen(norm, Apply{})(norm, row, begin, end, moments);
        if (norm.streams) finish_streams();
    }
    static void measure_last(const Norm& norm, std::int64_t sample, std::int64_t first_group, std::int64_t last_group,
                             std::int64_t begin, std::int64_t end, Moments* moments) {
        if (norm.residual != nullptr) {
            LastGroups<Element, Activation::kNone, true>::measure(norm, sample, first_group, last_group, begin, end,
                                                                  moments);
        } else {
            LastGroups<Element, Activation::kNone, false>::measure(norm, sample, first_group, last_group, begin, end,
                                                                   moments);
        }
    }
    static void apply_last(const Norm& norm, std::int64_t sample, std::int64_t first_group, std::int64_t last_group,
                           std::int64_t begin, std::int64_t end, const Moments* moments) {
        chosen(norm, ApplyLast{})(norm, sample, first_group, last_group, begin, end, moments);
    }

    static constexpr Kernels table = {normalise, measure, apply, measure_last, apply_last};
};

}  // namespace

extern const Kernels NORMFUSE_ISA[kTypes];
const Kernels NORMFUSE_ISA[kTypes] = {Entry<float>::table, Entry<double>::table, Entry<Float16>::table,
                                      Entry<BFloat16>::table};

}  // namespace normfuse
