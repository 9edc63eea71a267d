// The numbers of a model and of its layers by name: those of minillm/config/model.py that a pass needs. A new number is
// one member of its struct in model.h and one line here.

#pragma once

#include "tensors.h"

namespace minillm {

template <class Owner>
struct NumberPlace {
  const char* name;
  void (*put)(Owner& owner, double value);
  bool is_size = false;  // the others may be anything that float has: a config may ask for huge numbers
};

inline const NumberPlace<Model> kModelNumbers[] = {
    {"norm_eps", [](Model& m, double value) { m.eps = static_cast<float>(value); }},
    {"norm_offset", [](Model& m, double value) { m.norm_offset = static_cast<float>(value); }},
    {"gated", [](Model& m, double value) { m.gated = value != 0; }},
    {"embedding_scale", [](Model& m, double value) { m.embedding_scale = static_cast<float>(value); }},
    {"residual_scale", [](Model& m, double value) { m.residual_scale = static_cast<float>(value); }},
    {"logits_divisor", [](Model& m, double value) { m.logits_divisor = static_cast<float>(value); }},
    {"logits_softcap", [](Model& m, double value) { m.logits_softcap = static_cast<float>(value); }},
};

inline const NumberPlace<Layer> kLayerNumbers[] = {
    {"window", [](Layer& l, double value) { l.window = static_cast<int64_t>(value); }, true},
    {"scale", [](Layer& l, double value) { l.scale = static_cast<float>(value); }},
    {"softcap", [](Layer& l, double value) { l.softcap = static_cast<float>(value); }},
    {"experts.count", [](Layer& l, double value) { l.experts.count = static_cast<int64_t>(value); }, true},
    {"experts.per_token", [](Layer& l, double value) { l.experts.per_token = static_cast<int64_t>(value); }, true},
    {"experts.size", [](Layer& l, double value) { l.experts.size = static_cast<int64_t>(value); }, true},
    {"experts.renormalize", [](Layer& l, double value) { l.experts.renormalize = value != 0; }},
};

// Puts the number of that name; returns false if there is none.
template <class Owner, size_t N>
bool put_among(const NumberPlace<Owner> (&places)[N], const char* what, Owner& owner, const std::string& name,
               double value) {
  constexpr double most = int64_t{1} << 40;  // far above every size; no conversion to int64_t overflows
  for (const auto& place : places) {
    if (name != place.name) continue;
    STD_TORCH_CHECK(!place.is_size || (value >= -most && value <= most), what, ": ", value, " is no number of a size");
    return place.put(owner, value), true;
  }
  return false;
}

inline bool put_number(const char* what, Model& m, const std::string& name, double value) {
  return put_among(kModelNumbers, what, m, name, value);
}
inline bool put_number(const char* what, Layer& layer, const std::string& name, double value) {
  return put_among(kLayerNumbers, what, layer, name, value);
}

inline void check_numbers(const char* op, size_t layer, const Experts& e) {
  if (!e.count) return;
  STD_TORCH_CHECK(e.count > 0 && e.size > 0 && e.per_token > 0 && e.per_token <= e.count, op, ": layer ", layer,
                  " has ", e.count, " experts of size ", e.size, ", and a token uses ", e.per_token);
}

}  // namespace minillm
