// CUDA's words for a kernel that is compiled for the simulator, which runs on a CPU.
//
// A GPU runs a *grid* of blocks. The threads of a block share fast memory and can wait for each other
// (`__syncthreads`). Each 32 consecutive threads are a *warp*; its lanes can exchange registers (`__shfl_*_sync`).
// Blocks are independent: they may run in any order.
//
//     grid   block 0,0   block 1,0   ...      one after another, all on the same shared memory
//     block  warp 0 [lane 0 .. 31]  warp 1 [lane 0 .. 31] ...     one fiber per lane (fiber.h)
//
// Plain loads and stores need no wrapper. The kernel is compiled with -fsanitize=thread, so the compiler inserts a
// call for each access, and hooks.cpp implements these calls. With -DSIMT_ASAN the kernel is compiled with
// AddressSanitizer instead, which checks plain C++ accesses.
//
// Stricter than CUDA on purpose: a block is whole warps, the lanes of a warp operation meet at one line (warps.cpp), an
// arrival at a named barrier needs a warp that waits (named_barriers.cpp), no block waits for another, and there are no
// atomics (the order of atomic additions would change the bits of a sum).

#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define UNROLL
constexpr int kResidentThreads = 2048;  // of a multiprocessor

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

namespace simt {

// The place of a call, as a default argument. Replaces std::source_location, which older compilers do not have.
struct Where {
  const char* file;
  int line;
  static constexpr Where current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();

void barrier(const char* name, Where where);

void named_barrier(const char* name, int id, int threads, bool waits, Where where);

constexpr unsigned kAllLanes = ~0u;
// Each lane of the mask stores a pointer and waits; the last lane to arrive calls `combine` with all pointers, null
// for lanes outside the mask.
using Combine = void (*)(void* const operands[32]);
void warp_operation(const char* name, unsigned mask, void* operand, Combine combine, Where where);
void sync_warp(unsigned mask, Where where);
int own_lane(unsigned mask, Where where);  // an error if the mask does not name it
void require_read(unsigned mask, int lane, Where where);
void require_width(int width, Where where);

// The block's array of this name: the same memory for every thread of the block.
void* shared_array(const char* name, size_t bytes, Where where);
void* dynamic_shared(Where where);

// Accesses of several elements at once, which the hardware does as one access.
void read_wide(void* to, const void* from, size_t bytes);
void write_wide(void* to, const void* from, size_t bytes);

void copy_async(void* to_shared, const void* from_global, size_t bytes);  // from null: zeros
void commit_copies();
void wait_copies(int pending_groups);

void count_mma();

// How much dynamic shared memory the kernel's launches may have (limits.cpp).
void allow_shared(const char* kernel, size_t bytes, Where where = Where::current());

// Runs `call(arguments)` once in every thread of the grid.
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*call)(const void*),
            const void* arguments, size_t arguments_bytes, Where where);

template <class Body>
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const Body& body,
            Where where = Where::current()) {
  launch(kernel, grid, block, shared_bytes, [](const void* b) { (*static_cast<const Body*>(b))(); }, &body,
         sizeof(body), where);
}

}  // namespace simt

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_size())
#define gridDim (simt::grid_size())

inline void __syncthreads(simt::Where where = simt::Where::current()) { simt::barrier("__syncthreads", where); }

// Named barriers: whole warps, of which some wait (sync) and some only say that they came (arrive).
inline void named_barrier_sync(int id, int threads, simt::Where where = simt::Where::current()) {
  simt::named_barrier("named_barrier_sync", id, threads, true, where);
}
inline void named_barrier_arrive(int id, int threads, simt::Where where = simt::Where::current()) {
  simt::named_barrier("named_barrier_arrive", id, threads, false, where);
}

#include "warp.h"

// ---- memory -----------------------------------------------------------------------------------

// SHARED(float, tile, [32][33]);    an array in the block's shared memory
#define SHARED(type, name, dims)          \
  typedef type name##_shared_type dims;   \
  name##_shared_type& name =              \
      *static_cast<name##_shared_type*>(simt::shared_array(#name, sizeof(name##_shared_type), simt::Where::current()))

// DYNAMIC_SHARED(float, buffer);    `shared_bytes` of the launch
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(simt::dynamic_shared(simt::Where::current()))

// The two halves of LAUNCH (dialect.h).
#define ALLOW_SHARED(kernel, shared_bytes) simt::allow_shared(#kernel, shared_bytes)
#define START(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), simt::launch(#kernel, grid, block, shared_bytes, [=] { kernel(__VA_ARGS__); }))

template <class V>
__forceinline__ V load_wide(const void* from) {
#ifdef SIMT_ASAN
  return *static_cast<const V*>(from);
#else
  V value;
  simt::read_wide(&value, from, sizeof(V));
  return value;
#endif
}
template <class V>
__forceinline__ void store_wide(void* to, V value) {
#ifdef SIMT_ASAN
  *static_cast<V*>(to) = value;
#else
  simt::write_wide(to, &value, sizeof(V));
#endif
}

