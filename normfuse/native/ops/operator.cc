#include "ops/operator.h"

namespace normfuse {

std::string Operator::name() const {
    static const char* const families[] = {"GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"};
    static const char* const activations[] = {"", "Relu", "Silu", "Gelu"};
    return std::string(adds_residual ? "Add" : "") + families[static_cast<int>(family)] +
           activations[static_cast<int>(activation)] + (channels_last ? "ChannelsLast" : "") +
           (keeps_sum ? "WithSum" : "");
}

std::vector<Operator> operators() {
    std::vector<Operator> all;
    for (const Family family : {Family::kGroupNorm, Family::kInstanceNorm, Family::kLayerNorm, Family::kRmsNorm}) {
        for (const Activation activation :
             {Activation::kNone, Activation::kRelu, Activation::kSilu, Activation::kGelu}) {
            for (const bool last : {false, true}) {
                const Operator plain = {family, activation, false, false, last};
                if (last && !plain.has_channels()) continue;
                all.push_back(plain);
                all.push_back({family, activation, true, false, last});
                all.push_back({family, activation, true, true, last});
            }
        }
    }
    return all;
}

}  // namespace normfuse
