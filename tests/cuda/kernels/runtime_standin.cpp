// A stand-in for the CUDA runtime: it runs no kernel and writes down what the host asks for, in order. The "device" is
// memory of the CPU. The code of csrc/cuda that calls the runtime on a GPU can so be run, and timed, without one.
//
//     to device 4096       a copy from pinned memory; "pageable" is added where it is not
//     launch gather_kernel
//     to host 40
//     wait
//
// What the host reads has all bytes 1: flags are true, tokens are no ids.

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

std::string text;
bool quiet = false, capturing = false;
std::map<const void*, std::string> names;
std::map<const char*, size_t> pinned;
int graphs = 0;

void say(const std::string& line) {
  if (!quiet) text += (capturing ? "captured: " : "") + line + "\n";
}

std::string pageable(const void* at) {
  auto after = pinned.upper_bound(static_cast<const char*>(at));
  if (after == pinned.begin()) return " pageable";
  --after;
  return static_cast<const char*>(at) < after->first + after->second ? "" : " pageable";
}

// "_ZN7minillm4cuda..13gather_kernelI..." becomes "gather_kernel": the last name that ends before a template's arguments.
std::string plain(const std::string& mangled) {
  std::string last = mangled;
  for (size_t i = 0; i < mangled.size();) {
    size_t digits = 0;
    while (i + digits < mangled.size() && isdigit(mangled[i + digits])) digits++;
    size_t length = digits ? std::stoul(mangled.substr(i, digits)) : 0;
    if (digits && i + digits + length <= mangled.size()) {
      std::string name = mangled.substr(i + digits, length);
      if (name.find("kernel") != std::string::npos || name == "norm") return name;
      last = name;
      i += digits + length;
    } else {
      i++;
    }
  }
  return last;
}

}  // namespace

extern "C" {

const char* standin_log() { return text.c_str(); }
void standin_clear() { text.clear(); }
void standin_quiet(int on) { quiet = on; }

// ---- what nvcc's host code calls ---------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(calloc(1, 8)); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  names[function] = plain(name);
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

static dim3 pushed_grid, pushed_block;
static size_t pushed_shared;
static cudaStream_t pushed_stream;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed_grid = grid, pushed_block = block, pushed_shared = shared, pushed_stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed_grid, *block = pushed_block, *shared = pushed_shared;
  *static_cast<cudaStream_t*>(stream) = pushed_stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  if (!quiet) say("launch " + names[kernel]);
  return cudaSuccess;
}

// ---- what csrc/cuda calls ----------------------------------------------------------------------

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  return *found = nullptr, *status = cudaDriverEntryPointSymbolNotFound, cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "error of the stand-in"; }

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = calloc(1, bytes);
  pinned[static_cast<char*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  pinned.erase(static_cast<char*>(memory));
  free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  if (kind == cudaMemcpyHostToDevice) {
    memcpy(to, from, bytes);
    if (!quiet) say("to device " + std::to_string(bytes) + pageable(from));
  } else if (kind == cudaMemcpyDeviceToHost) {
    memset(to, 1, bytes);
    if (!quiet) say("to host " + std::to_string(bytes) + pageable(to));
  } else {
    memcpy(to, from, bytes);
    if (!quiet) say("on device " + std::to_string(bytes));
  }
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return say("wait"), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = static_cast<cudaEvent_t>(malloc(1));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return say("wait for an event"), cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = static_cast<cudaStream_t>(malloc(1));
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return free(stream), cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream) return cudaErrorStreamCaptureUnsupported;  // the default stream cannot be captured
  capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  capturing = false;
  *graph = reinterpret_cast<cudaGraph_t>(static_cast<intptr_t>(++graphs));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  *ready = reinterpret_cast<cudaGraphExec_t>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  return say("free graph " + std::to_string(reinterpret_cast<intptr_t>(ready))), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
  return say("launch graph " + std::to_string(reinterpret_cast<intptr_t>(ready))), cudaSuccess;
}

}  // extern "C"
