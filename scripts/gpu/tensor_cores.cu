// What a tensor core computes, to the bit: questions whose answers decide which kernels may stand beside each
// other under contract C2. Build and run on a Hopper GPU:
//
//     nvcc -std=c++17 -O2 -gencode=arch=compute_90a,code=sm_90a -o tensor_cores scripts/gpu/tensor_cores.cu
//     ./tensor_cores OUT_DIR
//
//     positions   does an element of mma.sync depend on its row, its column or its neighbours' values?
//     roles       is A x B, element by element, B^T x A^T?
//     wgmma       does m64nNk16 give the bits of a chain of mma.sync m16n8k16, for every N?
//     arithmetic  which model of the sum gives the chip's bits: how many products a group, how many bits are
//                 kept when they are aligned, how the result is rounded?
//     rate        mma.sync with all operands in registers, TFLOP/s
//
// OUT_DIR/tensor_cores.json holds the answers, and dot products with the chip's result, in hexadecimal:
// a, b (16 numbers each), c, d. A simulator can be held against them.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#define CHECK(call)                                                                       \
  do {                                                                                    \
    cudaError_t e = (call);                                                               \
    if (e != cudaSuccess) {                                                               \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e));     \
      std::exit(1);                                                                       \
    }                                                                                     \
  } while (0)

template <class T>
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2 && std::is_same_v<T, __half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// One warp, one tile: d[16][8] = c[16][8] + a[16][depth] b[depth][8], depth a multiple of 16; b is [8][depth].
template <class T>
__global__ void tile_kernel(const T* a, const T* b, const float* c, float* d, int depth) {
  const T *at = a + static_cast<size_t>(blockIdx.x) * 16 * depth, *bt = b + static_cast<size_t>(blockIdx.x) * 8 * depth;
  int group = threadIdx.x / 4, part = threadIdx.x % 4;
  float sum[4];
  for (int i = 0; i < 4; i++) sum[i] = c[blockIdx.x * 128 + (group + i / 2 * 8) * 8 + part * 2 + i % 2];
  for (int k = 0; k < depth; k += 16) {
    uint32_t x[4], y[2];
    for (int i = 0; i < 4; i++)
      x[i] = *reinterpret_cast<const uint32_t*>(at + (group + i % 2 * 8) * depth + k + part * 2 + i / 2 * 8);
    for (int i = 0; i < 2; i++) y[i] = *reinterpret_cast<const uint32_t*>(bt + group * depth + k + part * 2 + i * 8);
    mma<T>(sum, x, y);
  }
  for (int i = 0; i < 4; i++) d[blockIdx.x * 128 + (group + i / 2 * 8) * 8 + part * 2 + i % 2] = sum[i];
}

// ---- wgmma: one warpgroup, d[64][N] = a[64][depth] b[depth][N], b is [N][depth], bf16 -----------------------

// Both operands lie in shared memory as 8 x 8 blocks of 128 bytes, without swizzle; 16 columns at a time.
__device__ uint64_t descriptor(const void* at, uint32_t lead, uint32_t stride) {
  uint64_t address = static_cast<uint64_t>(__cvta_generic_to_shared(at));
  return (address >> 4 & 0x3FFF) | static_cast<uint64_t>(lead >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32;
}

template <int N>
__device__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b);

#define R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define R16(d, i) R4(d, i), R4(d, i + 4), R4(d, i + 8), R4(d, i + 12)
#define WGMMA(n, list, a, b, ...)                                                                            \
  asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0;\n"                                                   \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" list "}, " a ", " b ", add, 1, 1, 0, 0;}" \
               : __VA_ARGS__                                                                                 \
               : "l"(x), "l"(y))
template <>
__device__ void wgmma<8>(float (&d)[4], uint64_t x, uint64_t y) {
  WGMMA("8", "%0,%1,%2,%3", "%4", "%5", R4(d, 0));
}
template <>
__device__ void wgmma<32>(float (&d)[16], uint64_t x, uint64_t y) {
  WGMMA("32", "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15", "%16", "%17", R16(d, 0));
}
template <>
__device__ void wgmma<64>(float (&d)[32], uint64_t x, uint64_t y) {
  WGMMA("64",
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"
        "%29,%30,%31",
        "%32", "%33", R16(d, 0), R16(d, 16));
}
template <>
__device__ void wgmma<128>(float (&d)[64], uint64_t x, uint64_t y) {
  WGMMA("128",
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"
        "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,"
        "%56,%57,%58,%59,%60,%61,%62,%63",
        "%64", "%65", R16(d, 0), R16(d, 16), R16(d, 32), R16(d, 48));
}

