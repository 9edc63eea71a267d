// The ops of quantised matrices; bind.cpp registers them. A weight is a tensor of bytes (csrc/shared/codes_layout.h).
//
// Each call reads the weight's header, on a GPU a wait of its own. A pass over a whole model has read it when the weight
// was bound.

#pragma once

#include "bind.h"
#include "codes_layout.h"
#include "rungs.h"

namespace minillm::cuda {

inline Tensor multiply_codes(const Tensor& x, const Tensor& weight, const Optional& bias, int64_t out, int64_t stream) {
  const char* op = "linear_codes";
  check(op, "x", x, 2, x.scalar_type());
  check(op, "weight", weight, 1, ScalarType::Byte);
  const Matrix matrix = matrix_of(op, weight, out, x.size(1), dtype_of(op, x));
  Tensor y = like(x, {x.size(0), out});
  Call call(op);
  call.with("x", x).with("weight", weight).with("y", y);
  if (bias) {
    check(op, "bias", *bias, 1, x.scalar_type());
    check_size(op, "bias's length", bias->size(0), out);
    call.with("bias", *bias);
  }
  linear({data<void>(x), matrix.weight, bias ? data<void>(*bias) : nullptr, y.mutable_data_ptr(),
          static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), static_cast<int>(out), matrix.dtype, false, matrix.form},
         false, as_stream(stream));
  call.done();
  return y;
}

// On a GPU nobody looks at the ids: a row that does not exist is NaN.
inline Tensor embed_codes(const Tensor& ids, const Tensor& weight, int64_t out, int64_t in, ScalarType type, int64_t stream) {
  const char* op = "embedding_codes";
  check(op, "ids", ids, 1, ScalarType::Long);
  check(op, "weight", weight, 1, ScalarType::Byte);
  if (!kOnCuda) check_range(op, "id", data<int64_t>(ids), ids.size(0), out);
  Tensor y = torch::stable::new_empty(weight, {ids.size(0), in}, type);
  const Matrix matrix = matrix_of(op, weight, out, in, dtype_of(op, y));
  Call call(op);
  call.with("ids", ids).with("weight", weight).with("y", y);
  look_up({matrix.weight, data<int64_t>(ids), nullptr, nullptr, y.mutable_data_ptr(), static_cast<int>(ids.size(0)),
           static_cast<int>(in), 1, matrix.dtype, matrix.form, out},
          as_stream(stream));
  call.done();
  return y;
}

}  // namespace minillm::cuda

#define MINILLM_CODES_OPS(m)                                                                                     \
  m.def("linear_codes(Tensor x, Tensor weight, Tensor? bias, int out_features, int stream) -> Tensor");          \
  m.def(                                                                                                         \
      "embedding_codes(Tensor ids, Tensor weight, int out_features, int in_features, ScalarType dtype, "         \
      "int stream) -> Tensor")

#define MINILLM_CODES_KERNELS(m)                    \
  m.impl("linear_codes", TORCH_BOX(&multiply_codes)); \
  m.impl("embedding_codes", TORCH_BOX(&embed_codes))
