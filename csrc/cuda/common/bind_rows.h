// The ops that work row by row: norms, activations, softcap. bind.cpp registers them.

#pragma once

#include "bind.h"

namespace minillm::cuda {

inline int64_t rows_of(const Tensor& t) { return t.size(t.dim() - 1) ? t.numel() / t.size(t.dim() - 1) : 0; }

inline void check_norm(const char* op, const Tensor& x, const Tensor& weight) {
  check(op, "x", x, x.dim(), x.scalar_type());
  check(op, "weight", weight, 1, x.scalar_type());
  check_size(op, "weight's length", weight.size(0), x.size(x.dim() - 1));
}

inline Tensor norm(const Tensor& x, const Tensor& weight, double eps, double offset, int64_t stream) {
  check_norm("rms_norm", x, weight);
  Tensor y = torch::stable::empty_like(x);
  Call call("rms_norm");
  call.with("x", x).with("weight", weight).with("y", y);
  rms_norm({data<void>(x), nullptr, data<void>(weight), y.mutable_data_ptr(), nullptr, static_cast<int>(rows_of(x)),
            static_cast<int>(weight.size(0)), static_cast<float>(eps), dtype_of("rms_norm", x),
            static_cast<float>(offset)},
           as_stream(stream));
  call.done();
  return y;
}

inline std::tuple<Tensor, Tensor> add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps,
                                           int64_t stream) {
  const char* op = "add_rms_norm";
  check_norm(op, x, weight);
  check(op, "residual", residual, x.dim(), x.scalar_type());
  check_size(op, "residual's size", residual.numel(), x.numel());
  Tensor y = torch::stable::empty_like(x), sum = torch::stable::empty_like(x);
  Call call(op);
  call.with("x", x).with("residual", residual).with("weight", weight).with("y", y).with("sum", sum);
  rms_norm({data<void>(x), data<void>(residual), data<void>(weight), y.mutable_data_ptr(), sum.mutable_data_ptr(),
            static_cast<int>(rows_of(x)), static_cast<int>(weight.size(0)), static_cast<float>(eps), dtype_of(op, x)},
           as_stream(stream));
  call.done();
  return {y, sum};
}

inline Tensor norm_layer(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, int64_t stream) {
  const char* op = "layer_norm";
  check_norm(op, x, weight);
  check(op, "bias", bias, 1, x.scalar_type());
  check_size(op, "bias's length", bias.size(0), weight.size(0));
  Tensor y = torch::stable::empty_like(x);
  Call call(op);
  call.with("x", x).with("weight", weight).with("bias", bias).with("y", y);
  layer_norm({data<void>(x), nullptr, data<void>(weight), y.mutable_data_ptr(), nullptr, static_cast<int>(rows_of(x)),
              static_cast<int>(weight.size(0)), static_cast<float>(eps), dtype_of(op, x), 0.0f, data<void>(bias)},
             as_stream(stream));
  call.done();
  return y;
}

inline Function function_of(const char* op, const std::string& name) {
  if (name == "silu") return Function::silu;
  if (name == "gelu") return Function::gelu;
  if (name == "gelu_tanh") return Function::gelu_tanh;
  if (name == "relu") return Function::relu;
  STD_TORCH_CHECK(name == "swiglu_clamped", op, ": there is no activation ", name);
  return Function::swiglu_clamped;
}

// One activation of [rows, columns]; with a gate there are half as many columns in the result.
template <class Launch>
Tensor activate(const char* op, const Tensor& x, Function function, double cap, int64_t parts, Launch launch) {
  check(op, "x", x, 2, x.scalar_type());
  STD_TORCH_CHECK(x.size(1) % parts == 0, op, ": x has ", x.size(1), " columns, an odd number");
  Tensor y = like(x, {x.size(0), x.size(1) / parts});
  Call call(op);
  call.with("x", x).with("y", y);
  if (y.numel())
    launch(ActivationArgs{data<void>(x), y.mutable_data_ptr(), static_cast<int>(y.size(0)),
                          static_cast<int>(y.size(1)), function, static_cast<float>(cap), dtype_of(op, x)});
  call.done();
  return y;
}

inline Tensor gated(const Tensor& gate_up, const std::string& activation, int64_t stream) {
  const char* op = "act_and_mul";
  return activate(op, gate_up, function_of(op, activation), 0, 2,
                  [&](const ActivationArgs& p) { act_and_mul(p, as_stream(stream)); });
}

inline Tensor activated(const Tensor& x, const std::string& activation, int64_t stream) {
  const char* op = "act";
  Function function = function_of(op, activation);
  STD_TORCH_CHECK(function != Function::swiglu_clamped, op, ": swiglu_clamped needs a gate");
  return activate(op, x, function, 0, 1, [&](const ActivationArgs& p) { act(p, as_stream(stream)); });
}

inline Tensor capped(const Tensor& x, double cap, int64_t stream) {
  STD_TORCH_CHECK(cap > 0, "softcap: the cap is ", cap, ", not above 0");
  return activate("softcap", x, Function::softcap, cap, 1,
                  [&](const ActivationArgs& p) { act(p, as_stream(stream)); });
}

}  // namespace minillm::cuda

#define MINILLM_ROW_OPS(m)                                                                                      \
  m.def("rms_norm(Tensor x, Tensor weight, float eps, float offset, int stream) -> Tensor");                    \
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, int stream) -> (Tensor, Tensor)");   \
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, int stream) -> Tensor");                   \
  m.def("act_and_mul(Tensor gate_up, str activation, int stream) -> Tensor");                                   \
  m.def("act(Tensor x, str activation, int stream) -> Tensor");                                                 \
  m.def("softcap(Tensor x, float cap, int stream) -> Tensor")

#define MINILLM_ROW_KERNELS(m)                  \
  m.impl("rms_norm", TORCH_BOX(&norm));         \
  m.impl("add_rms_norm", TORCH_BOX(&add_norm)); \
  m.impl("layer_norm", TORCH_BOX(&norm_layer)); \
  m.impl("act_and_mul", TORCH_BOX(&gated));     \
  m.impl("act", TORCH_BOX(&activated));         \
  m.impl("softcap", TORCH_BOX(&capped))