template <int N>
__global__ void __launch_bounds__(128) wgmma_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, float* d, int depth,
                                                    bool exchanged) {
  // With the two distances exchanged a narrow operand is read beyond its end: there is room for that.
  __shared__ alignas(128) __nv_bfloat16 sa[64 * 16 + 1024], sb[N * 16 + 1024];
  float sum[N / 2] = {};
  // A block of 8 rows x 8 columns is 64 numbers; blocks along K follow each other, then the next 8 rows.
  auto place = [](int row, int k) { return (row / 8 * 2 + k / 8) * 64 + row % 8 * 8 + k % 8; };
  for (int k0 = 0; k0 < depth; k0 += 16) {
    __syncthreads();
    for (int i = threadIdx.x; i < 64 * 16; i += 128) sa[place(i / 16, i % 16)] = a[i / 16 * depth + k0 + i % 16];
    for (int i = threadIdx.x; i < N * 16; i += 128) sb[place(i / 16, i % 16)] = b[i / 16 * depth + k0 + i % 16];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    uint32_t along_k = 128, along_rows = 256;
    if (exchanged) along_k = 256, along_rows = 128;
    for (int i = 0; i < N / 2; i++) asm volatile("" : "+f"(sum[i])::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    wgmma<N>(sum, descriptor(sa, along_k, along_rows), descriptor(sb, along_k, along_rows));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < N / 2; i++) asm volatile("" : "+f"(sum[i])::"memory");
  }
  int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, part = threadIdx.x % 4;
  for (int i = 0; i < N / 2; i++) {
    int row = warp * 16 + group + i % 4 / 2 * 8, column = i / 4 * 8 + part * 2 + i % 2;
    d[row * N + column] = sum[i];
  }
}

// ---- rate ---------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(256) rate_kernel(float* out, int rounds, uint32_t seed) {
  uint32_t a[4] = {seed, seed + 1, seed + 2, seed + 3}, b[2] = {seed, seed + 5};
  float c[8][4] = {};
  for (int r = 0; r < rounds; r++)
#pragma unroll
    for (int i = 0; i < 8; i++) mma<__nv_bfloat16>(c[i], a, b);
  float total = 0;
  for (auto& t : c) total += t[0] + t[1] + t[2] + t[3];
  if (total == 12345.0f) out[0] = total;
}

// ---- host ---------------------------------------------------------------------------------------------------

