// A node of the graph as every provider sees it: which norm it is, and what a call of it gives.
#pragma once

#include <optional>
#include <string>

#include "kernels/norm.h"
#include "ops/layout.h"
#include "ops/operator.h"
#include "ops/runtime.h"
#include "ops/schema.h"

namespace normfuse {

// Shared by all threads that run the session: a call changes nothing of it.
struct Node {
    const ort::Api& api;
    bool has_references;
    Operator op;
    Attributes attributes;
    std::string where;  // what errors begin with

    // The shapes of a scale and a bias that are constants. To ask for a shape costs more than anything else in a call.
    std::optional<Shape> scale, bias;

    Node(const Schema& schema, const ort::Api& api, const ort::KernelInfo* info);

    // Returns the work of one call, its outputs allocated. Throws std::invalid_argument with all shapes where they do
    // not fit together.
    Norm prepare(ort::KernelContext* context) const;
};

// What errors say of a node that is not made yet.
std::string where(const Schema& schema);

}  // namespace normfuse
