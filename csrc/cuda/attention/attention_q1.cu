// Attention over keys and values in 8 bits, rung 1: v2 with tiles of codes (kv_codes.h), for a prompt and for decode.
//
//     a block: 32 or 8 rows of one kv head       row = (token, query head of the group), token after token
//
//                 keys, 32 at a time             global memory     a word of 4 codes for each thread and load; one scale
//               +----+----+----+----+                              for each key
//     rows      |    |    |    |    | --> out    shared memory     q and the tile's numbers without scales, float32: K,
//               +----+----+----+----+                              then V in its place
//               4 or 16 threads share a row: each computes the scores of some of the tile's keys, then some columns
//
//     score = (q . codes) * scale of the key * scale             a scale is applied once for a key, not once for a number
//     out  += (weight * scale of the value) * codes
//
// A code becomes a number once a block, when it is written to shared memory; both tiles' codes are on their way while K
// is unpacked and multiplied. All query heads of a group share the tile: with 8 rows a decode step reads K and V once
// for groups of up to 8 heads. Nothing but these codes is read, and no number is written.
//
// Contract C2: each score and each column is one sum, over dims and over keys from first to last, and the tiles begin at
// absolute positions. So 32 rows or 8, alone or in company: the bits are the same. A key that a row does not see adds
// nothing, even if its scale is NaN.
//
// Bytes: 2 * (head_dim + 4) for a key and its value, once for each block that needs them; half of what bfloat16 takes.
// FLOPs: 4 * head_dim per visible (row, key). Limit: with many rows shared memory, as v2; in decode the latency of
// instructions, as 8 rows keep few threads busy. Left out: tensor cores, keys split over blocks, the next tile's loads
// before this one's sums.
// Sources: as attention_v2; values with a scale for each token: Liu et al., KIVI (arXiv 2402.02750).

#include "kv_codes.h"
#include "paging.h"
#include "query_tiles.h"

namespace minillm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kFewRows = 8, kManyRows = 32;  // of a block. Heads of 256 always have few: 32 would not fit

// Each row is padded by one word, as in v2.
template <int kDim>
constexpr int kPitch = kDim + 1;

// Codes that a thread has loaded of a tile; the words of a key lie in threads side by side.
template <int kDim>
struct TileCodes {
  static constexpr int kLoads = kKeyTile * kDim / kWordCodes / kThreads, kPerKey = kDim / kWordCodes;
  uint32_t words[kLoads];

  // `rows` are the bytes before each key's row; negative: there is no such key, its slot may hold anything.
  __device__ __forceinline__ void load(const void* cache, const int64_t* rows) {
    UNROLL
    for (int i = 0; i < kLoads; i++) {
      int at = i * kThreads + threadIdx.x;
      int64_t row = rows[at / kPerKey];
      words[i] = 0;
      if (row >= 0) words[i] = load_wide<uint32_t>(static_cast<const char*>(cache) + row + at % kPerKey * kWordCodes);
    }
  }

  __device__ __forceinline__ void unpack(KvCodes codes, float (&tile)[kKeyTile][kPitch<kDim>]) const {
    UNROLL
    for (int i = 0; i < kLoads; i++) {
      int at = i * kThreads + threadIdx.x;
      UNROLL
      for (int j = 0; j < kWordCodes; j++)
        tile[at / kPerKey][at % kPerKey * kWordCodes + j] = number_in(codes, words[i], j);
    }
  }
};