template <class T>
T* on_gpu(const std::vector<T>& v) {
  T* p;
  CHECK(cudaMalloc(&p, v.size() * sizeof(T)));
  CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

uint32_t bits(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return b;
}
template <class T>
uint16_t bits16(T x) {
  uint16_t b;
  std::memcpy(&b, &x, 2);
  return b;
}

std::mt19937_64 rng(7);

// Numbers whose exponents are spread over `spread` powers of two, so that alignment loses bits.
template <class T>
T draw(int spread) {
  std::normal_distribution<float> normal;
  return static_cast<T>(std::ldexp(normal(rng), static_cast<int>(rng() % (2 * spread + 1)) - spread));
}
float draw_c(int spread) {
  std::normal_distribution<float> normal;
  return rng() % 4 ? std::ldexp(normal(rng), static_cast<int>(rng() % (4 * spread + 1)) - 2 * spread) : 0.0f;
}

template <class T>
std::vector<float> tiles(const std::vector<T>& a, const std::vector<T>& b, const std::vector<float>& c, int depth) {
  size_t count = c.size() / 128;
  T *pa = on_gpu(a), *pb = on_gpu(b);
  float *pc = on_gpu(c), *pd = on_gpu(std::vector<float>(c.size(), NAN));
  tile_kernel<T><<<count, 32>>>(pa, pb, pc, pd, depth);
  CHECK(cudaDeviceSynchronize());
  std::vector<float> d(c.size());
  CHECK(cudaMemcpy(d.data(), pd, d.size() * 4, cudaMemcpyDeviceToHost));
  cudaFree(pa), cudaFree(pb), cudaFree(pc), cudaFree(pd);
  return d;
}

struct Json {
  std::string text = "{\n";
  void add(const std::string& name, const std::string& value) {
    text += (text.size() > 2 ? ",\n" : "") + std::string(" \"") + name + "\": " + value;
    std::printf("%s: %s\n", name.c_str(), value.c_str());
  }
  void add(const std::string& name, double value) {
    char s[64];
    std::snprintf(s, sizeof s, "%.10g", value);
    add(name, std::string(s));
  }
};

template <class T>
void positions(Json& json, const std::string& type) {
  const int count = 4096, depth = 64;
  std::vector<T> a(count * 16 * depth), b(count * 8 * depth);
  std::vector<float> c(count * 128);
  // Every row of A, column of B and element of C is the same: so must be every element of D.
  for (int t = 0; t < count; t++) {
    float start = draw_c(4);
    for (int k = 0; k < depth; k++) {
      T x = draw<T>(4), y = draw<T>(4);
      for (int r = 0; r < 16; r++) a[(t * 16 + r) * depth + k] = x;
      for (int n = 0; n < 8; n++) b[(t * 8 + n) * depth + k] = y;
    }
    std::fill_n(&c[t * 128], 128, start);
  }
  std::vector<float> d = tiles(a, b, c, depth);
  int differ = 0;
  for (int i = 0; i < count * 128; i++) differ += bits(d[i]) != bits(d[i / 128 * 128]);
  json.add(type + ": elements that depend on their position", differ);

  // The first row and column keep their numbers and all others get new ones, NaN among them.
  std::vector<T> a2 = a, b2 = b;
  std::vector<float> c2 = c;
  for (int t = 0; t < count; t++) {
    for (int i = depth; i < 16 * depth; i++) a2[t * 16 * depth + i] = t % 3 ? draw<T>(6) : static_cast<T>(NAN);
    for (int i = depth; i < 8 * depth; i++) b2[t * 8 * depth + i] = draw<T>(6);
    for (int i = 1; i < 128; i++) c2[t * 128 + i] = draw_c(6);
  }
  std::vector<float> d2 = tiles(a2, b2, c2, depth);
  differ = 0;
  for (int t = 0; t < count; t++) differ += bits(d[t * 128]) != bits(d2[t * 128]);
  json.add(type + ": elements that depend on other rows and columns", differ);

  // Roles exchanged: columns of B as rows of A, the first 8 rows of A as columns of B.
  for (auto& x : a2) x = draw<T>(4);
  for (auto& x : b2) x = draw<T>(4);
  std::fill(c2.begin(), c2.end(), 0.0f);
  std::vector<float> plain = tiles(a2, b2, c2, depth);
  std::vector<T> a3(a2.size()), b3(b2.size());
  for (int t = 0; t < count; t++) {
    std::copy_n(&b2[t * 8 * depth], 8 * depth, &a3[t * 16 * depth]);
    std::copy_n(&a2[t * 16 * depth], 8 * depth, &b3[t * 8 * depth]);
  }
  std::vector<float> turned = tiles(a3, b3, c2, depth);
  differ = 0;
  for (int t = 0; t < count; t++)
    for (int r = 0; r < 8; r++)
      for (int n = 0; n < 8; n++) differ += bits(plain[t * 128 + r * 8 + n]) != bits(turned[t * 128 + n * 8 + r]);
  json.add(type + ": elements that depend on the operands' roles", differ);
}

template <int N>
void compare_wgmma(Json& json) {
  const int depth = 512;
  std::vector<__nv_bfloat16> a(64 * depth), b(N * depth);
  for (auto& x : a) x = draw<__nv_bfloat16>(3);
  for (auto& x : b) x = draw<__nv_bfloat16>(3);
  // The same product as tiles of 16 x 8.
  std::vector<__nv_bfloat16> ta, tb;
  for (int r = 0; r < 4; r++)
    for (int n = 0; n < N / 8; n++) {
      ta.insert(ta.end(), &a[r * 16 * depth], &a[r * 16 * depth] + 16 * depth);
      tb.insert(tb.end(), &b[n * 8 * depth], &b[n * 8 * depth] + 8 * depth);
    }
  std::vector<float> chain = tiles(ta, tb, std::vector<float>(64 * N), depth);
  __nv_bfloat16 *pa = on_gpu(a), *pb = on_gpu(b);
  std::vector<float> d(64 * N);
  int best = 64 * N + 1;
  double best_error = 1e30;
  for (bool exchanged : {false, true}) {
    float* pd = on_gpu(std::vector<float>(64 * N, NAN));
    wgmma_kernel<N><<<1, 128>>>(pa, pb, pd, depth, exchanged);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(d.data(), pd, d.size() * 4, cudaMemcpyDeviceToHost));
    int differ = 0;
    double error = 0, size = 0;
    for (int r = 0; r < 64; r++)
      for (int n = 0; n < N; n++) {
        float other = chain[((r / 16) * (N / 8) + n / 8) * 128 + r % 16 * 8 + n % 8];
        differ += bits(d[r * N + n]) != bits(other);
        error += std::pow(d[r * N + n] - other, 2), size += other * other;
      }
    error = std::sqrt(error / size);
    if (error < best_error) best = differ, best_error = error;
    cudaFree(pd);
  }
  json.add("wgmma m64n" + std::to_string(N) + "k16, depth 512: elements of " + std::to_string(64 * N) +
               " that differ from mma.sync",
           best);
  json.add("wgmma m64n" + std::to_string(N) + "k16: relative difference", best_error);
}

