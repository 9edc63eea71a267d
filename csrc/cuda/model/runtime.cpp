// The calls of runtime.h: CUDA's, and their twins in the simulator.

#include "runtime.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#ifdef MINILLM_SIMT
#include "../../simt/machine.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace minillm::cuda {

#ifdef MINILLM_SIMT

namespace {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};
std::vector<Copy> late;  // copies to the host that nobody has waited for

}  // namespace

Pinned::~Pinned() { ::operator delete(memory_); }

char* Pinned::reserve(size_t bytes) {
  if (bytes > bytes_) {
    ::operator delete(memory_);
    memory_ = static_cast<char*>(::operator new(bytes));
    bytes_ = bytes;
  }
  return memory_;
}

void copy_to_device(void* to, const void* pinned, size_t bytes, Stream) {
  simt::host_calls().copies_to_device++;
  memcpy(to, pinned, bytes);
}

void copy_to_host(void* pinned, const void* from, size_t bytes, Stream) {
  simt::host_calls().copies_to_host++;
  memset(pinned, 0xFF, bytes);
  late.push_back({pinned, from, bytes});
}

void wait(Stream) {
  simt::host_calls().waits++;
  for (const Copy& copy : late) memcpy(copy.to, copy.from, copy.bytes);
  late.clear();
}

void copy_on_device(void* to, const void* from, size_t bytes, Stream) { memcpy(to, from, bytes); }

Graph::~Graph() {}

void Graph::run(Stream stream, const std::function<void(Stream)>& work) { work(stream); }

Event::~Event() {}

void Event::record(Stream) { recorded_ = true; }

void Event::wait() {
  if (recorded_) simt::host_calls().waits++;
  recorded_ = false;
}

#else

namespace {

void require(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

}  // namespace

// Errors of freeing are ignored: at the end of the process the driver may be gone already.
Pinned::~Pinned() { cudaFreeHost(memory_); }

char* Pinned::reserve(size_t bytes) {
  if (bytes > bytes_) {
    cudaFreeHost(memory_);
    memory_ = nullptr;
    bytes_ = 0;
    void* memory = nullptr;
    require(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "pinned memory");
    memory_ = static_cast<char*>(memory);
    bytes_ = bytes;
  }
  return memory_;
}

void copy_to_device(void* to, const void* pinned, size_t bytes, Stream stream) {
  require(cudaMemcpyAsync(to, pinned, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)), "copy to the GPU");
}

void copy_to_host(void* pinned, const void* from, size_t bytes, Stream stream) {
  require(cudaMemcpyAsync(pinned, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)), "copy from the GPU");
}

void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  require(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)), "copy on the GPU");
}

// Torch's usual stream is CUDA's default stream, which cannot be captured, so the work is captured on another one.
class CaptureStream {
 public:
  CaptureStream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"); }
  ~CaptureStream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_;
};

Graph::~Graph() {
  if (captured_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(captured_));
}

void Graph::run(Stream stream, const std::function<void(Stream)>& work) {
  if (runs_++ == 0) return work(stream);
  if (!captured_) {
    CaptureStream side;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    require(cudaStreamBeginCapture(side.get(), cudaStreamCaptureModeThreadLocal), "capturing a step");
    work(side.get());
    require(cudaStreamEndCapture(side.get(), &graph), "capturing a step");
    cudaError_t error = cudaGraphInstantiate(&ready, graph, 0);
    cudaGraphDestroy(graph);
    require(error, "capturing a step");
    captured_ = ready;
  }
  require(cudaGraphLaunch(static_cast<cudaGraphExec_t>(captured_), static_cast<cudaStream_t>(stream)), "launching a step");
}

void wait(Stream stream) { require(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the GPU"); }

Event::~Event() {
  if (event_) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

void Event::record(Stream stream) {
  if (!event_) {
    cudaEvent_t event;
    require(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
    event_ = event;
  }
  require(cudaEventRecord(static_cast<cudaEvent_t>(event_), static_cast<cudaStream_t>(stream)), "an event");
  recorded_ = true;
}

void Event::wait() {
  if (recorded_) require(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "waiting for the GPU");
  recorded_ = false;
}

#endif

}  // namespace minillm::cuda
