// The operators on the CPU.
#pragma once

#include <vector>

#include "ops/schema.h"

namespace normfuse {

// Every operator for every type: one that were missing would fail to load instead of running as the function in the
// file.
std::vector<Schema> cpu_operators();

}  // namespace normfuse
