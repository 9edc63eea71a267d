// Where an operand of wgmma lies in shared memory, by its descriptor.
//
//     Major::k    a row is a column of the product: 16 numbers of k, two chunks of 16 bytes
//     Major::mn   a row is a number of k: 64 or 128 numbers of the product, eight to a chunk
//
//     none        | chunk 0 of 8 rows, 128 bytes |      chunks and groups of 8 rows lie `leading` and `stride` apart
//     bytes128    | row 0: 8 chunks | row 1 ..   |      8 rows are a pattern of 1024 bytes; groups of 8 rows lie
//                                                       `stride` apart, blocks of 8 chunks `leading`
//
// Source: PTX ISA, "Strides" and "Matrix descriptor"; the layouts as CUTLASS writes them (mma_sm90_desc.hpp).

#include "async.h"
#include "wgmma.h"

namespace simt {
namespace {

constexpr int kDepth = 16;

struct Layout {
  size_t start, leading, stride;  // bytes
  Swizzle swizzle;
};

Layout layout_of(MatrixDescriptor matrix) {
  constexpr Swizzle kModes[] = {Swizzle::none, Swizzle::bytes128, Swizzle::bytes64, Swizzle::bytes32};
  auto field = [&](int bit) { return (matrix.bits >> bit & 0x3FFF) * 16; };
  return {field(0), field(16), field(32), kModes[matrix.bits >> 62]};
}

// The address of chunk `chunk` of row `row`, before the swizzle. `row` counts what lies 16 bytes or a span apart:
// columns of the product for Major::k, numbers of k for Major::mn.
size_t chunk_at(const Layout& m, Major major, int row, int chunk) {
  size_t span = swizzle_span(m.swizzle), at = m.start + row % 8 * span;
  if (m.swizzle == Swizzle::none) {
    bool rows_by_stride = major == Major::k;
    return at + row / 8 * (rows_by_stride ? m.stride : m.leading) + chunk * (rows_by_stride ? m.leading : m.stride);
  }
  int chunks = span / kChunk;
  return at + row / 8 * m.stride + chunk / chunks * m.leading + chunk % chunks * kChunk;
}

// Why the descriptor cannot be used, or "". A swizzle's pattern has 8 rows; their number is in the address.
std::string wrong_layout(const Layout& m, Major major) {
  if (m.swizzle == Swizzle::none) return "";
  size_t span = swizzle_span(m.swizzle), pattern = 8 * span;
  if (m.start & (pattern - 1) & ~size_t{127})
    return "a matrix with this swizzle begins in the first row of a pattern of " + std::to_string(pattern) + " bytes";
  if (major == Major::k && m.start % span + 2 * kChunk > span)
    return "16 numbers of k run over the end of a row of " + std::to_string(span) + " bytes";
  return "";
}

}  // namespace

SharedMatrix find_matrix(MatrixDescriptor matrix, Major major, int extent, const void* pc) {
  Layout m = layout_of(matrix);
  if (std::string wrong = wrong_layout(m, major); !wrong.empty()) fail("wgmma", wrong, {nullptr, 0, pc});
  int rows = major == Major::k ? extent : kDepth, per_row = major == Major::k ? 2 : extent / 8;
  SharedMatrix found{{}, per_row};
  for (int row = 0; row < rows; row++)
    for (int chunk = 0; chunk < per_row; chunk++) {
      const char* at = at_shared_offset(swizzled(chunk_at(m, major, row, chunk), m.swizzle));
      if (!in_shared_array(at, kChunk))
        fail("out of bounds", "wgmma reads row " + std::to_string(row) + " of a matrix outside the shared arrays",
             {nullptr, 0, pc});
      found.chunks.push_back(at);
    }
  return found;
}

}  // namespace simt
