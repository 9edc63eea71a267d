// Bounds: every access must lie inside a tensor, a shared array or the thread's own stack.
//
//     global   the tensors that the caller registered before the launch   add_global("k_cache", ...)
//     shared   one arena, with a new layout for each launch               [tile | gap | row_max | gap ...]
//     local    the fiber's stack, and the kernel's arguments
//
// Between two shared arrays lies a gap, so that an access past the end of an array is found (in the `asan` flavour
// the whole arena except the arrays is poisoned). Each block starts with NaN in shared memory (all bits set): on a
// GPU the initial content is undefined.

#include <algorithm>
#include <cstring>

#include "asan.h"
#include "machine.h"

namespace simt {
namespace {

constexpr size_t kGap = 128;  // a multiple of 128, so that every array begins at bank 0
constexpr size_t kArenaBytes = 1 << 20;

struct SharedArray : Range {
  const char* file;
  int line;
};

std::vector<Range> globals;      // sorted by address
std::vector<SharedArray> arrays;
size_t static_bytes = 0, used = 0;
alignas(1024) char arena[kArenaBytes];  // as aligned as the pattern of a swizzle

uintptr_t number(const void* p) { return reinterpret_cast<uintptr_t>(p); }

bool holds(const Range& r, const void* address, size_t bytes) {
  return number(address) >= number(r.base) && number(address) + bytes <= number(r.base) + r.bytes;
}

bool in_arena(const void* address) { return number(address) - number(arena) < kArenaBytes; }

template <class Ranges>
bool any_holds(const Ranges& ranges, const void* address, size_t bytes) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const Range& r) { return holds(r, address, bytes); });
}

Range* find_global(const void* address, size_t bytes) {
  auto after = std::upper_bound(globals.begin(), globals.end(), number(address),
                                [](uintptr_t a, const Range& r) { return a < number(r.base); });
  // Views of one storage may overlap, so check every range that begins at or before the address.
  while (after != globals.begin())
    if (holds(*--after, address, bytes)) return &*after;
  return nullptr;
}

bool in_arguments(const void* address, size_t bytes) {
  const Machine& m = machine();
  return number(address) - number(m.arguments) + bytes <= m.arguments_bytes;
}

size_t distance(const Range& r, const void* address) {
  uintptr_t a = number(address), low = number(r.base), high = low + r.bytes;
  return a < low ? low - a : a >= high ? a - high : 0;
}

// "4 bytes past the end of `x`", relative to the nearest range.
template <class Ranges>
std::string beside(const Ranges& ranges, const void* address) {
  auto nearest = std::min_element(ranges.begin(), ranges.end(), [&](const Range& a, const Range& b) {
    return distance(a, address) < distance(b, address);
  });
  if (nearest == ranges.end()) return "and no tensor was given to this kernel";
  size_t bytes = distance(*nearest, address);
  if (bytes > (1 << 20)) return "nowhere near a tensor";
  std::string place = std::to_string(bytes) + " bytes past the end of";
  if (number(address) < number(nearest->base)) place = std::to_string(bytes) + " bytes before";
  if (holds(*nearest, address, 1)) place = "it runs over the end of";
  return place + " `" + nearest->name + "` (" + std::to_string(nearest->bytes) + " bytes)";
}

void* allocate(const char* name, size_t bytes, const Where& where) {
  SharedArray array;
  array.name = name;
  array.base = arena + used;
  array.bytes = bytes;
  array.file = where.file;
  array.line = where.line;
  arrays.push_back(array);
  allow(array.base, bytes);
  memset(array.base, 0xFF, bytes);
  used += (bytes + 127) / 128 * 128 + kGap;
  return array.base;
}

void* find(const char* name, const Where& where) {
  for (const SharedArray& a : arrays)
    if (a.line == where.line && a.name == name && !strcmp(a.file, where.file)) return a.base;
  return nullptr;
}

}  // namespace

void add_global(const std::string& name, const void* base, size_t bytes) {
  Range range{name, static_cast<char*>(const_cast<void*>(base)), bytes, nullptr};
  auto place = std::upper_bound(globals.begin(), globals.end(), range,
                                [](const Range& a, const Range& b) { return number(a.base) < number(b.base); });
  globals.insert(place, range);
}

void clear_globals() { globals.clear(); }

std::vector<Range>& global_ranges() { return globals; }

void begin_launch_memory() {
  arrays.clear();
  static_bytes = used = 0;
  forbid(arena, kArenaBytes);
}

void begin_block_memory() {
  for (const SharedArray& array : arrays) memset(array.base, 0xFF, array.bytes);
}

void* shared_array(const char* name, size_t bytes, Where where) {
  if (void* there = find(name, where)) return there;
  static_bytes += bytes;
  // A GPU refuses too many static arrays when it compiles, and too many beside dynamic ones when it launches.
  std::string wrong = wrong_shared(static_bytes);
  const char* kind = too_many_arrays(static_bytes) ? "shared memory" : "launch";
  if (!wrong.empty()) fail(kind, "with `" + std::string(name) + "` it is " + wrong, {where.file, where.line, nullptr});
  return allocate(name, bytes, where);
}

void* dynamic_shared(Where where) {
  const char* name = "dynamic shared memory";
  void* there = find(name, where);
  return there ? there : allocate(name, machine().dynamic_bytes, where);
}

size_t shared_offset(const void* address) { return number(address) - number(arena); }

char* at_shared_offset(size_t offset) { return arena + offset; }

bool in_shared_array(const void* address, size_t bytes) { return in_arena(address) && any_holds(arrays, address, bytes); }

std::string describe(const void* address) {
  std::string text = "memory";
  auto look = [&](const Range& r) {
    if (holds(r, address, 1)) text = "`" + r.name + "` + " + std::to_string(number(address) - number(r.base)) + " bytes";
  };
  std::for_each(globals.begin(), globals.end(), look);
  std::for_each(arrays.begin(), arrays.end(), look);
  return text;
}

Location locate(const void* address, size_t bytes, bool aligned, const char* verb, const void* pc) {
  bool shared = in_arena(address);
  std::string what = std::string(shared ? "shared " : "global ") + verb + " of " + std::to_string(bytes) + " bytes";
  Range* tensor = nullptr;
  if (shared) {
    if (!any_holds(arrays, address, bytes)) fail("out of bounds", what + ": " + beside(arrays, address), {nullptr, 0, pc});
  } else if (machine().running->fiber.owns(address) || in_arguments(address, bytes)) {
    return {Space::local, nullptr};
  } else if (!(tensor = find_global(address, bytes))) {
    fail("out of bounds", what + ": " + beside(globals, address), {nullptr, 0, pc});
  }
  if (aligned && number(address) % bytes)
    fail("misaligned", what + " at " + describe(address) + ", which is no multiple of " + std::to_string(bytes), {nullptr, 0, pc});
  return {shared ? Space::shared : Space::global, tensor};
}

}  // namespace simt
