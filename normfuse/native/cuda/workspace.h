// Device memory of one call, in the order of its stream: what comes later on the stream may have it again.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace normfuse::cuda {

class Workspace {
  public:
    // Throws std::runtime_error where the device has no memory left. `bytes` may be 0.
    Workspace(std::size_t bytes, cudaStream_t stream);
    ~Workspace();
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    void* data() const { return data_; }

  private:
    void* data_ = nullptr;
    cudaStream_t stream_;
};

}  // namespace normfuse::cuda
