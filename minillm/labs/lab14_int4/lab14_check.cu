// Kernels around single functions, for the checks. Those of task N follow the line `// check N`.

// check 14.1
__global__ void check_pack(Chunk* chunk, const float* w, int output, int count) {
  if (threadIdx.x == 0) pack_group(*chunk, output, w, count);
}

extern "C" void run_pack_group(Chunk* chunk, const float* w, int output, int count) {
  LAUNCH(check_pack, 1, 32, 0, 0, chunk, w, output, count);
}

// check 14.2
// line [16], codes [8, 16]: -1 where nothing is written.
__global__ void check_unpack(const uint32_t* line, float* codes) {
  if (threadIdx.x) return;
  float found[kCodes][kSide];
  for (int i = 0; i < kCodes * kSide; i++) found[i / kSide][i % kSide] = -1;
  unpack_line(found, *reinterpret_cast<const uint32_t(*)[kSide]>(line));
  for (int i = 0; i < kCodes * kSide; i++) codes[i] = found[i / kSide][i % kSide];
}

extern "C" void run_unpack(const uint32_t* line, float* codes) { LAUNCH(check_unpack, 1, 32, 0, 0, line, codes); }

// check 14.3
__global__ void check_dot(const Chunk* chunk, const float* x, float* sums, int count) {
  if (threadIdx.x) return;
  float found[kSide];
  for (float& sum : found) sum = 1000;
  dot_group(found, *chunk, x, count);
  for (int i = 0; i < kSide; i++) sums[i] = found[i];
}

extern "C" void run_dot(const Chunk* chunk, const float* x, float* sums, int count) {
  LAUNCH(check_dot, 1, 32, 0, 0, chunk, x, sums, count);
}

// check 14.4
// y [16] holds numbers before.
__global__ void check_add(const Chunk* chunk, const float* sums, const float* x, float* y, int count) {
  if (threadIdx.x) return;
  float found[kSide], given[kSide];
  for (int i = 0; i < kSide; i++) found[i] = y[i], given[i] = sums[i];
  add_group(found, *chunk, given, x, count);
  for (int i = 0; i < kSide; i++) y[i] = found[i];
}

extern "C" void run_add(const Chunk* chunk, const float* sums, const float* x, float* y, int count) {
  LAUNCH(check_add, 1, 32, 0, 0, chunk, sums, x, y, count);
}

// check 14.5
// y [rows, 16]
__global__ void check_rows(const Chunk* chunks, const float* x, float* y, int rows, int in) {
  if (threadIdx.x) return;
  float found[kRows][kSide];
  for (int i = 0; i < kRows * kSide; i++) found[i / kSide][i % kSide] = 1000;
  multiply_rows(found, chunks, x, rows, in);
  for (int i = 0; i < rows * kSide; i++) y[i] = found[i / kSide][i % kSide];
}

extern "C" void run_rows(const Chunk* chunks, const float* x, float* y, int rows, int in) {
  LAUNCH(check_rows, 1, 32, 0, 0, chunks, x, y, rows, in);
}

// check 14.6
// run_matmul of lab14.cu

// check 14.7
// Warp w adds chunk w. x [kRows, 64]; before it sums[r] of thread t is t + r; after it `sums` [kThreads, kRows] has the
// result of both halves, `alone` that of each lane.
__global__ void check_chunk(const Chunk* chunks, const float* x, float* sums, float* alone) {
  SHARED(float, x_group, [kRows][kGroup]);
  for (int i = threadIdx.x; i < kRows * kGroup; i += kThreads) x_group[i / kGroup][i % kGroup] = x[i];
  __syncthreads();
  float mine[kRows];
  for (int r = 0; r < kRows; r++) mine[r] = static_cast<float>(threadIdx.x + r);
  multiply_chunk(mine, chunks[threadIdx.x / 32], x_group);
  for (int r = 0; r < kRows; r++) {
    alone[threadIdx.x * kRows + r] = mine[r];
    sums[threadIdx.x * kRows + r] = mine[r] + __shfl_xor_sync(0xffffffff, mine[r], 16);
  }
}

extern "C" void run_chunk(const Chunk* chunks, const float* x, float* sums, float* alone) {
  LAUNCH(check_chunk, 1, kThreads, 0, 0, chunks, x, sums, alone);
}
