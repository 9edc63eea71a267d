// Lab 7: tiled attention in CUDA.
//
// Write the code between each pair of `// begin` and `// end`. The rest is given; a change of it has no effect.
// Functions of your own go between `// begin helpers` and `// end helpers`.
// The file is CUDA: the simulator runs it (minillm labs check 7), and nvcc compiles the same source.
//
//     one head      keys, 32 at a time           shared memory
//                 +----+----+----+               q_tile    32 rows of q, head size 32
//     32 rows     |    |    | \  |  -> out       kv_tile   a tile of K, then of V
//     of a block  +----+----+----+               weights   the rows' weights of the tile's keys
//
// Four threads share a row. Thread `part` of a row scores the keys part, part + 4, ..., part + 28 of a tile
// and sums the columns part, part + 4, ..., part + 28 of the output.

#include "dialect.h"

#define NOT_WRITTEN()

constexpr int kTile = 32;               // rows of a block, and keys of a tile
constexpr int kDim = 32;                // head size
constexpr int kParts = 4;               // threads that share a row
constexpr int kEach = kTile / kParts;   // keys, and columns, of one thread
constexpr int kThreads = kTile * kParts;
constexpr int kWords = 1280;            // of a tile in shared memory: 1024 numbers, and room for a layout

// ---- 7.6 --------------------------------------------------------------------------------------

// The layout of a tile: the number at (row, column) is word `word(row, column)` of its array, 0 .. kWords - 1, and
// no two numbers share a word. Word w lies in bank w % 32. Lanes that read different words of one bank wait for
// each other. Two accesses must need no waiting: a warp reads the 32 columns of a row, and a warp reads one column
// of the rows 8 i .. 8 i + 7. Do this section last: the checks of 7.1 to 7.5 use a layout of the lab, 7.7 uses yours.
__device__ __forceinline__ int word(int row, int column) {
  // begin 7.6
  NOT_WRITTEN();  // stuck? minillm labs hint 7.6
  // end 7.6
}

// A tile of 32 x 32 numbers. Use it as tile[row][column]. Do not rely on the layout behind it.
struct Tile {
  template <class T>
  struct Row {
    T* words;
    int row;
    __device__ __forceinline__ T& operator[](int column) const { return words[word(row, column)]; }
  };
  __device__ __forceinline__ Row<float> operator[](int row) { return {words, row}; }
  __device__ __forceinline__ Row<const float> operator[](int row) const { return {words, row}; }
  float words[kWords];
};

// The state of a row's softmax: the largest score so far, and the sum of exp(score - max).
struct Softmax {
  float max, sum;
};

// begin helpers
// end helpers

// ---- 7.1 --------------------------------------------------------------------------------------

// Load rows `first` .. `first + 31` of a matrix [n, kDim] from global into shared memory. Rows past the end
// become zero, whatever the tile held before; they are not read. All kThreads threads call it together, and the
// threads of a warp read neighbouring addresses, so that each sector of 32 bytes is fetched once. No barrier here:
// the caller waits before the tile is read.
__device__ __forceinline__ void load_tile(Tile& tile, const float* from, int first, int n) {
  // begin 7.1
  NOT_WRITTEN();  // stuck? minillm labs hint 7.1
  // end 7.1
}

// ---- 7.2 --------------------------------------------------------------------------------------

// scores[j] = scale * (row of q . key part + 4 j of the tile), or -INFINITY if the key comes after the
// row. A row sees its own key. `row` and the keys are counted in their tiles, which begin at first_row and
// first_key. All eight scores are written. Compute only these eight: the other keys belong to other threads.
__device__ __forceinline__ void score_keys(float (&scores)[kEach], const Tile& q, const Tile& keys, int row, int part,
                                           int first_row, int first_key, float scale) {
  // begin 7.2
  NOT_WRITTEN();  // stuck? minillm labs hint 7.2
  // end 7.2
}

// ---- 7.3 --------------------------------------------------------------------------------------

// Add a tile's scores to the row's softmax: raise s.max to the largest of the *row's* 32 scores if that is
// larger, replace scores[j] by exp(scores[j] - s.max), and update s.sum. The four threads of a row are
// neighbouring lanes. Each has 8 of the scores, and all must end with the same s. Returns the factor for
// everything that was summed before: exp(old max - new max), 0 in the first tile, where s.max is -INFINITY.
// A row's first tile has a visible key; in later tiles all its scores may be -INFINITY. Four shuffles are
// needed; more than eight are too many. No barrier.
__device__ __forceinline__ float take_scores(Softmax& s, float (&scores)[kEach]) {
  // begin 7.3
  NOT_WRITTEN();  // stuck? minillm labs hint 7.3
  // end 7.3
}

// ---- 7.4 --------------------------------------------------------------------------------------

// out[i] is column part + 4 i of the row's output. Multiply it by `factor`, once for the tile, then add the tile's
// values, each times the weight of its key: weights[row][key] and values[key][column].
__device__ __forceinline__ void add_values(float (&out)[kEach], float factor, const Tile& weights, const Tile& values,
                                           int row, int part) {
  // begin 7.4
  NOT_WRITTEN();  // stuck? minillm labs hint 7.4
  // end 7.4
}

// ---- 7.5 --------------------------------------------------------------------------------------

// Causal attention of one head: q, k, v, out [heads, n, kDim]. Block (x, y): rows 32 x .. 32 x + 31 of head y.
// Load q. Then, for each tile of keys that a row of the block can see, and for no other: load K, score, take the
// scores, write the weights to shared memory, overwrite K with V, add the values. Then write out / s.sum for the
// rows that exist. q is read from global memory once, K and V once for each tile. All threads of the block must
// reach every barrier, also those whose row is past the end. Four barriers a tile are enough; more than six are
// too many.
__global__ void __launch_bounds__(kThreads) attention(const float* q, const float* k, const float* v, float* out, int n,
                                                      float scale) {
  SHARED(Tile, q_tile, );  // __shared__ Tile q_tile;
  SHARED(Tile, kv_tile, );
  SHARED(Tile, weights, );
  int first_row = blockIdx.x * kTile, head = blockIdx.y * n * kDim;  // where the block's rows and its head begin
  int row = threadIdx.x / kParts, part = threadIdx.x % kParts;
  Softmax s = {-INFINITY, 0.0f};
  float sums[kEach] = {}, scores[kEach];
  // begin 7.5
  NOT_WRITTEN();  // stuck? minillm labs hint 7.5
  // end 7.5
}

extern "C" void run_attention(const float* q, const float* k, const float* v, float* out, int heads, int n, float scale) {
  LAUNCH(attention, dim3((n + kTile - 1) / kTile, heads), kThreads, 0, 0, q, k, v, out, n, scale);
}
