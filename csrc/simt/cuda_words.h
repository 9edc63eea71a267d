// CUDA's small words: vectors of numbers, arithmetic, and the words that the simulator does not have.
//
//     float4 x = *reinterpret_cast<const float4*>(p);    one access of 16 bytes, as on a GPU; p is a multiple of 16
//
// A vector is copied by one call of read_wide, so that the simulator counts one access. Arithmetic is IEEE float32.
// Functions that a GPU approximates (expf, __expf, rsqrtf, __fdividef ..) may differ from it in the last bits.

#pragma once

// ---- vectors ----------------------------------------------------------------------------------

#ifdef SIMT_ASAN  // AddressSanitizer checks plain copies
#define SIMT_COPIES(type)
#else
#define SIMT_COPIES(type)                                                                                        \
  __forceinline__ type(const type& from) { simt::read_wide(this, &from, sizeof(type)); }                         \
  __forceinline__ type& operator=(const type& from) {                                                            \
    type copy(from);                                                                                             \
    simt::write_wide(this, &copy, sizeof(type));                                                                 \
    return *this;                                                                                                \
  }
#endif
#define SIMT_VECTORS(name, T)                                                                                    \
  struct alignas(2 * sizeof(T)) name##2 {                                                                        \
    T x, y;                                                                                                      \
    name##2() = default;                                                                                         \
    name##2(T x, T y) : x(x), y(y) {}                                                                            \
    SIMT_COPIES(name##2)                                                                                         \
  };                                                                                                             \
  struct alignas(4 * sizeof(T)) name##4 {                                                                        \
    T x, y, z, w;                                                                                                \
    name##4() = default;                                                                                         \
    name##4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                                                      \
    SIMT_COPIES(name##4)                                                                                         \
  };                                                                                                             \
  inline name##2 make_##name##2(T x, T y) { return name##2(x, y); }                                              \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4(x, y, z, w); }
SIMT_VECTORS(float, float)
SIMT_VECTORS(int, int)
SIMT_VECTORS(uint, unsigned)
#undef SIMT_VECTORS
#undef SIMT_COPIES

// A load through the read-only cache, which is not simulated.
template <class T>
__forceinline__ T __ldg(const T* from) {
  return *from;
}

// ---- arithmetic -------------------------------------------------------------------------------

constexpr int warpSize = 32;

// Both whole numbers, or both with a fraction, as in CUDA. Of a NaN and a number the result is the number.
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  static_assert(std::is_integral_v<A> == std::is_integral_v<B>, "min of a whole number and a float: convert one");
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_integral_v<T>) return T(b) < T(a) ? T(b) : T(a);
  else return std::fmin(T(a), T(b));
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  static_assert(std::is_integral_v<A> == std::is_integral_v<B>, "max of a whole number and a float: convert one");
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_integral_v<T>) return T(a) < T(b) ? T(b) : T(a);
  else return std::fmax(T(a), T(b));
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
// Macros: the C library declares functions of its own with these two names.
namespace simt {
inline float fast_exp(float x) { return exp2_approx(x * 1.44269504f); }
inline float fast_log(float x) { return std::log(x); }
}  // namespace simt
#define __expf simt::fast_exp
#define __logf simt::fast_log
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }

// ---- words of CUDA that are not here ----------------------------------------------------------

#define SIMT_ABSENT(name, why)                                                              \
  template <class... Arguments>                                                             \
  int name(Arguments&&...) {                                                                \
    static_assert(sizeof...(Arguments) > 99, "the simulator has no " #name ": " why);       \
    return 0;                                                                               \
  }
#define SIMT_NO_ATOMIC(name) SIMT_ABSENT(name, "the order of atomic operations would change a sum's bits")
SIMT_NO_ATOMIC(atomicAdd)
SIMT_NO_ATOMIC(atomicSub)
SIMT_NO_ATOMIC(atomicMax)
SIMT_NO_ATOMIC(atomicMin)
SIMT_NO_ATOMIC(atomicExch)
SIMT_NO_ATOMIC(atomicCAS)
#define SIMT_NO_REDUCTION(name) SIMT_ABSENT(name, "exchange numbers with __shfl_xor_sync")
SIMT_NO_REDUCTION(__reduce_add_sync)
SIMT_NO_REDUCTION(__reduce_max_sync)
SIMT_NO_REDUCTION(__reduce_min_sync)
SIMT_ABSENT(__activemask, "CUDA does not say which lanes are active: use __ballot_sync of lanes that you name")
#define SIMT_NO_SUM(name) SIMT_ABSENT(name, "write to shared memory between two calls of __syncthreads")
SIMT_NO_SUM(__syncthreads_count)
SIMT_NO_SUM(__syncthreads_and)
SIMT_NO_SUM(__syncthreads_or)
SIMT_ABSENT(__threadfence, "blocks do not wait for each other")
SIMT_ABSENT(__threadfence_block, "use __syncthreads or __syncwarp")
#undef SIMT_NO_SUM
#undef SIMT_NO_REDUCTION
#undef SIMT_NO_ATOMIC
#undef SIMT_ABSENT
#define __shared__ static_assert(false, "the simulator has no __shared__: write SHARED(float, name, [size]);");
#define __constant__ static_assert(false, "the simulator has no __constant__: pass it as an argument of the kernel");
