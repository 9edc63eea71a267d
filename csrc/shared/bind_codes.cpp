// Ops that write the memory of a quantised matrix (codes_layout.h). `linear`, `embedding` and `experts` take it in
// place of a packed one.
//
//     codes_bytes    its size
//     begin_codes_   writes the header, and the order of the inputs
//     put_codes_     writes some outputs, from any first one: so a matrix is made piece by piece, of several tensors
//
// They write memory of the host, in every library; a matrix for a GPU is copied there. Its header is read back when the
// matrix is used or bound, which is a wait.

#include <cstring>

#include "codes_layout.h"
#include "tensors.h"

#ifdef MINILLM_ON_CUDA
#include <cuda_runtime_api.h>
#endif

namespace minillm {

namespace {

// The first bytes of a tensor on the host: where they are, or in `copy`.
const char* on_host([[maybe_unused]] const char* op, const Tensor& t, [[maybe_unused]] int64_t bytes,
                    [[maybe_unused]] std::vector<char>& copy) {
#ifdef MINILLM_ON_CUDA
  if (t.is_cuda()) {
    copy.resize(bytes);
    cudaError_t error = cudaMemcpy(copy.data(), t.const_data_ptr(), bytes, cudaMemcpyDeviceToHost);
    STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
    return copy.data();
  }
#endif
  return data<char>(t);
}

CodesHeader header_of(const char* op, const Tensor& packed) {
  CodesHeader header;
  std::vector<char> copy;
  STD_TORCH_CHECK(packed.numel() >= kLine, op, ": the matrix has no header");
  memcpy(&header, on_host(op, packed, kLine, copy), sizeof(header));
  STD_TORCH_CHECK(header.magic == kCodesMagic, op, ": the matrix has no header");
  return header;
}

int64_t bytes_of(const Form& form, int64_t out, int64_t in, bool ordered) {
  return kLine + order_bytes(in, ordered) + blocks_bytes(form, out, in);
}

Form form_of(const char* op, const std::string& codes, int64_t group, bool wide, bool minimum, int64_t in,
             bool int8_x = false) {
  Form form = {Codes::none, group, wide, minimum, int8_x, nullptr};
  for (int i = 1; i < 6; i++)
    if (codes == kCodes[i]) form.codes = static_cast<Codes>(i);
  STD_TORCH_CHECK(form.codes != Codes::none, op, ": there are no codes '", codes, "'");
  STD_TORCH_CHECK(in > 0 && in < INT32_MAX && group > 0, op, ": ", in, " inputs in groups of ", group);
  const int64_t line = 32 / bits_of(form.codes);
  STD_TORCH_CHECK(group >= in || group % line == 0, op, ": groups of ", group, " inputs are no multiple of ", line);
  form.group = group < in ? group : in;
  if (int8_x) {
    STD_TORCH_CHECK(form.codes == Codes::int8 || form.codes == Codes::int4 || form.codes == Codes::uint4, op, ": ", codes,
                    " times activations in int8");
    STD_TORCH_CHECK(form.group <= kMaxInt8Group, op, ": activations in int8 in groups of ", form.group);
  }
  return form;
}

}  // namespace

std::pair<int64_t, int64_t> quantized_shape(const char* op, const Tensor& packed) {
  check_dense(op, "the quantised weight", packed, 1, ScalarType::Byte);
  CodesHeader header = header_of(op, packed);
  return {header.out, header.in};
}

Matrix quantized_matrix(const char* op, const Tensor& packed, int64_t out, int64_t in, DType dtype) {
  check_dense(op, "the quantised weight", packed, 1, ScalarType::Byte);
  CodesHeader header = header_of(op, packed);
  check_size(op, "the quantised weight's number of outputs", header.out, out);
  check_size(op, "the quantised weight's number of inputs", header.in, in);
  STD_TORCH_CHECK(header.codes > 0 && header.codes < 6, op, ": the header is damaged");
  for (int32_t flag : {header.wide, header.minimum, header.ordered, header.int8_x})
    STD_TORCH_CHECK(flag == 0 || flag == 1, op, ": the header is damaged");
  Form form = form_of(op, kCodes[header.codes], header.group, header.wide, header.minimum, in, header.int8_x);
  check_size(op, "the quantised weight's size", packed.numel(), bytes_of(form, out, in, header.ordered));
  const char* at = data<char>(packed) + kLine;
  if (header.ordered) {
    form.order = reinterpret_cast<const int32_t*>(at);
    std::vector<char> copy;
    const char* there = on_host(op, packed, kLine + 4 * in, copy) + kLine;
    for (int64_t k = 0; k < in; k++) {
      int32_t input = reinterpret_cast<const int32_t*>(there)[k];
      STD_TORCH_CHECK(input >= 0 && input < in, op, ": the order of the inputs is damaged");
    }
  }
  return {at + order_bytes(in, header.ordered), dtype, nullptr, form};
}

namespace {

int64_t codes_bytes(int64_t out, int64_t in, std::string codes, int64_t group, bool wide, bool minimum, bool ordered) {
  return bytes_of(form_of("codes_bytes", codes, group, wide, minimum, in), out, in, ordered);
}

void begin_codes(const Tensor& packed, int64_t out, int64_t in, std::string codes, int64_t group, bool wide, bool minimum,
                 const Optional& order, bool int8_x) {
  const char* op = "begin_codes_";
  Form form = form_of(op, codes, group, wide, minimum, in, int8_x);
  check_host(op, "packed", packed, 1, ScalarType::Byte);
  STD_TORCH_CHECK(out > 0 && out < INT32_MAX, op, ": ", out, " outputs");
  check_size(op, "packed's size", packed.numel(), bytes_of(form, out, in, order.has_value()));
  char* to = static_cast<char*>(packed.mutable_data_ptr());
  memset(to, 0, packed.numel());
  CodesHeader header = {kCodesMagic, static_cast<int32_t>(form.codes), static_cast<int32_t>(form.group), wide, minimum,
                        order.has_value(), static_cast<int32_t>(out), static_cast<int32_t>(in), int8_x, {}};
  memcpy(to, &header, sizeof(header));
  if (order) {
    check_host(op, "order", *order, 1, ScalarType::Int);
    check_size(op, "order's length", order->size(0), in);
    memcpy(to + kLine, order->const_data_ptr(), 4 * in);
  }
}

// A matrix that `begin_codes_` has begun, and the rows of a call.
struct Rows {
  Matrix matrix;
  CodesLayout layout;
  int64_t first, count;

