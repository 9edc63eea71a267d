// Kernels around single functions, for the checks. Those of task N follow the line `// check N`.

__device__ void store_tile(float* to, const Tile& tile) {
  for (int i = threadIdx.x; i < kTile * kDim; i += kThreads) to[i] = tile[i / kDim][i % kDim];
}

__device__ void fill_tile(Tile& tile, const float* from) {
  for (int i = threadIdx.x; i < kTile * kDim; i += kThreads) tile[i / kDim][i % kDim] = from[i];
}

// check 7.1
// The tile after it was loaded at first[0], then at first[1], ..
__global__ void check_load(const float* from, float* to, const int* first, int loads, int n) {
  SHARED(Tile, tile, );
  for (int i = 0; i < loads; i++) {
    load_tile(tile, from, first[i], n);
    __syncthreads();
  }
  store_tile(to, tile);
}

extern "C" void run_load(const float* from, float* to, const int* first, int loads, int n) {
  LAUNCH(check_load, 1, kThreads, 0, 0, from, to, first, loads, n);
}

// check 7.2
__global__ void check_scores(const float* q, const float* k, float* to, int first_row, int first_key, float scale) {
  SHARED(Tile, q_tile, );
  SHARED(Tile, k_tile, );
  fill_tile(q_tile, q);
  fill_tile(k_tile, k);
  __syncthreads();
  float scores[kEach] = {};
  int row = threadIdx.x / kParts, part = threadIdx.x % kParts;
  score_keys(scores, q_tile, k_tile, row, part, first_row, first_key, scale);
  for (int j = 0; j < kEach; j++) to[row * kTile + part + j * kParts] = scores[j];
}

extern "C" void run_scores(const float* q, const float* k, float* to, int first_row, int first_key, float scale) {
  LAUNCH(check_scores, 1, kThreads, 0, 0, q, k, to, first_row, first_key, scale);
}

// check 7.3
// scores [tiles, 32, 32] -> weights of the same shape; max, sum, factor of each tile and thread [tiles, 128, 3]
__global__ void check_softmax(const float* given, float* weights, float* state, int tiles) {
  Softmax s = {-INFINITY, 0.0f};
  for (int tile = 0; tile < tiles; tile++) {
    int row = threadIdx.x / kParts, part = threadIdx.x % kParts, at = (tile * kTile + row) * kTile + part;
    float scores[kEach];
    for (int j = 0; j < kEach; j++) scores[j] = given[at + j * kParts];
    float factor = take_scores(s, scores);
    for (int j = 0; j < kEach; j++) weights[at + j * kParts] = scores[j];
    float* mine = state + (tile * kThreads + threadIdx.x) * 3;
    mine[0] = s.max, mine[1] = s.sum, mine[2] = factor;
  }
}

extern "C" void run_softmax(const float* given, float* weights, float* state, int tiles) {
  LAUNCH(check_softmax, 1, kThreads, 0, 0, given, weights, state, tiles);
}

// check 7.4
__global__ void check_values(const float* given, const float* values, float* out, float factor) {
  SHARED(Tile, w_tile, );
  SHARED(Tile, v_tile, );
  fill_tile(w_tile, given);
  fill_tile(v_tile, values);
  __syncthreads();
  int row = threadIdx.x / kParts, part = threadIdx.x % kParts;
  float sums[kEach];
  for (int i = 0; i < kEach; i++) sums[i] = out[row * kDim + part + i * kParts];
  add_values(sums, factor, w_tile, v_tile, row, part);
  for (int i = 0; i < kEach; i++) out[row * kDim + part + i * kParts] = sums[i];
}

extern "C" void run_values(const float* given, const float* values, float* out, float factor) {
  LAUNCH(check_values, 1, kThreads, 0, 0, given, values, out, factor);
}

// check 7.6
// One warp writes a tile row by row and reads it back row by row.
__global__ void check_rows(float* to) {
  SHARED(Tile, tile, );
  for (int row = 0; row < kTile; row++) tile[row][threadIdx.x] = row * kDim + threadIdx.x;
  __syncwarp();
  for (int row = 0; row < kTile; row++) to[row * kDim + threadIdx.x] = tile[row][threadIdx.x];
}

// The same, but read back as the kernel does: eight rows of one column.
__global__ void check_columns(float* to) {
  SHARED(Tile, tile, );
  for (int row = 0; row < kTile; row++) tile[row][threadIdx.x] = row * kDim + threadIdx.x;
  __syncwarp();
  for (int first = 0; first < kTile; first += 8)
    for (int column = 0; column < kDim; column++) {
      int row = first + threadIdx.x / kParts;
      float found = tile[row][column];
      if (threadIdx.x % kParts == 0) to[row * kDim + column] = found;
    }
}

extern "C" void run_layout(float* rows, float* columns) {
  LAUNCH(check_rows, 1, 32, 0, 0, rows);
  LAUNCH(check_columns, 1, 32, 0, 0, columns);
}
