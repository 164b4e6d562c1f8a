// The operators on the CPU.
#pragma once

#include <vector>

#include "ops/schema.h"

namespace normfuse {

std::vector<Schema> cpu_operators();

}  // namespace normfuse
