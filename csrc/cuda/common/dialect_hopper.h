// Words of sm_90: mbarriers, bulk copies, wgmma, setmaxnreg. A kernel that uses them includes this after dialect.h.
//
//     here, PTX          the simulator, with the rules of each word
//     mbarriers          ../../simt/mbarrier.h
//     bulk copies        ../../simt/bulk.h
//     setmaxnreg         ../../simt/warpgroup.h
//     wgmma              ../../simt/wgmma.h
//
// wgmma and setmaxnreg exist in code for sm_90a only. On other chips the words trap: no launcher comes there.
// How a tensor map is made is in tensor_map.h.

#pragma once

#include "dialect.h"

#ifndef __CUDACC__

#include "../../simt/bulk.h"
#include "../../simt/mbarrier.h"
#include "../../simt/warpgroup.h"
#include "../../simt/wgmma.h"

#else

#include "tensor_map.h"
#include "tiles.h"
#include "wgmma_shapes.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ON_SM_90(...) __VA_ARGS__
#else
#define ON_SM_90(...) __trap()
#endif

struct alignas(8) Mbarrier {
  uint64_t state;
};

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- mbarriers --------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(Mbarrier& bar, unsigned count) {
  ON_SM_90(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&bar)), "r"(count) : "memory"));
}

__device__ __forceinline__ void fence_mbarrier_init() {
  ON_SM_90(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"));
}

__device__ __forceinline__ void fence_proxy_async() {
  ON_SM_90(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"));
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier& bar) {
  ON_SM_90(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&bar)) : "memory"));
}

__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier& bar, unsigned bytes) {
  ON_SM_90(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&bar)), "r"(bytes)
                        : "memory"));
}

// The hardware suspends the thread for a while; then it asks again.
__device__ __forceinline__ void mbarrier_wait(Mbarrier& bar, unsigned parity) {
  ON_SM_90(
      asm volatile("{\n"
                   ".reg .pred complete;\n"
                   "again:\n"
                   "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
                   "@!complete bra again;\n"
                   "}" ::"r"(shared_address(&bar)), "r"(parity)
                   : "memory"));
}

// ---- bulk copies ------------------------------------------------------------------------------

__device__ __forceinline__ void bulk_copy(void* to_shared, const void* from_global, unsigned bytes, Mbarrier& bar) {
  ON_SM_90(asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                            shared_address(to_shared)),
                        "l"(from_global), "r"(bytes), "r"(shared_address(&bar))
                        : "memory"));
}

#define TENSOR_COPY(rank, coordinates, bar, ...)                                                                     \
  ON_SM_90(asm volatile("cp.async.bulk.tensor." rank ".shared::cluster.global.tile.mbarrier::complete_tx::bytes "     \
                        "[%0], [%1, {" coordinates "}], [" bar "];" ::"r"(shared_address(to_shared)), "l"(&map),      \
                        __VA_ARGS__, "r"(shared_address(&mbarrier))                                                  \
                        : "memory"))

template <int kRank>
__device__ __forceinline__ void tensor_copy(void* to_shared, const TensorMap& map, const int (&at)[kRank], Mbarrier& mbarrier) {
  static_assert(kRank >= 2 && kRank <= 4, "tensors of 2, 3 and 4 dimensions");
  if constexpr (kRank == 2) TENSOR_COPY("2d", "%2, %3", "%4", "r"(at[0]), "r"(at[1]));
  if constexpr (kRank == 3) TENSOR_COPY("3d", "%2, %3, %4", "%5", "r"(at[0]), "r"(at[1]), "r"(at[2]));
  if constexpr (kRank == 4) TENSOR_COPY("4d", "%2, %3, %4, %5", "%6", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]));
}

// ---- warpgroups (sm_90a) ------------------------------------------------------------------------

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define ON_SM_90A(...) __VA_ARGS__
#else
#define ON_SM_90A(...) __trap()
#endif

constexpr bool can_have_registers(int count) { return count >= 24 && count <= 256 && count % 8 == 0; }

template <int kRegisters>
__device__ __forceinline__ void raise_registers() {
  static_assert(can_have_registers(kRegisters), "setmaxnreg takes 24 to 256, a multiple of 8");
  ON_SM_90A(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)));
}

template <int kRegisters>
__device__ __forceinline__ void lower_registers() {
  static_assert(can_have_registers(kRegisters), "setmaxnreg takes 24 to 256, a multiple of 8");
  ON_SM_90A(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters)));
}

enum class Major { k, mn };

// The compiler may not move uses of these registers across this place: wgmma reads and writes them behind its back.
template <int kEights>
__device__ __forceinline__ void hold_registers(float (&c)[kEights][4]) {
  UNROLL
  for (int i = 0; i < 4 * kEights; i++) asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}

template <class... Arrays>
__device__ __forceinline__ void wgmma_fence(Arrays&... c) {
  (hold_registers(c), ...);
  ON_SM_90A(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"));
}

__device__ __forceinline__ void wgmma_commit() { ON_SM_90A(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")); }

template <int kPendingGroups, class... Arrays>
__device__ __forceinline__ void wgmma_wait(Arrays&... c) {
  ON_SM_90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPendingGroups) : "memory"));
  (hold_registers(c), ...);
}

template <class T, Major kMajorB = Major::k, int kEights>
__device__ __forceinline__ void wgmma(float (&c)[kEights][4], const T (&a)[8], MatrixDescriptor b) {
  ON_SM_90A((wgmma_shape<T, kMajorB == Major::mn>(c, reinterpret_cast<const uint32_t*>(a), b.bits)));
}

template <class T, Major kMajorA = Major::k, Major kMajorB = Major::k, int kEights>
__device__ __forceinline__ void wgmma(float (&c)[kEights][4], MatrixDescriptor a, MatrixDescriptor b) {
  ON_SM_90A((wgmma_shape<T, kMajorA == Major::mn, kMajorB == Major::mn>(c, a.bits, b.bits)));
}

#endif

// The matrix that begins at `start`; tiles.h and PTX's table of strides say what the offsets mean for a swizzle.
__device__ __forceinline__ MatrixDescriptor matrix_descriptor(const void* start, int leading_bytes, int stride_bytes,
                                                              Swizzle swizzle) {
  uint64_t mode = (4 - static_cast<uint64_t>(swizzle)) % 4;  // 0 none, 1 bytes128, 2 bytes64, 3 bytes32
  return {(shared_address(start) & 0x3FFFF) >> 4 | static_cast<uint64_t>(leading_bytes >> 4 & 0x3FFF) << 16 |
          static_cast<uint64_t>(stride_bytes >> 4 & 0x3FFF) << 32 | mode << 62};
}
