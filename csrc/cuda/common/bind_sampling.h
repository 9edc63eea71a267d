// The ops from logits to a token; bind.cpp registers them.

#pragma once

#include "bind.h"

namespace minillm::cuda {

inline Tensor draw(const Tensor& logits, const Tensor& keys, const Tensor& numbers, const Tensor& top_k,
                   const Tensor& seen, const Tensor& seen_end, int64_t num_token_ids, int64_t stream) {
  const char* op = "sample";
  int64_t rows = logits.size(0);
  check(op, "logits", logits, 2, logits.scalar_type());
  check(op, "keys", keys, 1, ScalarType::Long);
  check(op, "numbers", numbers, 2, ScalarType::Double);
  check(op, "top_k", top_k, 1, ScalarType::Long);
  check(op, "seen", seen, 1, ScalarType::Long);
  check(op, "seen_end", seen_end, 1, ScalarType::Long);
  check_size(op, "the number of keys", keys.size(0), rows);
  check_size(op, "numbers' length", numbers.numel(), 4 * rows);
  check_size(op, "top_k's length", top_k.size(0), rows);
  check_size(op, "seen_end's length", seen_end.size(0), rows);
  STD_TORCH_CHECK(num_token_ids > 0 && num_token_ids <= logits.size(1), op, ": ", num_token_ids, " ids of ",
                  logits.size(1));
  STD_TORCH_CHECK(num_token_ids <= kMaxTokenIds, op, ": ", num_token_ids, " ids, at most ", kMaxTokenIds);
  Tensor tokens = like(keys, {rows});
  int64_t bytes = sample_scratch_bytes(static_cast<int>(rows), static_cast<int>(num_token_ids));
  Tensor scratch = torch::stable::new_empty(logits, std::vector<int64_t>{bytes}, ScalarType::Byte);
  Call call(op);
  call.with("logits", logits).with("keys", keys).with("numbers", numbers).with("top_k", top_k).with("seen", seen);
  call.with("seen_end", seen_end).with("scratch", scratch).with("tokens", tokens);
  sample({data<void>(logits), data<uint64_t>(keys), data<double>(numbers), data<int64_t>(top_k), data<int64_t>(seen),
          data<int64_t>(seen_end), scratch.mutable_data_ptr(), static_cast<int64_t*>(tokens.mutable_data_ptr()),
          static_cast<int>(rows), static_cast<int>(logits.size(1)), static_cast<int>(num_token_ids), 0,
          dtype_of(op, logits)},
         as_stream(stream));
  call.done();
  return tokens;
}

inline Tensor find_finite_rows(const Tensor& logits, int64_t stream) {
  const char* op = "finite_rows";
  check(op, "logits", logits, 2, logits.scalar_type());
  Tensor finite = torch::stable::new_empty(logits, std::vector<int64_t>{logits.size(0)}, ScalarType::Bool);
  Call call(op);
  call.with("logits", logits).with("finite", finite);
  finite_rows({data<void>(logits), static_cast<bool*>(finite.mutable_data_ptr()), static_cast<int>(logits.size(0)),
               static_cast<int>(logits.size(1)), dtype_of(op, logits)},
              as_stream(stream));
  call.done();
  return finite;
}

}  // namespace minillm::cuda

#define MINILLM_SAMPLING_OPS(m)                                                                    \
  m.def(                                                                                           \
      "sample(Tensor logits, Tensor keys, Tensor numbers, Tensor top_k, Tensor seen, Tensor seen_end, " \
      "int num_token_ids, int stream) -> Tensor");                                                 \
  m.def("finite_rows(Tensor logits, int stream) -> Tensor")

#define MINILLM_SAMPLING_KERNELS(m)      \
  m.impl("sample", TORCH_BOX(&draw));    \
  m.impl("finite_rows", TORCH_BOX(&find_finite_rows))
