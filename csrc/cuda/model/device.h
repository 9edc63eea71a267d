// The memory of passes over one model. It stays between steps: a step allocates nothing but its logits, and a captured
// graph finds everything at the same addresses.
//
//     host, pinned   [ ids | positions | slots | block table | ... | sampling ]  -- one copy --+
//     GPU            [ ids | positions | slots | block table | ... | sampling ]  <-------------+
//     GPU            [ residual | x | qkv | ... ]          the scratch memory of the kernels
//     GPU            [ tokens | finite ]  -- one copy --> host, pinned
//
// The host writes the next step's input only when the copy of this one's has been made.

#pragma once

#include <cstring>
#include <mutex>

#include "bound.h"
#include "runtime.h"

namespace minillm {

namespace cuda {
class Buckets;
}

constexpr size_t kAlign = 256;  // of every piece: enough for the widest load
inline size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Memory on the kernels' device that grows when it must; what was in it is lost then.
class DeviceMemory {
 public:
  char* reserve(const Tensor& beside, size_t bytes) {
    if (!memory_ || static_cast<size_t>(memory_->size(0)) < bytes)
      memory_ = torch::stable::new_empty(beside, {static_cast<int64_t>(aligned(bytes))}, ScalarType::Byte);
    return static_cast<char*>(memory_->mutable_data_ptr());
  }

 private:
  std::optional<Tensor> memory_;
};

// The input of a step, collected on the host and sent in one copy.
class Staging {
 public:
  // For a step of at most `bytes`, the padding of each piece included.
  void begin(const Tensor& beside, size_t bytes) {
    sent_.wait();
    host_ = pinned_.reserve(bytes);
    device_ = memory_.reserve(beside, bytes);
    used_ = 0;
  }

  // The address that the values will have on the device.
  template <class T>
  const T* put(const T* values, int64_t count) {
    if (count) memcpy(host_ + used_, values, count * sizeof(T));
    const T* there = reinterpret_cast<const T*>(device_ + used_);
    used_ += aligned(count * sizeof(T));
    return there;
  }

  void send(cuda::Stream stream) {
    cuda::copy_to_device(device_, host_, used_, stream);
    sent_.record(stream);
  }
  void arrived() { sent_.clear(); }  // the stream has been waited for

 private:
  cuda::Pinned pinned_;
  DeviceMemory memory_;
  cuda::Event sent_;
  char *host_ = nullptr, *device_ = nullptr;
  size_t used_ = 0;
};

// The results of a step, written by kernels and fetched in one copy.
class Results {
 public:
  void begin(const Tensor& beside, size_t bytes) {
    host_ = pinned_.reserve(bytes);
    device_ = memory_.reserve(beside, bytes);
    bytes_ = bytes;
  }
  char* on_device() const { return device_; }
  // Waits for the stream.
  const char* fetch(cuda::Stream stream) {
    cuda::copy_to_host(host_, device_, bytes_, stream);
    cuda::wait(stream);
    return host_;
  }

 private:
  cuda::Pinned pinned_;
  DeviceMemory memory_;
  char *host_ = nullptr, *device_ = nullptr;
  size_t bytes_ = 0;
};

struct DeviceState {
  DeviceState();
  ~DeviceState();
  std::mutex busy;  // one step at a time
  Staging staging;
  Results results;
  DeviceMemory scratch;
  bool tensor_cores = false;  // the rungs that run on them are allowed (rungs.h)
  std::unique_ptr<cuda::Buckets> buckets;
};

}  // namespace minillm
