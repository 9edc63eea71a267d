// The two verification ops: schemas, and the checks before a kernel runs.

#include "bind.h"

namespace minillm::cpu {
namespace {

std::tuple<Tensor, Tensor> coupled(const Tensor& sampled, const Tensor& drafted, const Tensor& parents,
                                   const Tensor& node_start) {
  const char* op = "verify_coupled";
  check(op, "sampled", sampled, 1, ScalarType::Long);
  check(op, "drafted", drafted, 1, ScalarType::Long);
  check(op, "parents", parents, 1, ScalarType::Long);
  check(op, "node_start", node_start, 1, ScalarType::Long);
  int64_t count = sampled.size(0), requests = node_start.size(0) - 1;
  check_size(op, "drafted's length", drafted.size(0), count);
  check_size(op, "parents' length", parents.size(0), count);
  STD_TORCH_CHECK(requests >= 0, op, ": node_start is empty");
  const int64_t* start = data<int64_t>(node_start);
  for (int64_t i = 0; i < requests; i++)
    STD_TORCH_CHECK(start[i] <= start[i + 1], op, ": node_start falls at request ", i);
  check_size(op, "node_start's first entry", start[0], 0);
  check_size(op, "node_start's last entry", start[requests], count);
  Tensor tokens = torch::stable::empty_like(sampled), nodes = torch::stable::empty_like(sampled);
  verify_coupled({data<int64_t>(sampled), data<int64_t>(drafted), data<int64_t>(parents), start, requests,
                  static_cast<int64_t*>(tokens.mutable_data_ptr()), static_cast<int64_t*>(nodes.mutable_data_ptr())});
  return {tokens, nodes};
}

// A target row of zeros has no token to draw, and the kernel returns -1. A caller could not tell it from padding, so
// it is an error.
void refuse_empty_rows(const char* op, const int64_t* tokens, const int64_t* accepted, int64_t requests, int64_t k) {
  for (int64_t i = 0; i < requests; i++)
    STD_TORCH_CHECK(tokens[i * (k + 1) + accepted[i]] >= 0, op, ": target_probs of request ", i, ", row ", accepted[i],
                    ", has no token of any probability");
}

std::tuple<Tensor, Tensor> rejection(const Tensor& draft, const std::optional<Tensor>& draft_probs,
                                     const Tensor& target_probs, const Tensor& uniforms) {
  const char* op = "verify_draft";
  check(op, "draft", draft, 2, ScalarType::Long);
  check(op, "target_probs", target_probs, 3, ScalarType::Float);
  check(op, "uniforms", uniforms, 2, ScalarType::Double);
  int64_t requests = draft.size(0), k = draft.size(1), vocab = target_probs.size(2);
  STD_TORCH_CHECK(vocab > 0, op, ": there are no token ids");
  check_size(op, "target_probs' number of requests", target_probs.size(0), requests);
  check_size(op, "target_probs' number of rows", target_probs.size(1), k + 1);
  check_size(op, "uniforms' number of requests", uniforms.size(0), requests);
  check_size(op, "uniforms' number of columns", uniforms.size(1), k + 1);
  if (draft_probs) {
    check(op, "draft_probs", *draft_probs, 3, ScalarType::Float);
    check_size(op, "draft_probs' number of requests", draft_probs->size(0), requests);
    check_size(op, "draft_probs' number of rows", draft_probs->size(1), k);
    check_size(op, "draft_probs' number of ids", draft_probs->size(2), vocab);
  }
  for (int64_t i = 0; i < draft.numel(); i++)
    STD_TORCH_CHECK(data<int64_t>(draft)[i] < vocab, op, ": draft[", i / k, ", ", i % k, "] is ",
                    data<int64_t>(draft)[i], ", the vocabulary has ", vocab, " ids");
  Tensor tokens = like(draft, {requests, k + 1}), accepted = like(draft, {requests});
  int64_t* to = static_cast<int64_t*>(tokens.mutable_data_ptr());
  int64_t* counts = static_cast<int64_t*>(accepted.mutable_data_ptr());
  verify_draft({data<int64_t>(draft), draft_probs ? data<float>(*draft_probs) : nullptr, data<float>(target_probs),
                data<double>(uniforms), requests, k, vocab, to, counts});
  refuse_empty_rows(op, to, counts, requests, k);
  return {tokens, accepted};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("verify_coupled(Tensor sampled, Tensor drafted, Tensor parents, Tensor node_start) -> (Tensor, Tensor)");
  m.def("verify_draft(Tensor draft, Tensor? draft_probs, Tensor target_probs, Tensor uniforms) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("verify_coupled", TORCH_BOX(&coupled));
  m.impl("verify_draft", TORCH_BOX(&rejection));
}

}  // namespace minillm::cpu
