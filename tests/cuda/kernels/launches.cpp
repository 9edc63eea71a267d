// Every launch of csrc/cuda's launchers, as nvcc compiled them, on a machine without a GPU. This file takes the place
// of the CUDA runtime: it keeps what a launch asks for, and runs nothing. test_cuda_launches.py looks at the list.
//
//     launcher (nvcc) --> __cudaPushCallConfiguration, cudaFuncSetAttribute, __cudaLaunchKernel --> a line of text

#include <cstdint>
#include <map>
#include <sstream>
#include <string>

#include "kernels.h"

namespace {

struct Size {  // CUDA's dim3
  unsigned x, y, z;
};

struct Kernel {
  std::string symbol;
  int allowed = -1;  // bytes of dynamic shared memory, if the launcher has asked for them
};

struct Configuration {
  Size grid, block;
  size_t shared;
  void* stream;
};

std::map<const void*, Kernel> kernels;  // by the address of nvcc's stub
Configuration next;
std::ostringstream launched;

}  // namespace

// ---- the CUDA runtime, as nvcc calls it ----------------------------------------------------------

extern "C" {
void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* symbol, int, void*, void*, void*, void*, int*) {
  kernels[stub] = {symbol};
}
unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared, void* stream) {
  next = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(Size* grid, Size* block, size_t* shared, void* stream) {
  *grid = next.grid, *block = next.block, *shared = next.shared, *static_cast<void**>(stream) = next.stream;
  return 0;
}
int __cudaGetKernel(const void** kernel, const void* stub) {
  *kernel = stub;
  return 0;
}
int cudaGetDriverEntryPointByVersion(const char*, void** found, unsigned, unsigned long long, int* status) {
  *found = nullptr, *status = 1;  // no driver: tensor maps stay empty
  return 0;
}
int cudaFuncSetAttribute(const void* stub, int attribute, int value) {
  if (attribute == 8) kernels[stub].allowed = value;  // cudaFuncAttributeMaxDynamicSharedMemorySize
  return 0;
}
int __cudaLaunchKernel(const void* stub, Size grid, Size block, void**, size_t shared, void*) {
  const Kernel& k = kernels[stub];
  for (const Size& s : {grid, block}) launched << s.x << ' ' << s.y << ' ' << s.z << ' ';
  launched << shared << ' ' << k.allowed << ' ' << k.symbol << '\n';
  return 0;
}
}

// ---- every launcher, with large numbers of everything ---------------------------------------------

using namespace minillm::cuda;
using minillm::Codes;
using minillm::DType;
using minillm::KvCodes;

namespace {

constexpr int kMany = 100'000;  // more than grid.y can count

void rows(DType type) {
  for (const void* residual : {static_cast<const void*>(nullptr), static_cast<const void*>("")})
    rms_norm({nullptr, residual, nullptr, nullptr, nullptr, kMany, 4096, 1e-5f, type}, nullptr);
  layer_norm({nullptr, nullptr, nullptr, nullptr, nullptr, kMany, 4096, 1e-5f, type}, nullptr);
  for (int function = 0; function < 6; function++) {
    ActivationArgs p = {nullptr, nullptr, kMany, 14'336, static_cast<Function>(function), 1.0f, type};
    act_and_mul(p, nullptr), act(p, nullptr);
  }
  RopeArgs rope = {};
  rope.num_tokens = kMany, rope.num_heads = 32, rope.num_kv_heads = 8, rope.head_dim = rope.rotary_dim = 128;
  rope.dtype = type;
  rope_and_cache(rope, nullptr);
  rope.codes = KvCodes::int8, rope.block_size = 16;
  rope_and_codes(rope, nullptr);
  for (int experts : {8, 8192}) route({nullptr, nullptr, nullptr, kMany, experts, 8, true, type}, nullptr);
  combine({nullptr, nullptr, nullptr, nullptr, kMany, 4096, 8, type}, nullptr);
  gather({nullptr, nullptr, nullptr, nullptr, nullptr, kMany, 4096, 1.0f, type}, nullptr);
  for (Map kind : {Map::multiply, Map::divide, Map::add})
    map(kind, {nullptr, nullptr, nullptr, int64_t{kMany} * 4096, 1.0f, type}, nullptr);
  finite_rows({nullptr, nullptr, kMany, 151'936, type}, nullptr);
  for (int experts : {8, 8192}) group({nullptr, nullptr, nullptr, nullptr, 8 * kMany, 8, experts}, nullptr);
  SampleArgs sampled = {};
  sampled.rows = kMany, sampled.vocab_size = sampled.num_token_ids = 151'936, sampled.dtype = type;
  sample(sampled, nullptr);
}

void products(DType type) {
  for (int count : {1, 9, 17, 70, kMany})
    for (int out : {64, 151'936}) {
      LinearArgs p = {nullptr, nullptr, nullptr, nullptr, count, 4096, out, type};
      for (auto* rung : {linear_l1, linear_l2, linear_l3, linear_l4, linear_l5}) rung(p, nullptr);
      for (Codes codes : {Codes::int8, Codes::uint4}) {
        p.form = {codes, 64, false, true, false, nullptr};
        linear_q1(p, nullptr), linear_q1_experts({p, nullptr, 128, out}, nullptr);
        gather_codes({nullptr, nullptr, nullptr, nullptr, nullptr, count, 4096, 1.0f, type, p.form, out}, nullptr);
      }
      p.form = {};
      for (int experts : {1, 128})
        for (auto* rung : {linear_experts, linear_l5_experts}) rung({p, nullptr, experts, out}, nullptr);
    }
}

void attention(DType type) {
  for (int dim : {32, 64, 96, 128, 256}) {
    AttentionArgs p = {};
    p.sequences.num_seqs = p.sequences.num_tokens = kMany;
    p.num_heads = 32, p.num_kv_heads = 8, p.head_dim = dim, p.block_size = 16, p.dtype = type;
    attention_v1(p, {nullptr, nullptr, 131'072}, nullptr);
    if (dim == 64 || dim == 128)
      attention_v3(p, nullptr), attention_v4(p, nullptr), decode_d2(p, nullptr), decode_d3(p, {nullptr, nullptr, 256}, nullptr);
    for (float cap : {0.0f, 30.0f}) p.softcap = cap, attention_v2(p, nullptr), decode_d1(p, nullptr);
    p.softcap = 0, p.codes = KvCodes::int8;
    for (int tokens : {kMany, 2 * kMany + 1}) p.sequences.num_tokens = tokens, attention_q1(p, nullptr);
  }
}

}  // namespace

// "grid x y z, block x y z, dynamic shared memory, allowed, symbol", a line for each launch.
extern "C" const char* every_launch() {
  static std::string text;
  for (DType type : {DType::f32, DType::bf16, DType::f16}) rows(type), products(type), attention(type);
  for (uintptr_t cache : {16, 2}) copy_blocks({reinterpret_cast<void*>(cache), nullptr, nullptr, 1 << 20, kMany}, nullptr);
  verify_coupled({nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, kMany}, nullptr);
  for (int vocab : {100, 151'936})
    verify_draft({nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, kMany, 4, vocab}, nullptr);
  text = launched.str();
  return text.c_str();
}
