// Selects the instruction set, and connects the kernels with torch's threads.

#include <cstdlib>
#include <string>

#include "bind.h"
#include "floats.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // an older torch (2.11 is one)
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace minillm::cpu {

namespace {

struct Ranges {
  RangeBody body;
  void* context;
};

void run_range(int64_t begin, int64_t end, void* context) {
  StandardFloats scope;  // of whichever thread runs this range
  const Ranges& ranges = *static_cast<Ranges*>(context);
  ranges.body(begin, end, ranges.context);
}

void torch_ranges(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  Ranges ranges = {body, context};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, run_range, &ranges));
}

int64_t torch_threads() {
  uint32_t count = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return count;
}

// The kernels for the named instruction set, or for the best one of this CPU if the name is empty. Null if the CPU
// does not have the instruction set.
const Kernels* find_isa(const std::string& name) {
  for (const Isa* isa = kIsas; isa->kernels; isa++)
    if ((name.empty() || name == isa->kernels->name) && isa->runs_here()) return isa->kernels;
  return nullptr;
}

const Kernels* current = find_isa("");

// Switches to the named instruction set (the best one for "") and returns the name of the previous one.
std::string use_isa(std::string name) {
  const Kernels* found = find_isa(name);
  STD_TORCH_CHECK(found, "this processor does not have the instruction set '", name, "'");
  std::string before = current->name;
  current = found;
  return before;
}

std::string available_isas() {
  std::string names;
  for (const Isa* isa = kIsas; isa->kernels; isa++)
    if (isa->runs_here()) names += std::string(names.empty() ? "" : " ") + isa->kernels->name;
  return names;
}

}  // namespace

void (*pool_ranges)(int64_t, int64_t, int64_t, RangeBody, void*) = torch_ranges;
int64_t (*thread_count)() = torch_threads;

const Kernels& kernels() { return *current; }

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("use_isa(str name) -> str");
  m.def("available_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CompositeExplicitAutograd, m) {
  m.impl("use_isa", TORCH_BOX(&use_isa));
  m.impl("available_isas", TORCH_BOX(&available_isas));
}

}  // namespace minillm::cpu
