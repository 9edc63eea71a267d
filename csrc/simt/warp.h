// Warp operations: the 32 lanes of a warp exchange registers. Each lane leaves its operand; the last lane to arrive
// computes the results of all.
//
//     __shfl_xor_sync(mask, x, 1)     lane  0 1 2 3 4 ..  gets x of lane  1 0 3 2 5 ..
//     __shfl_down_sync(mask, x, 1)    lane  0 1 2 3 4 ..  gets x of lane  1 2 3 4 5 ..   (the last lane: its own)
//     __shfl_up_sync(mask, x, 1)      lane  0 1 2 3 4 ..  gets x of lane  0 0 1 2 3 ..   (the first lane: its own)
//     __shfl_sync(mask, x, 3)         lane  0 1 2 3 4 ..  gets x of lane  3 3 3 3 3 ..
//
// With `width` 16, 8, 4, 2 or 1 the warp is divided into segments of so many lanes. PTX ISA: shfl.sync.

#pragma once

inline void __syncwarp(unsigned mask = ~0u, simt::Where where = simt::Where::current()) {
  simt::require_full_mask(mask, where);
  simt::warp_operation("__syncwarp", nullptr, [](void* const*) {}, where);
}

namespace simt {

template <class T>
struct Shuffle {
  T in, out;
  int lane;   // the source lane, or the distance, or the mask of __shfl_xor_sync
  int width;  // lanes of a segment
};

// The lane that `lane` reads from. A lane outside the segment is not read; the lane then reads itself.
inline int shuffle_down(int lane, int distance, int width) { return lane % width + distance < width ? lane + distance : lane; }
inline int shuffle_up(int lane, int distance, int width) { return lane % width >= distance ? lane - distance : lane; }
// Lanes of earlier segments may be read, of later ones not.
inline int shuffle_xor(int lane, int mask, int width) { return (lane ^ mask) < lane / width * width + width ? lane ^ mask : lane; }
inline int shuffle_from(int lane, int source, int width) { return lane / width * width + source % width; }

template <int (*source)(int, int, int), class T>
T shuffle(const char* name, unsigned mask, T value, int lane, int width, Where where) {
  static_assert(std::is_arithmetic_v<T>, "a shuffle exchanges one number");
  require_full_mask(mask, where);
  require_width(width, where);
  Shuffle<T> mine{value, value, lane & 31, width};
  warp_operation(name, &mine, [](void* const* operands) {
    Shuffle<T>* const* lanes = reinterpret_cast<Shuffle<T>* const*>(operands);
    for (int i = 0; i < 32; i++) lanes[i]->out = lanes[source(i, lanes[i]->lane, lanes[i]->width)]->in;
  }, where);
  return mine.out;
}

}  // namespace simt

#define SHUFFLE(name, source)                                                                                      \
  template <class T>                                                                                               \
  T name(unsigned mask, T value, int lane, int width = 32, simt::Where where = simt::Where::current()) {          \
    return simt::shuffle<simt::source>(#name, mask, value, lane, width, where);                                    \
  }
SHUFFLE(__shfl_sync, shuffle_from)
SHUFFLE(__shfl_xor_sync, shuffle_xor)
SHUFFLE(__shfl_down_sync, shuffle_down)
SHUFFLE(__shfl_up_sync, shuffle_up)
#undef SHUFFLE
