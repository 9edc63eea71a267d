// Warp operations: the lanes of a warp that a mask names exchange registers. Each lane leaves its operand; the last lane
// to arrive computes the results of all. Bit i of the mask is lane i.
//
//     __shfl_xor_sync(mask, x, 1)     lane  0 1 2 3 4 ..  gets x of lane  1 0 3 2 5 ..
//     __shfl_down_sync(mask, x, 1)    lane  0 1 2 3 4 ..  gets x of lane  1 2 3 4 5 ..   (the last lane: its own)
//     __shfl_up_sync(mask, x, 1)      lane  0 1 2 3 4 ..  gets x of lane  0 0 1 2 3 ..   (the first lane: its own)
//     __shfl_sync(mask, x, 3)         lane  0 1 2 3 4 ..  gets x of lane  3 3 3 3 3 ..
//
//     __ballot_sync(mask, x > 0)      all lanes get a number whose bit i is set if x > 0 in lane i
//     __any_sync, __all_sync          all lanes get 1 if it is so in one of them, in each of them; else 0
//
// With `width` 16, 8, 4, 2 or 1 the warp is divided into segments of so many lanes. A shuffle that reads a lane outside
// the mask is an error here; on a GPU its result is undefined. PTX ISA: shfl.sync, vote.sync, bar.warp.sync.

#pragma once

inline void __syncwarp(unsigned mask = ~0u, simt::Where where = simt::Where::current()) {
  simt::sync_warp(mask, where);
}

namespace simt {

template <class T>
struct Shuffle {
  T in, out;
  int from;  // the lane that is read
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
  require_width(width, where);
  Shuffle<T> mine{value, value, source(own_lane(mask, where), lane & 31, width)};
  require_read(mask, mine.from, where);
  warp_operation(name, mask, &mine, [](void* const* operands) {
    Shuffle<T>* const* lanes = reinterpret_cast<Shuffle<T>* const*>(operands);
    for (int i = 0; i < 32; i++)
      if (lanes[i]) lanes[i]->out = lanes[lanes[i]->from]->in;
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

namespace simt {

struct Vote {
  bool mine;
  unsigned all;
};

inline unsigned vote(const char* name, unsigned mask, bool mine, Where where) {
  Vote ballot{mine, 0};
  warp_operation(name, mask, &ballot, [](void* const* operands) {
    Vote* const* lanes = reinterpret_cast<Vote* const*>(operands);
    unsigned all = 0;
    for (int i = 0; i < 32; i++)
      if (lanes[i]) all |= static_cast<unsigned>(lanes[i]->mine) << i;
    for (int i = 0; i < 32; i++)
      if (lanes[i]) lanes[i]->all = all;
  }, where);
  return ballot.all;
}

}  // namespace simt

inline unsigned __ballot_sync(unsigned mask, int mine, simt::Where where = simt::Where::current()) {
  return simt::vote("__ballot_sync", mask, mine, where);
}
inline int __any_sync(unsigned mask, int mine, simt::Where where = simt::Where::current()) {
  return simt::vote("__any_sync", mask, mine, where) != 0;
}
inline int __all_sync(unsigned mask, int mine, simt::Where where = simt::Where::current()) {
  return simt::vote("__all_sync", mask, mine, where) == mask;
}
