// Tensor copies: which bytes a box has, and where the swizzle puts them.
//
//     global   one run of bytes per row of the box, `strides` apart        rows outside the tensor: zeros
//     shared   rows end to end, in pieces of 16 bytes; piece p of the box lies at to + 16 p, swizzled
//
// What the driver refuses when it encodes a map is refused here when the map is made, with the reason.
// Source: CUDA driver API, cuTensorMapEncodeTiled.

#include <cstring>

#include "async.h"
#include "bulk.h"

namespace simt {
namespace {

constexpr size_t kPiece = 16;

std::string wrong_dimension(const TensorShape& s, int d) {
  std::string which = " of dimension " + std::to_string(d);
  if (s.dims[d] < 1 || s.dims[d] > uint64_t{1} << 32) return "the size" + which + " is 1 to 2^32";
  if (s.box[d] < 1 || s.box[d] > 256) return "the box" + which + " is 1 to 256";
  if (d > 0 && (s.strides[d] % kPiece || s.strides[d] >> 40)) return "the stride" + which + " is a multiple of 16 below 2^40";
  return "";
}

std::string wrong_shape(const TensorShape& s) {
  if (s.rank < 2 || s.rank > 4) return "the rank is 2, 3 or 4";
  if (s.element_bytes != 1 && s.element_bytes != 2 && s.element_bytes != 4) return "an element has 1, 2 or 4 bytes";
  if (reinterpret_cast<uintptr_t>(s.base) % kPiece) return "the tensor begins at a multiple of 16 bytes";
  for (int d = 0; d < s.rank; d++)
    if (std::string wrong = wrong_dimension(s, d); !wrong.empty()) return wrong;
  size_t row = s.box[0] * s.element_bytes;
  if (row % kPiece) return "a row of the box is a multiple of 16 bytes";
  if (s.swizzle != Swizzle::none && row > static_cast<size_t>(swizzle_span(s.swizzle)))
    return "a row of the box has " + std::to_string(row) + " bytes, its swizzle " + std::to_string(swizzle_span(s.swizzle));
  return "";
}

// One row of the box: where it begins in the tensor.
struct Row {
  const char* base;
  bool inside;
};

Row find_row(const TensorShape& s, const int* at, size_t row) {
  int64_t offset = 0;
  bool inside = true;
  for (int d = 1; d < s.rank; d++) {
    int64_t index = at[d] + static_cast<int64_t>(row % s.box[d]);
    row /= s.box[d];
    inside &= index >= 0 && index < static_cast<int64_t>(s.dims[d]);
    offset += index * static_cast<int64_t>(s.strides[d]);
  }
  return {static_cast<const char*>(s.base) + offset, inside};
}

// 16 bytes of the row, from byte `first` of the tensor's row on; `first` may lie outside.
Piece cut_piece(const TensorShape& s, const Row& row, int64_t first, char* to) {
  int64_t end = static_cast<int64_t>(s.dims[0]) * s.element_bytes, size = kPiece;
  int64_t from = std::min(std::max<int64_t>(first, 0), first + size), until = std::max(std::min(first + size, end), from);
  if (!row.inside) until = from;
  return {to, row.base + from, static_cast<size_t>(from - first), static_cast<size_t>(until - from),
          static_cast<size_t>(first + size - until)};
}

}  // namespace

size_t swizzled(size_t address, Swizzle swizzle) {
  size_t pieces = swizzle_span(swizzle) / kPiece;
  return address ^ (address >> 3 & (pieces - 1) << 4);
}

void check_tensor_shape(const TensorShape& shape, Where where) {
  std::string wrong = wrong_shape(shape);
  Machine& m = machine();
  if (wrong.empty() || m.failed) return;
  m.failed = true;
  m.error = {"launch", "make_tensor_map", wrong, {}, {}, {where.file, where.line, nullptr}, "", {}};
}

void tensor_copy(void* to, const TensorShape& s, const int* at, int rank, Mbarrier* bar) {
  const void* pc = __builtin_return_address(0);
  Place here{nullptr, 0, pc};
  if (rank != s.rank)
    fail("copy", "the tensor map has " + std::to_string(s.rank) + " dimensions, the copy " + std::to_string(rank), here);
  if (shared_offset(to) % 128)
    fail("misaligned", "a tensor copy goes to a multiple of 128 bytes, not to " + describe(to), here);
  size_t rows = 1, row_bytes = s.box[0] * s.element_bytes;
  for (int d = 1; d < s.rank; d++) rows *= s.box[d];
  std::vector<Piece> pieces;
  for (size_t i = 0; i < rows; i++) {
    Row row = find_row(s, at, i);
    for (size_t byte = 0; byte < row_bytes; byte += kPiece) {
      size_t place = swizzled(shared_offset(to) + i * row_bytes + byte, s.swizzle);
      pieces.push_back(cut_piece(s, row, int64_t{at[0]} * s.element_bytes + static_cast<int64_t>(byte), at_shared_offset(place)));
    }
  }
  start_bulk_copy(std::move(pieces), bar, pc);
}

}  // namespace simt
