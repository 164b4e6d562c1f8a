// Registers operators of the domain ai.normfuse with a session.
#pragma once

#include <vector>

#include "abi/onnxruntime_abi.h"
#include "ops/schema.h"

namespace normfuse {

// Adds `operators` to `options`; of all providers at once, since a domain is added once. Options that have the domain
// already are left alone: onnxruntime refuses one that is there twice. Returns an error on a runtime older than
// kApiVersion.
ort::Status* register_operators(ort::SessionOptions* options, const ort::ApiBase* base,
                                const std::vector<Schema>& operators);

}  // namespace normfuse
