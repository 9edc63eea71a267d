// The dialect on a GPU: CUDA's own words where they exist, PTX for the rest. For the simulator: csrc/simt/simt.h.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define UNROLL _Pragma("unroll")
#define SHARED(type, name, dims) __shared__ alignas(16) type name dims
#define DYNAMIC_SHARED(type, name)                             \
  extern __shared__ __align__(128) char dynamic_shared_memory[]; \
  type* name = reinterpret_cast<type*>(dynamic_shared_memory)

// The two halves of LAUNCH (dialect.h). What a chip refuses stays behind as CUDA's last error.
#define ALLOW_SHARED(kernel, shared_bytes) allow_shared(kernel, shared_bytes)
#define START(kernel, grid, block, shared_bytes, stream, ...) \
  start_kernel(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

template <class... Parameters>
void allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
}

template <class... Parameters, class... Arguments>
void start_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                  const Arguments&... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
}

// The threads that a multiprocessor can hold.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kResidentThreads = 1024;
#else
constexpr int kResidentThreads = 2048;
#endif

// One access of sizeof(V) bytes; V must be aligned to its size.
template <class V>
__device__ __forceinline__ V load_wide(const void* from) {
  return *static_cast<const V*>(from);
}
template <class V>
__device__ __forceinline__ void store_wide(void* to, V value) {
  *static_cast<V*>(to) = value;
}

// ---- named barriers: barriers 1 to 15 of a block, for so many threads in whole warps ---------------

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Says that this warp has come, and goes on.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- tensor cores (sm_80); csrc/simt/simt.h shows which lane holds which element -------------------

__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const __nv_bfloat16 (&a)[8], const __nv_bfloat16 (&b)[4]) {
#if __CUDA_ARCH__ >= 800
  const uint32_t *x = reinterpret_cast<const uint32_t*>(a), *y = reinterpret_cast<const uint32_t*>(b);
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
#else
  __trap();  // no launcher uses tensor cores on older chips
#endif
}

__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const __half (&a)[8], const __half (&b)[4]) {
#if __CUDA_ARCH__ >= 800
  const uint32_t *x = reinterpret_cast<const uint32_t*>(a), *y = reinterpret_cast<const uint32_t*>(b);
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
#else
  __trap();
#endif
}

// Eight rows of 16 bytes in shared memory for each of kMatrices matrices (4 or 2), from lanes 0, 1, ... in turn.
template <int kMatrices, class T>
__device__ __forceinline__ void load_matrices(T* numbers, const T* row) {
  static_assert(kMatrices == 2 || kMatrices == 4, "ldmatrix.x2 and .x4");
  uint32_t* to = reinterpret_cast<uint32_t*>(numbers);
  uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kMatrices == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(from)
                 : "memory");
}

// As load_matrices, for four matrices that are transposed on the way.
template <int kMatrices, class T>
__device__ __forceinline__ void load_matrices_transposed(T* numbers, const T* row) {
  static_assert(kMatrices == 4, "ldmatrix.x4.trans");
  uint32_t* to = reinterpret_cast<uint32_t*>(numbers);
  uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// 2^x with an error of 2 units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- cp.async (sm_80); a plain copy on older chips -------------------------------------------------

template <int kBytes>
__device__ __forceinline__ void copy_async(void* to_shared, const void* from_global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from_global), "n"(kBytes) : "memory");
#else
  memcpy(__builtin_assume_aligned(to_shared, kBytes), __builtin_assume_aligned(from_global, kBytes), kBytes);
#endif
}

// 16 bytes past the first cache, or zeros where nothing is `inside`; then `from_global` is not read.
__device__ __forceinline__ void copy_async_or_zero(void* to_shared, const void* from_global, bool inside) {
#if __CUDA_ARCH__ >= 800
  uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from_global),
               "r"(inside ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to_shared) = inside ? *static_cast<const uint4*>(from_global) : uint4{};
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPendingGroups>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPendingGroups) : "memory");
#endif
}
