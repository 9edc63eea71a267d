// Kernels around single functions, for the checks. Those of task N follow the line `// check N`.

__device__ void fill(bfloat16* to, const bfloat16* from, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

// -1 in every number of the lane: a number that is not loaded shows.
__device__ Fragments unwritten() {
  Fragments f;
  for (bfloat16& number : f.a.v) number = from_float<bfloat16>(-1.0f);
  for (bfloat16& number : f.b.v) number = from_float<bfloat16>(-1.0f);
  return f;
}

// a [threads, 8], b [threads, 4]
__device__ void store_fragments(float* a, float* b, const Fragments& f) {
  for (int i = 0; i < 8; i++) a[threadIdx.x * 8 + i] = to_float(f.a.v[i]);
  for (int i = 0; i < 4; i++) b[threadIdx.x * 4 + i] = to_float(f.b.v[i]);
}

// A [rows, 64] matrix to a stage, 16 bytes at a time.
__device__ void fill_stage(bfloat16* stage, const bfloat16* from, int rows) {
  for (int i = threadIdx.x; i < rows * kChunks; i += blockDim.x)
    store_wide(&stage[place(i / kChunks, i % kChunks)], load_wide<Vec<bfloat16, 8>>(&from[i * kWide]));
}

// check 10.1
// w, x [16, stride]; both warps load the fragments from `column` on. Behind the eight rows of x lie others.
__global__ void check_by_hand(const bfloat16* w, const bfloat16* x, float* a, float* b, int stride, int column) {
  SHARED(bfloat16, w_rows, [16 * 48]);
  SHARED(bfloat16, x_rows, [16 * 48]);
  fill(w_rows, w, 16 * stride);
  fill(x_rows, x, 16 * stride);
  __syncthreads();
  Fragments f = unwritten();
  load_by_hand(f, w_rows + column, x_rows + column, stride);
  store_fragments(a, b, f);
}

extern "C" void run_by_hand(const bfloat16* w, const bfloat16* x, float* a, float* b, int stride, int column) {
  LAUNCH(check_by_hand, 1, kThreads, 0, 0, w, x, a, b, stride, column);
}

// check 10.2
__global__ void check_tile(const bfloat16* w, const bfloat16* x, float* y, int stride, int columns) {
  SHARED(bfloat16, w_rows, [16 * 136]);
  SHARED(bfloat16, x_rows, [8 * 136]);
  fill(w_rows, w, 16 * stride);
  fill(x_rows, x, 8 * stride);
  __syncthreads();
  multiply_tile(y, w_rows, x_rows, stride, columns);
}

extern "C" void run_tile(const bfloat16* w, const bfloat16* x, float* y, int stride, int columns) {
  LAUNCH(check_tile, 1, 32, 0, 0, w, x, y, stride, columns);
}

// check 10.3
// w [32, 64], x [8, 64]; each warp loads its own rows of w, as in 10.6.
__global__ void check_fragments(const bfloat16* w, const bfloat16* x, float* a, float* b, int step) {
  SHARED(bfloat16, w_stage, [kOut * kRoom]);
  SHARED(bfloat16, x_stage, [kTokens * kRoom]);
  fill_stage(w_stage, w, kOut);
  fill_stage(x_stage, x, kTokens);
  __syncthreads();
  Fragments f = unwritten();
  load_fragments(f, w_stage, x_stage, threadIdx.x / 32 * 16, step);
  store_fragments(a, b, f);
}

extern "C" void run_fragments(const bfloat16* w, const bfloat16* x, float* a, float* b, int step) {
  LAUNCH(check_fragments, 1, kThreads, 0, 0, w, x, a, b, step);
}

// check 10.4
// A stage written by rows and read back in the same way: from, to [kRows, 64].
template <int kRows>
__device__ void there_and_back(const bfloat16* from, bfloat16* to) {
  SHARED(bfloat16, stage, [kRows * kRoom]);
  fill_stage(stage, from, kRows);
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kChunks; i += blockDim.x)
    store_wide(&to[i * kWide], load_wide<Vec<bfloat16, 8>>(&stage[place(i / kChunks, i % kChunks)]));
}

__global__ void check_few(const bfloat16* from, bfloat16* to) { there_and_back<kTokens>(from, to); }

__global__ void check_rows(const bfloat16* from, bfloat16* to) { there_and_back<kOut>(from, to); }

// The same stage read with ldmatrix: a lane's numbers of each chunk of all 32 rows, to [8 chunks, 32 lanes, 8].
__global__ void check_matrices(const bfloat16* from, bfloat16* to) {
  SHARED(bfloat16, stage, [kOut * kRoom]);
  fill_stage(stage, from, kOut);
  __syncthreads();
  for (int chunk = 0; chunk < kChunks; chunk++) {
    Vec<bfloat16, 8> numbers;
    load_matrices<4>(numbers.v, &stage[place(threadIdx.x, chunk)]);
    for (int i = 0; i < 8; i++) to[(chunk * 32 + threadIdx.x) * 8 + i] = numbers.v[i];
  }
}

extern "C" void run_place(const bfloat16* from, bfloat16* few, bfloat16* rows, bfloat16* matrices) {
  LAUNCH(check_few, 1, 32, 0, 0, from, few);
  LAUNCH(check_rows, 1, 32, 0, 0, from, rows);
  LAUNCH(check_matrices, 1, 32, 0, 0, from, matrices);
}

// check 10.5
// The stage [kRows, 64] after it held fives, and then the copies at each of `columns_at`. Without `is_waited` nothing
// waits for them.
template <int kRows>
__device__ void check_copies(const bfloat16* from, bfloat16* to, const int* columns_at, int copies, int first, int rows,
                             int columns, int is_waited) {
  SHARED(bfloat16, stage, [kRows * kRoom]);
  for (int i = threadIdx.x; i < kRows * kRoom; i += kThreads) stage[i] = from_float<bfloat16>(5.0f);
  __syncthreads();
  for (int i = 0; i < copies; i++) {
    copy_rows<kRows>(stage, from, first, rows, columns, columns_at[i]);
    if (is_waited) commit_copies();
    wait_copies<0>();  // waits for what was committed
    __syncthreads();
  }
  for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads)
    to[i] = stage[place(i / kDepth, i % kDepth / kWide) + i % kWide];
}

__global__ void check_copy(const bfloat16* from, bfloat16* to, const int* columns_at, int copies, int first, int rows,
                           int columns, int is_waited, int is_few) {
  if (is_few)
    check_copies<kTokens>(from, to, columns_at, copies, first, rows, columns, is_waited);
  else
    check_copies<kOut>(from, to, columns_at, copies, first, rows, columns, is_waited);
}

extern "C" void run_copy(const bfloat16* from, bfloat16* to, const int* columns_at, int copies, int first, int rows,
                         int columns, int is_waited, int is_few) {
  LAUNCH(check_copy, 1, kThreads, 0, 0, from, to, columns_at, copies, first, rows, columns, is_waited, is_few);
}
