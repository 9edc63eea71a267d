// Kernels around single functions, for the checks. Those of task N follow the line `// check N`.

// check 8.1
__global__ void check_slots(const int* table, int* slots, int keys, int block_size) {
  if (threadIdx.x < keys) slots[threadIdx.x] = slot_of(table, threadIdx.x, block_size);
}

extern "C" void run_slots(const int* table, int* slots, int keys, int block_size) {
  LAUNCH(check_slots, 1, kThreads, 0, 0, table, slots, keys, block_size);
}

// check 8.2
__global__ void check_dot(const float* q, const float* keys, float* sums) {
  sums[threadIdx.x] = dot(q, keys + threadIdx.x * kDim);
}

extern "C" void run_dot(const float* q, const float* keys, float* sums) {
  LAUNCH(check_dot, 1, kThreads, 0, 0, q, keys, sums);
}

// check 8.3
// values [rounds, 128] -> the maximum of each round, as every thread sees it
__global__ void check_max(const float* values, float* found, int rounds) {
  SHARED(float, scratch, [kWarps]);
  for (int i = threadIdx.x; i < rounds * kThreads; i += kThreads) found[i] = block_max(values[i], scratch);
}

extern "C" void run_max(const float* values, float* found, int rounds) {
  LAUNCH(check_max, 1, kThreads, 0, 0, values, found, rounds);
}

// check 8.4
__global__ void check_values(const float* weights, const float* values, const int* offsets, float* out, float* sums,
                             int count, float factor) {
  if (threadIdx.x >= kDim) return;
  float column = 1.0f + threadIdx.x, sum = 2.0f;
  add_values(column, sum, factor, weights, values, offsets, count, threadIdx.x);
  out[threadIdx.x] = column, sums[threadIdx.x] = sum;
}

extern "C" void run_values(const float* weights, const float* values, const int* offsets, float* out, float* sums,
                           int count, float factor) {
  LAUNCH(check_values, 1, kThreads, 0, 0, weights, values, offsets, out, sums, count, factor);
}
