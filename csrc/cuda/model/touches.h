// The memory that the next launch may touch: the simulator finds every access outside of it. On a GPU nothing happens.

#pragma once

#include <initializer_list>

#include "bind.h"

namespace minillm::cuda {

struct Span {
  const char* name;
  const void* start;  // null: there is none
  int64_t bytes;
};

#ifdef MINILLM_SIMT
inline void touches(std::initializer_list<Span> spans) {
  simt::clear_globals();
  for (const Span& span : spans)
    if (span.start) simt::add_global(span.name, span.start, span.bytes);
}
#else
inline void touches(std::initializer_list<Span>) {}
#endif

}  // namespace minillm::cuda