// ---- arithmetic: fixed-point sums of aligned products -------------------------------------------------------

struct Model {
  int group;        // products that are summed at a time; groups follow each other
  int kept;         // bits kept below the largest exponent
  bool normalised;  // the exponent of a product is its own, not the sum of its factors' exponents
  bool nearest;     // how the sum becomes a float: to the nearest, else towards zero
  bool floor;       // what alignment cuts off goes towards minus infinity, else towards zero
};

float dot(const Model& m, const double* x, const double* y, float c, int depth, int smallest = -2000) {
  double acc = c;
  for (int first = 0; first < depth; first += m.group) {
    int largest = -2000;
    double terms[17];
    for (int i = 0; i <= m.group; i++) {
      terms[i] = i < m.group ? x[first + i] * y[first + i] : acc;
      int e = -2000;
      if (terms[i] != 0) 
        e = i < m.group && !m.normalised
                ? std::max(std::ilogb(x[first + i]), smallest) + std::max(std::ilogb(y[first + i]), smallest)
                : std::ilogb(terms[i]);
      largest = std::max(largest, e);
    }
    if (largest == -2000) continue;
    __int128 sum = 0;
    for (int i = 0; i <= m.group; i++) {
      double scaled = std::ldexp(terms[i], m.kept - largest);
      sum += static_cast<__int128>(m.floor ? std::floor(scaled) : std::trunc(scaled));
    }
    // At most 33 bits or so: a double holds the sum exactly.
    double whole = std::ldexp(static_cast<double>(static_cast<long long>(sum)), largest - m.kept);
    float near = static_cast<float>(whole);
    if (!m.nearest && std::fabs(static_cast<double>(near)) > std::fabs(whole)) near = std::nextafterf(near, 0.0f);
    acc = near;
  }
  return static_cast<float>(acc);
}

// Numbers too small for the type's own exponents: is a subnormal's exponent its own or the type's smallest?
template <class T>
void subnormals(Json& json, const std::string& type, int smallest) {
  const int count = 512, depth = 16;
  std::vector<T> a(count * 16 * depth), b(count * 8 * depth);
  std::vector<float> c(count * 128);
  for (auto& x : a) x = static_cast<T>(std::ldexp(static_cast<float>(draw<T>(2)), smallest - 2 - static_cast<int>(rng() % 4)));
  for (auto& x : b) x = draw<T>(3);
  for (auto& x : c) x = rng() % 2 ? 0.0f : std::ldexp(draw_c(1), smallest - 2);
  std::vector<float> d = tiles(a, b, c, depth);
  for (bool clamped : {false, true}) {
    long wrong = 0;
    for (int t = 0; t < count; t++)
      for (int i = t % 7; i < 128; i += 7) {
        double x[16], y[16];
        for (int k = 0; k < depth; k++) {
          x[k] = static_cast<float>(a[(t * 16 + i / 8) * depth + k]);
          y[k] = static_cast<float>(b[(t * 8 + i % 8) * depth + k]);
        }
        Model m = {16, 25, false, false, false};
        wrong += bits(dot(m, x, y, c[t * 128 + i], depth, clamped ? smallest : -2000)) != bits(d[t * 128 + i]);
      }
    json.add(type + " subnormals: wrong with " + (clamped ? "the type's smallest exponent" : "an exponent of their own"), wrong);
  }
}

