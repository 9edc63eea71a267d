// Launches at the limits of a chip; test_simt_limits.py says which are refused.

#include "dialect.h"

__global__ void mark(int* y) { y[0] = 1; }

__global__ void __launch_bounds__(1024) last_of_dynamic(int* y, int bytes) {
  DYNAMIC_SHARED(int, memory);
  memory[bytes / 4 - 1] = 1;
  y[0] = memory[bytes / 4 - 1];
}

__global__ void never_asks(int* y, int bytes) {
  DYNAMIC_SHARED(int, memory);
  memory[bytes / 4 - 1] = 1;
  y[0] = memory[bytes / 4 - 1];
}

// 40,000 bytes of arrays, declared after the dynamic memory.
__global__ void arrays_behind(int* y) {
  DYNAMIC_SHARED(int, memory);
  SHARED(int, first, [5000]);
  SHARED(int, second, [5000]);
  memory[threadIdx.x] = first[threadIdx.x] = second[threadIdx.x] = 1;
  y[0] = memory[threadIdx.x] + first[threadIdx.x] + second[threadIdx.x] - 2;
}

extern "C" {
void run_shape(int* y, int grid_x, int grid_y, int grid_z, int x, int y_, int z) {
  LAUNCH(mark, dim3(grid_x, grid_y, grid_z), dim3(x, y_, z), 0, 0, y);
}
void run_dynamic(int* y, int bytes) { LAUNCH(last_of_dynamic, 1, 32, bytes, 0, y, bytes); }
void run_without_asking(int* y, int bytes) { START(never_asks, 1, 32, bytes, 0, y, bytes); }
void run_asked_for_less(int* y, int bytes) {
  ALLOW_SHARED(never_asks, bytes - 4);
  START(never_asks, 1, 32, bytes, 0, y, bytes);
  ALLOW_SHARED(never_asks, 0);
}
void run_arrays_behind(int* y, int bytes) { LAUNCH(arrays_behind, 1, 32, bytes, 0, y); }
}
