// The two verification ops; bind.cpp registers them.

#pragma once

#include "bind.h"

namespace minillm::cuda {

inline std::tuple<Tensor, Tensor> walk_drafts(const Tensor& sampled, const Tensor& drafted, const Tensor& parents,
                                              const Tensor& node_start, int64_t stream) {
  const char* op = "verify_coupled";
  for (const Tensor* t : {&sampled, &drafted, &parents}) {
    check(op, "sampled, drafted or parents", *t, 1, ScalarType::Long);
    check_size(op, "drafted's or parents' length", t->size(0), sampled.size(0));
  }
  check(op, "node_start", node_start, 1, ScalarType::Long);
  STD_TORCH_CHECK(node_start.size(0) > 0, op, ": node_start is empty");
  Tensor tokens = torch::stable::empty_like(sampled), nodes = torch::stable::empty_like(sampled);
  Call call(op);
  call.with("sampled", sampled).with("drafted", drafted).with("parents", parents).with("node_start", node_start);
  call.with("tokens", tokens).with("nodes", nodes);
  verify_coupled({data<int64_t>(sampled), data<int64_t>(drafted), data<int64_t>(parents), data<int64_t>(node_start),
                  static_cast<int64_t*>(tokens.mutable_data_ptr()), static_cast<int64_t*>(nodes.mutable_data_ptr()),
                  static_cast<int>(node_start.size(0)) - 1},
                 as_stream(stream));
  call.done();
  return {tokens, nodes};
}

inline std::tuple<Tensor, Tensor> accept_drafts(const Tensor& draft, const Optional& draft_probs,
                                                const Tensor& target_probs, const Tensor& uniforms, int64_t stream) {
  const char* op = "verify_draft";
  check(op, "draft", draft, 2, ScalarType::Long);
  check(op, "target_probs", target_probs, 3, ScalarType::Float);
  check(op, "uniforms", uniforms, 2, ScalarType::Double);
  int64_t requests = draft.size(0), k = draft.size(1), vocab_size = target_probs.size(2);
  STD_TORCH_CHECK(vocab_size > 0, op, ": there are no token ids");
  check_size(op, "target_probs' number of requests", target_probs.size(0), requests);
  check_size(op, "target_probs' number of rows", target_probs.size(1), k + 1);
  check_size(op, "uniforms' number of requests", uniforms.size(0), requests);
  check_size(op, "uniforms' number of columns", uniforms.size(1), k + 1);
  Tensor tokens = like(draft, {requests, k + 1}), accepted = like(draft, {requests});
  Call call(op);
  call.with("draft", draft).with("target_probs", target_probs).with("uniforms", uniforms).with("tokens", tokens);
  call.with("accepted", accepted);
  if (draft_probs) {
    check(op, "draft_probs", *draft_probs, 3, ScalarType::Float);
    check_size(op, "draft_probs' number of requests", draft_probs->size(0), requests);
    check_size(op, "draft_probs' number of rows", draft_probs->size(1), k);
    check_size(op, "draft_probs' number of ids", draft_probs->size(2), vocab_size);
    call.with("draft_probs", *draft_probs);
  }
  verify_draft({data<int64_t>(draft), draft_probs ? data<float>(*draft_probs) : nullptr, data<float>(target_probs),
                data<double>(uniforms), static_cast<int64_t*>(tokens.mutable_data_ptr()),
                static_cast<int64_t*>(accepted.mutable_data_ptr()), static_cast<int>(requests), static_cast<int>(k),
                static_cast<int>(vocab_size)},
               as_stream(stream));
  call.done();
  return {tokens, accepted};
}

}  // namespace minillm::cuda