template <class T, int kDim, int kRows>
__global__ void __launch_bounds__(kThreads) attention_q1_kernel(const __grid_constant__ AttentionArgs p) {
  constexpr int kPerRow = kThreads / kRows, kKeys = kKeyTile / kPerRow, kColumns = kDim / kPerRow;
  SHARED(float, q, [kRows][kPitch<kDim>]);
  SHARED(float, kv, [kKeyTile][kPitch<kDim>]);
  SHARED(float, weights, [kRows][kKeyTile + 1]);
  SHARED(float, scaled, [kRows][kKeyTile + 1]);  // weights times the scales of the values
  SHARED(float, k_scales, [kKeyTile]);
  SHARED(float, v_scales, [kKeyTile]);
  SHARED(int64_t, cached, [kKeyTile]);

  int group = p.num_heads / p.num_kv_heads, kv_head = blockIdx.y;
  RowTile tile = find_tile<kRows>(p.sequences, group);
  if (tile.sequence < 0) return;  // the whole block returns: no thread waits at a barrier below
  int64_t start = p.sequences.query_start[tile.sequence];
  int q_len = p.sequences.query_start[tile.sequence + 1] - static_cast<int>(start);
  int kv_len = p.sequences.kv_len[tile.sequence], rows = min(kRows, q_len * group - tile.first_row);
  int row = threadIdx.x / kPerRow, part = threadIdx.x % kPerRow;
  auto token_of = [&](int r) { return (tile.first_row + r) / group; };  // in the sequence
  auto head_of = [&](int r) { return kv_head * group + (tile.first_row + r) % group; };

  for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
    int r = i / kDim;
    q[r][i % kDim] = 0;
    if (r < rows)
      q[r][i % kDim] = to_float(static_cast<const T*>(p.q)[(start + token_of(r)) * p.q_stride + head_of(r) * kDim + i % kDim]);
  }

  // Threads without a row follow the last row of the tile: they must reach every barrier.
  int own = min(row, rows - 1);
  KeyRange keys = visible_keys(token_of(own), q_len, kv_len, p.window);
  int first_tile = visible_keys(token_of(0), q_len, kv_len, p.window).first / kKeyTile;
  int last_tile = visible_keys(token_of(rows - 1), q_len, kv_len, p.window).last / kKeyTile;
  const KvPage page = {p.num_kv_heads, p.block_size, kDim};

  Softmax softmax = first_state<T, true>(p, head_of(own));
  float out[kColumns] = {};  // of columns part, part + kPerRow, ...
  for (int key_tile = first_tile; key_tile <= last_tile; key_tile++) {
    int tile_start = key_tile * kKeyTile;
    if (threadIdx.x < kKeyTile) {
      int key = tile_start + threadIdx.x;
      cached[threadIdx.x] = -1, k_scales[threadIdx.x] = v_scales[threadIdx.x] = 0;
      if (key < kv_len) {
        int64_t slot = slot_of(p.sequences, tile.sequence, key, p.block_size);
        int64_t head = page.head(slot / p.block_size, kv_head), inside = slot % p.block_size;
        cached[threadIdx.x] = head + page.row(inside);
        k_scales[threadIdx.x] = load_wide<float>(static_cast<const char*>(p.k_cache) + head + page.scale(inside));
        v_scales[threadIdx.x] = load_wide<float>(static_cast<const char*>(p.v_cache) + head + page.scale(inside));
      }
    }
    __syncthreads();  // keys are found, and the previous tile's V has been read
    TileCodes<kDim> k, v;
    k.load(p.k_cache, cached);
    v.load(p.v_cache, cached);
    k.unpack(p.codes, kv);
    __syncthreads();

    float scores[kKeys] = {};
    if (row < rows)
      for (int d = 0; d < kDim; d++) {
        float x = q[row][d];
        UNROLL
        for (int j = 0; j < kKeys; j++) scores[j] = fmaf(x, kv[part + j * kPerRow][d], scores[j]);
      }
    __syncthreads();  // K has been read; V takes its place
    v.unpack(p.codes, kv);

    // The row's visible keys in this tile: [from, end), relative to the tile.
    int from = max(keys.first - tile_start, 0), end = min(keys.last + 1 - tile_start, kKeyTile);
    float tile_max = -INFINITY;
    UNROLL
    for (int j = 0; j < kKeys; j++) {
      int key = part + j * kPerRow;
      scores[j] = cap_score(scores[j] * k_scales[key] * p.scale, p.softcap);
      if (key >= from && key < end) tile_max = fmaxf(tile_max, scores[j]);
    }
    for (int step = 1; step < kPerRow; step *= 2) tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, step));
    float factor = 1.0f;
    if (from < end) factor = raise_max(softmax, tile_max);
    UNROLL
    for (int j = 0; j < kKeys; j++) {
      int key = part + j * kPerRow;
      float weight = expf(scores[j] - softmax.max);
      weights[row][key] = weight, scaled[row][key] = weight * v_scales[key];
    }
    __syncthreads();

    if (from >= end || row >= rows) continue;  // this row sees no key of this tile: its sums stay as they are
    UNROLL
    for (int i = 0; i < kColumns; i++) out[i] *= factor;
    for (int key = from; key < end; key++) {
      float weight = scaled[row][key];
      softmax.sum += weights[row][key];
      UNROLL
      for (int i = 0; i < kColumns; i++) out[i] = fmaf(weight, kv[key][part + i * kPerRow], out[i]);
    }
  }
  if (row >= rows) return;
  T* to = static_cast<T*>(p.out) + ((start + token_of(row)) * p.num_heads + head_of(row)) * kDim;
  UNROLL
  for (int i = 0; i < kColumns; i++) to[part + i * kPerRow] = from_float<T>(finished(out[i], softmax, keys));
}

template <class T, int kDim, int kRows>
void launch(const AttentionArgs& p, Stream stream) {
  LAUNCH((attention_q1_kernel<T, kDim, kRows>), tile_grid<kRows>(p), kThreads, 0, stream_of(stream), p);
}

}  // namespace

void attention_q1(const AttentionArgs& p, Stream stream) {
  if (p.sequences.num_tokens == 0) return;
  int64_t rows = int64_t{1} * p.sequences.num_tokens * (p.num_heads / p.num_kv_heads);
  bool few = rows <= int64_t{kFewRows} * p.sequences.num_seqs;
  with_number_type(p.dtype, [&](auto zero) {
    with_head_dim(p.head_dim, [&](auto dim) {
      using T = decltype(zero);
      constexpr int kDim = decltype(dim)::value;
      if (few || kDim > 128)
        launch<T, kDim, kFewRows>(p, stream);
      else if constexpr (kDim <= 128)
        launch<T, kDim, kManyRows>(p, stream);
    });
  });
}

}  // namespace minillm::cuda
