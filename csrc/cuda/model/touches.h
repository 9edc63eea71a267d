// The memory that the next launch may touch: the simulator finds every access outside of it. On a GPU nothing happens.

#pragma once

#include <initializer_list>

#include "bind.h"
#include "codes_layout.h"

namespace minillm::cuda {

struct Span {
  const char* name;
  const void* start;  // null: there is none
  int64_t bytes;
};

// The bytes of a matrix [out, in]; `width` is that of one number that is not quantised.
inline int64_t matrix_bytes(const Matrix& m, int64_t out, int64_t in, int64_t width) {
  return m.form.codes == Codes::none ? out * in * width : blocks_bytes(m.form, out, in);
}

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
