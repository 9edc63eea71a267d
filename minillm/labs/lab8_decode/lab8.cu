// Lab 8: paged decode attention in CUDA.
//
// Write the code between each pair of `// begin` and `// end`. The rest is given; a change of it has no effect.
// Functions of your own go between `// begin helpers` and `// end helpers`.
// The file is CUDA: the simulator runs it (minillm labs check 8), and nvcc compiles the same source.
//
//     block (sequence, head)     128 keys at a time, one per thread; then one output column per thread
//
//     block_table  [ 5 | 2 | 7 ]                 key 9 of a sequence, pages of 4 slots:
//     cache        page 0 | page 1 | page 2 ...  entry 2 of its table -> page 7, slot 7 * 4 + 1

#include "dialect.h"

#define NOT_WRITTEN()

constexpr int kDim = 8;         // head size of the tiny model
constexpr int kThreads = 128;   // threads of a block: four warps
constexpr int kWarps = kThreads / 32;

// begin helpers
// end helpers

// ---- 8.1 --------------------------------------------------------------------------------------

// The slot of the cache that holds position `key` of the sequence with block table `table`: entry i of the table is
// the page of the positions i * block_size .. (i + 1) * block_size - 1, and page p has the slots p * block_size .. .
// block_size is any number from 1 on. Only the entry of `key` is read.
__device__ __forceinline__ int slot_of(const int* table, int key, int block_size) {
  // begin 8.1
  return table[key / block_size] * block_size + key % block_size;
  // end 8.1
}

// ---- 8.2 --------------------------------------------------------------------------------------

// q . key, both of kDim floats, summed in the order of d. The key is read from global memory once, 16 bytes at a
// time: as a float4 (x, y, z, w), or by load_wide<Vec<float, 4>>(p), which returns .v[0] .. .v[3]. Keys begin at
// multiples of 16 bytes.
__device__ __forceinline__ float dot(const float* q, const float* key) {
  // begin 8.2
  float sum = 0;
  for (int d = 0; d < kDim; d += 4) {
    Vec<float, 4> four = load_wide<Vec<float, 4>>(key + d);
    for (int j = 0; j < 4; j++) sum += q[d + j] * four.v[j];
  }
  return sum;
  // end 8.2
}

// ---- 8.3 --------------------------------------------------------------------------------------

// Returns the largest `value` of all threads of the block, to all of them. Values may be negative, or -INFINITY.
// `scratch` is shared memory for one number per warp. All threads call it. The next call may follow at once, with
// the same scratch. Two barriers and five shuffles are enough; more than three and ten are too many.
__device__ __forceinline__ float block_max(float value, float* scratch) {
  // begin 8.3
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < kWarps; warp++) value = fmaxf(value, scratch[warp]);
  return value;
  // end 8.3
}

// ---- 8.4 --------------------------------------------------------------------------------------

// One column of the output, and the sum of the weights. Multiply both by `factor`, once, then add `count` keys in
// order. The value of key i is values[offsets[i] + column], its weight is weights[i]. Each value is read once, and
// nothing past `count`.
__device__ __forceinline__ void add_values(float& out, float& sum, float factor, const float* weights,
                                           const float* values, const int* offsets, int count, int column) {
  // begin 8.4
  out *= factor;
  sum *= factor;
  for (int i = 0; i < count; i++) {
    sum += weights[i];
    out += weights[i] * values[offsets[i] + column];
  }
  // end 8.4
}

// ---- 8.5 --------------------------------------------------------------------------------------

// q, out [num_seqs, num_heads, kDim]; caches [num_blocks, block_size, num_kv_heads, kDim]; block_table [num_seqs,
// max_blocks]; kv_len [num_seqs]. Query head h reads kv head h / (num_heads / num_kv_heads). The row sees all
// keys of its sequence.
//
// Copy q to shared memory. Then for each 128 keys: thread t scores key first + t, if it exists (q . key * scale), and
// stores its offset in the cache in `offsets`; raise the maximum; write the weights exp(score - max) to shared memory;
// threads 0 .. kDim - 1 add the values. At the end they write out / sum. Slots that no sequence owns hold NaN:
// never read a key at or past kv_len. Each key, each value and the table's entry of each key is read from global
// memory once. All threads of the block reach every barrier. Four barriers a round are enough, those of block_max
// included; more than six are too many.
__global__ void __launch_bounds__(kThreads) decode(const float* q, const float* k_cache, const float* v_cache,
                                                   const int* block_table, const int* kv_len, float* out, int num_heads,
                                                   int num_kv_heads, int max_blocks, int block_size, float scale) {
  SHARED(float, q_row, [kDim]);
  SHARED(float, weights, [kThreads]);
  SHARED(int, offsets, [kThreads]);
  SHARED(float, scratch, [kWarps]);
  int sequence = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
  int row = (sequence * num_heads + head) * kDim, keys = kv_len[sequence];
  const int* table = block_table + sequence * max_blocks;
  float max_score = -INFINITY, sum = 0, column = 0;
  // begin 8.5
  int kv_head = head / (num_heads / num_kv_heads);
  if (thread < kDim) q_row[thread] = q[row + thread];
  for (int first = 0; first < keys; first += kThreads) {
    __syncthreads();
    int key = first + thread;
    float score = -INFINITY;
    if (key < keys) {
      offsets[thread] = (slot_of(table, key, block_size) * num_kv_heads + kv_head) * kDim;
      score = dot(q_row, k_cache + offsets[thread]) * scale;
    }
    float largest = fmaxf(max_score, block_max(score, scratch));
    float factor = expf(max_score - largest);
    max_score = largest;
    weights[thread] = expf(score - largest);
    __syncthreads();
    if (thread < kDim)
      add_values(column, sum, factor, weights, v_cache, offsets, min(kThreads, keys - first), thread);
  }
  if (thread < kDim) out[row + thread] = column / sum;
  // end 8.5
}

extern "C" void run_decode(const float* q, const float* k_cache, const float* v_cache, const int* block_table,
                           const int* kv_len, float* out, int num_seqs, int num_heads, int num_kv_heads, int max_blocks,
                           int block_size, float scale) {
  LAUNCH(decode, dim3(num_seqs, num_heads), kThreads, 0, 0, q, k_cache, v_cache, block_table, kv_len, out, num_heads,
         num_kv_heads, max_blocks, block_size, scale);
}