// Starts a copy to shared memory; the data are there only after a wait.
template <int kBytes>
__forceinline__ void copy_async(void* to_shared, const void* from_global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  simt::copy_async(to_shared, from_global, kBytes);
}
// The same of 16 bytes, or zeros where nothing is `inside`; then `from_global` is not read.
__forceinline__ void copy_async_or_zero(void* to_shared, const void* from_global, bool inside) {
  simt::copy_async(to_shared, inside ? from_global : nullptr, 16);
}
__forceinline__ void commit_copies() { simt::commit_copies(); }
template <int kPendingGroups>
__forceinline__ void wait_copies() {
  simt::wait_copies(kPendingGroups);
}

// ---- tensor cores -----------------------------------------------------------------------------

// c [16, 8] += a [16, 16] * b [16, 8]; the elements are distributed over the warp's lanes. With g = lane / 4 and
// t = 2 * (lane % 4) a lane holds, in this order,
//     a   (g, t) (g, t + 1)   (g + 8, ..)   (g, t + 8 ..)   (g + 8, t + 8 ..)
//     b   (t, g) (t + 1, g)   (t + 8, g) (t + 9, g)
//     c   (g, t) (g, t + 1)   (g + 8, t) (g + 8, t + 1)
// Each element of c is summed as an H100 sums it (tensor_core.cpp). PTX ISA: mma.m16n8k16.
namespace simt {
struct MmaOperands {  // of a lane; 16-bit numbers as bits
  float* c;
  const uint16_t *a, *b;
};
// `number` gives the value of a 16-bit number, `smallest_exponent` is its type's.
void multiply_tiles(void* const* operands, float (*number)(uint16_t), int smallest_exponent);

template <class T>
const uint16_t* bits_of(const T* numbers) {
  static_assert(sizeof(T) == 2, "tensor cores take bfloat16 and float16");
  return reinterpret_cast<const uint16_t*>(numbers);
}
}  // namespace simt

template <class T>
void mma_m16n8k16(float (&c)[4], const T (&a)[8], const T (&b)[4], simt::Where where = simt::Where::current()) {
  simt::MmaOperands mine{c, simt::bits_of(a), simt::bits_of(b)};
  simt::warp_operation("mma", simt::kAllLanes, &mine, [](void* const* operands) {
    simt::multiply_tiles(operands, [](uint16_t bits) { return to_float(T{bits}); }, smallest_exponent(T{}));
  }, where);
}

// kMatrices (4 or 2) matrices of 8 x 8 from shared memory, as mma wants them. Lane i gives the place of row i % 8
// of matrix i / 8, 16 bytes; it gets of each matrix the numbers (g, t) and (g, t + 1), g and t as above.
// PTX ISA: ldmatrix.
namespace simt {
template <class T>
struct MatrixRow {
  struct alignas(16) Numbers {
    T v[8];
  } row;
  T* to;
};
template <int kMatrices, bool kTransposed, class T>
void spread_matrices(void* const* operands) {
  MatrixRow<T>* const* lanes = reinterpret_cast<MatrixRow<T>* const*>(operands);
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 2 * kMatrices; i++) {
      int g = lane / 4, t = lane % 4 * 2 + i % 2;
      lanes[lane]->to[i] = lanes[i / 2 * 8 + (kTransposed ? t : g)]->row.v[kTransposed ? g : t];
    }
}
}  // namespace simt

template <int kMatrices, class T>
__forceinline__ void load_matrices(T* numbers, const T* row, simt::Where where = simt::Where::current()) {
  static_assert(kMatrices == 2 || kMatrices == 4, "ldmatrix.x2 and .x4");
  simt::MatrixRow<T> mine{{}, numbers};
  if (threadIdx.x % 32 < 8 * kMatrices) mine.row = load_wide<typename simt::MatrixRow<T>::Numbers>(row);
  simt::warp_operation("ldmatrix", simt::kAllLanes, &mine, simt::spread_matrices<kMatrices, false, T>, where);
}

// The same with each matrix turned over: a lane gets the numbers (t, g) and (t + 1, g). PTX ISA: ldmatrix .trans.
template <int kMatrices, class T>
__forceinline__ void load_matrices_transposed(T* numbers, const T* row, simt::Where where = simt::Where::current()) {
  static_assert(kMatrices == 4, "ldmatrix.x4.trans");
  simt::MatrixRow<T> mine{load_wide<typename simt::MatrixRow<T>::Numbers>(row), numbers};
  simt::warp_operation("ldmatrix.trans", simt::kAllLanes, &mine, simt::spread_matrices<kMatrices, true, T>, where);
}

// ex2.approx.ftz: subnormal results are 0. PTX ISA: ex2.
inline float exp2_approx(float x) {
  float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
}

#include "cuda_words.h"