  Rows(const char* op, const Tensor& packed, int64_t first, int64_t count)
      : matrix(open(op, packed, first, count)), layout(matrix.form, header_of(op, packed).in), first(first), count(count) {}

  static Matrix open(const char* op, const Tensor& packed, int64_t first, int64_t count) {
    CodesHeader header = header_of(op, packed);
    STD_TORCH_CHECK(first >= 0 && count >= 0 && first + count <= header.out, op, ": rows ", first, " to ", first + count,
                    " of ", header.out);
    return quantized_matrix(op, packed, header.out, header.in, DType::f32);
  }
  char* block(int64_t row) const {
    return const_cast<char*>(static_cast<const char*>(matrix.weight)) + row / 16 * layout.block;
  }
  int64_t width() const { return matrix.form.wide ? 4 : 2; }
  // Where output `row` has its scale of group g; its minimum lies 16 numbers behind.
  char* scale(int64_t row, int64_t g) const { return block(row) + layout.scales(g) + row % 16 * width(); }
  // The 32 bits with the code of input k, and its place among them.
  char* lane(int64_t row, int64_t k) const {
    int64_t g = k / layout.group;
    return block(row) + layout.codes(g) + k % layout.group / layout.line * kLine + row % 16 * 4;
  }
  int shift(int64_t k) const {
    int64_t place = k % layout.group % layout.line;
    return static_cast<int>((place & 1) * 16 + (place >> 1) * bits_of(matrix.form.codes));
  }
  uint32_t mask() const { return (1u << bits_of(matrix.form.codes)) - 1; }
};

void put_row(const Rows& rows, int64_t i, const uint8_t* codes, const char* scales, const char* minima) {
  const int64_t row = rows.first + i, width = rows.width(), groups = rows.layout.groups;
  for (int64_t k = 0; k < rows.layout.in; k += 1) {
    char* at = rows.lane(row, k);
    uint32_t lane;
    memcpy(&lane, at, 4);
    lane = (lane & ~(rows.mask() << rows.shift(k))) | (codes[k] & rows.mask()) << rows.shift(k);
    memcpy(at, &lane, 4);
  }
  for (int64_t g = 0; g < groups; g++) {
    memcpy(rows.scale(row, g), scales + g * width, width);
    if (minima) memcpy(rows.scale(row, g) + 16 * width, minima + g * width, width);
  }
}

void put_codes(const Tensor& packed, int64_t first, const Tensor& codes, const Tensor& scales, const Optional& minima) {
  const char* op = "put_codes_";
  check_host(op, "codes", codes, 2, ScalarType::Byte);
  Rows rows(op, packed, first, codes.size(0));
  const ScalarType type = rows.matrix.form.wide ? ScalarType::Float : ScalarType::Half;
  check_size(op, "codes' width", codes.size(1), rows.layout.in);
  STD_TORCH_CHECK(minima.has_value() == rows.matrix.form.minimum, op, ": minima are given or missing");
  for (const Tensor* t : {&scales, minima ? &*minima : &scales}) {
    check_host(op, "scales or minima", *t, 2, type);
    check_size(op, "the number of scales", t->size(0), rows.count);
    check_size(op, "the number of groups", t->size(1), rows.layout.groups);
  }
  const int64_t step = rows.layout.groups * rows.width();
  for (int64_t i = 0; i < rows.count; i++)
    put_row(rows, i, data<uint8_t>(codes) + i * rows.layout.in, data<char>(scales) + i * step,
            minima ? data<char>(*minima) + i * step : nullptr);
}

}  // namespace

MINILLM_FRAGMENT(MINILLM_NAMESPACE, m) {
  m.def(
      "codes_bytes(int out_features, int in_features, str codes, int group, bool wide, bool minimum, bool ordered) "
      "-> int");
  m.def(
      "begin_codes_(Tensor(a!) packed, int out_features, int in_features, str codes, int group, bool wide, bool minimum, "
      "Tensor? order, bool int8_x) -> ()");
  m.def("put_codes_(Tensor(a!) packed, int first, Tensor codes, Tensor scales, Tensor? minima) -> ()");
}

// The tensors are on the CPU, whatever the kernels run on.
MINILLM_IMPL(MINILLM_NAMESPACE, CPU, m) {
  m.impl("begin_codes_", TORCH_BOX(&begin_codes));
  m.impl("put_codes_", TORCH_BOX(&put_codes));
}

MINILLM_IMPL(MINILLM_NAMESPACE, CompositeExplicitAutograd, m) { m.impl("codes_bytes", TORCH_BOX(&codes_bytes)); }

}  // namespace minillm
