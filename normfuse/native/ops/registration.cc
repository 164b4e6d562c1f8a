#include "ops/registration.h"

#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "ops/runtime.h"

namespace normfuse {

namespace {

constexpr const char* kDomain = "ai.normfuse";
constexpr const char* kRegistered = "ai.normfuse.registered";

// The domain of one runtime. Sessions keep pointers into it, so that it stays as long as the process.
struct Domain {
    const ort::Api* api;
    std::vector<Schema> operators;
    ort::CustomOpDomain* domain;
};

// Whether the runtime knows a version of the table. One that does not would complain if it were asked for it.
bool knows(const ort::ApiBase& base, std::uint32_t version) {
    unsigned major = 0, minor = 0;
    if (std::sscanf(base.GetVersionString(), "%u.%u", &major, &minor) != 2) return false;
    return (major > 1 || (major == 1 && minor >= version)) && base.GetApi(version) != nullptr;
}

// One process may hold several runtimes, each with its own domain.
ort::CustomOpDomain* domain_for(const ort::Api& api, bool has_references, const std::vector<Schema>& operators) {
    static std::mutex mutex;
    static auto& domains = *new std::vector<std::unique_ptr<Domain>>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& known : domains) {
        if (known->api == &api) return known->domain;
    }
    auto fresh = std::make_unique<Domain>(Domain{&api, operators, nullptr});
    require(api, api.CreateCustomOpDomain(kDomain, &fresh->domain));
    for (Schema& entry : fresh->operators) {
        entry.api = &api;
        entry.has_references = has_references;
        require(api, api.CustomOpDomain_Add(fresh->domain, &entry.callbacks));
    }
    domains.push_back(std::move(fresh));
    return domains.back()->domain;
}

}  // namespace

ort::Status* register_operators(ort::SessionOptions* options, const ort::ApiBase* base,
                                const std::vector<Schema>& operators) {
    const ort::Api* api = base->GetApi(ort::kApiVersion);
    if (api == nullptr) {
        // The first entry of the table is the same in every version.
        const std::string message =
            std::string("the operators of ai.normfuse need onnxruntime 1.17 or newer; this is ") +
            base->GetVersionString();
        return base->GetApi(1)->CreateStatus(ort::ErrorCode::kFail, message.c_str());
    }
    return guarded(*api, "registering ai.normfuse", [&] {
        int registered = 0;
        require(*api, api->HasSessionConfigEntry(options, kRegistered, &registered));
        if (registered != 0) return;
        require(*api,
                api->AddCustomOpDomain(options, domain_for(*api, knows(*base, ort::kReferenceVersion), operators)));
        require(*api, api->AddSessionConfigEntry(options, kRegistered, "1"));
    });
}

}  // namespace normfuse