template <class T>
void arithmetic(Json& json, const std::string& type) {
  const int count = 512, depth = 16;
  std::vector<T> a(count * 16 * depth), b(count * 8 * depth);
  std::vector<float> c(count * 128);
  for (int t = 0; t < count; t++) {
    int spread = 1 + t % 8;
    for (int i = 0; i < 16 * depth; i++) a[t * 16 * depth + i] = draw<T>(std::min(spread, 5));
    for (int i = 0; i < 8 * depth; i++) b[t * 8 * depth + i] = draw<T>(std::min(spread, 5));
    for (int i = 0; i < 128; i++) c[t * 128 + i] = draw_c(spread);
  }
  std::vector<float> d = tiles(a, b, c, depth);
  auto each = [&](auto f) {
    double x[16], y[16];
    for (int t = 0; t < count; t++)
      for (int i = t % 7; i < 128; i += 7) {
        for (int k = 0; k < depth; k++) {
          x[k] = static_cast<float>(a[(t * 16 + i / 8) * depth + k]);
          y[k] = static_cast<float>(b[(t * 8 + i % 8) * depth + k]);
        }
        f(t, i, x, y);
      }
  };
  long best = 1L << 40, total = 0;
  std::string names;
  for (int group : {4, 8, 16})
    for (int kept : {23, 24, 25, 26, 27, 28})
      for (int flags = 0; flags < 8; flags++) {
        Model m = {group, kept, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0};
        long wrong = 0;
        total = 0;
        each([&](int t, int i, const double* x, const double* y) {
          wrong += bits(dot(m, x, y, c[t * 128 + i], depth)) != bits(d[t * 128 + i]);
          total++;
        });
        char name[200];
        std::snprintf(name, sizeof name, "%ld of %ld wrong: groups of %d, %d bits, %s exponents, %s, cut %s", wrong, total,
                      group, kept, m.normalised ? "products'" : "factors'", m.nearest ? "nearest" : "towards zero",
                      m.floor ? "down" : "towards zero");
        if (wrong < best) best = wrong, names.clear();
        if (wrong == best) names += (names.empty() ? "\"" : ", \"") + std::string(name) + "\"";
      }
  json.add(type + ": models of the sum nearest to the chip", "[" + names + "]");
  std::string dots;
  int written = 0;
  each([&](int t, int i, const double*, const double*) {
    if (i % 5 || written++ >= 1500) return;
    char word[16];
    dots += dots.empty() ? "[\n  \"" : "\",\n  \"";
    for (int k = 0; k < depth; k++) std::snprintf(word, 16, "%04x ", bits16(a[(t * 16 + i / 8) * depth + k])), dots += word;
    for (int k = 0; k < depth; k++) std::snprintf(word, 16, "%04x ", bits16(b[(t * 8 + i % 8) * depth + k])), dots += word;
    std::snprintf(word, 16, "%08x ", bits(c[t * 128 + i])), dots += word;
    std::snprintf(word, 16, "%08x", bits(d[t * 128 + i])), dots += word;
  });
  json.text += ",\n \"" + type + " dots\": " + dots + "\"]";
}

void rate(Json& json) {
  cudaDeviceProp gpu;
  CHECK(cudaGetDeviceProperties(&gpu, 0));
  json.add("gpu", "\"" + std::string(gpu.name) + "\"");
  float* out;
  CHECK(cudaMalloc(&out, 4));
  cudaEvent_t start, end;
  cudaEventCreate(&start), cudaEventCreate(&end);
  const int blocks = gpu.multiProcessorCount * 2, rounds = 4000;
  float ms = 0;
  for (int i = 0; i < 4; i++) {  // the last one counts
    cudaEventRecord(start);
    rate_kernel<<<blocks, 256>>>(out, rounds, 0x3f803f80);
    cudaEventRecord(end);
    CHECK(cudaEventSynchronize(end));
    cudaEventElapsedTime(&ms, start, end);
  }
  double flops = 2.0 * 16 * 8 * 16 * 8 * rounds * 8 * blocks;  // per mma; 8 chains, 8 warps a block
  json.add("mma.sync m16n8k16 bf16 from registers, TFLOP/s", flops / ms / 1e9);
}

void write(const Json& json, const std::string& out) {
  FILE* file = std::fopen((out + "/tensor_cores.json").c_str(), "w");
  if (!file) std::fprintf(stderr, "%s cannot be written\n", out.c_str()), std::exit(1);
  std::fprintf(file, "%s\n}\n", json.text.c_str());
  std::fclose(file);
}

int main(int argc, char** argv) {
  std::string out = argc > 1 ? argv[1] : ".";
  Json json;
  rate(json);
  positions<__nv_bfloat16>(json, "bf16");
  positions<__half>(json, "f16");
  arithmetic<__nv_bfloat16>(json, "bf16");
  arithmetic<__half>(json, "f16");
  subnormals<__nv_bfloat16>(json, "bf16", -126);
  subnormals<__half>(json, "f16", -14);
  write(json, out);  // what follows has no twin anywhere: if it fails, the rest is kept
  compare_wgmma<8>(json);
  compare_wgmma<32>(json);
  compare_wgmma<64>(json);
  compare_wgmma<128>(json);
  write(json, out);
}
