// One call of launchers from the torch binding; the checks of tensors are in csrc/shared/tensors.h.
//
// The binding is compiled twice, so every CI run executes the code that runs on a GPU:
//
//     MINILLM_SIMT      namespace minillm_simt, key CPU     CPU tensors, which are registered with the simulator
//     MINILLM_ON_CUDA   namespace minillm_cuda, key CUDA    CUDA tensors; errors come from cudaGetLastError

#pragma once

#include "bound.h"
#include "kernels.h"

#ifdef MINILLM_SIMT
#include "../../simt/machine.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace minillm::cuda {

inline Stream as_stream(int64_t stream) { return reinterpret_cast<Stream>(stream); }

// The tensors of one call, with the names used in errors and profiles. A kernel may access only their memory.
// `done` raises the error of the call, if there is one.
class Call {
 public:
  explicit Call(const char* op) : op_(op) {}
  Call(const Call&) = delete;

#ifdef MINILLM_SIMT
  ~Call() { simt::clear_globals(); }

  Call& with(const char* name, const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); i++) last += (t.size(i) - 1) * t.stride(i);
    simt::add_global(name, t.const_data_ptr(), t.numel() ? (last + 1) * t.element_size() : 0);
    return *this;
  }
  void done() { STD_TORCH_CHECK(!simt::machine().failed, op_, ": ", simt::machine().error.message); }
#else
  Call& with(const char*, const Tensor&) { return *this; }
  void done() {
    cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error));
  }
#endif

 private:
  const char* op_;
};

}  // namespace minillm::cuda
