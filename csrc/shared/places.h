// The weights of a model and of its layers by name: where each is kept, and the size it must have.
//
// A new weight is one member of its struct in model.h and one line here. A part of every matrix (a bias, a scale) is
// one member of `Matrix` and one line of `put_matrix`.

#pragma once

#include "tensors.h"

namespace minillm {

template <class Owner>
struct NormPlace {
  const char* name;
  Norm Owner::*place;
  int64_t size, wide;  // the two sizes that it may have
};

template <class Owner>
struct VectorPlace {
  const char* name;
  const void* Owner::*place;
  int64_t size;
};

template <class Owner>
struct MatrixPlace {
  const char* name;
  Matrix Owner::*place;
  int64_t out, in;
};

// Matrices are required; norms and vectors may be absent.
template <class Owner>
struct Places {
  std::vector<NormPlace<Owner>> norms;
  std::vector<VectorPlace<Owner>> vectors;
  std::vector<MatrixPlace<Owner>> matrices;
};

inline Places<LayerWeights> places_in_layer(const Model& m, const Experts& e) {
  using W = LayerWeights;
  int64_t dim = m.heads.head_dim, q = m.heads.num_heads * dim, kv = m.heads.num_kv_heads * dim;
  Places<W> places = {{{"input_norm", &W::input_norm, m.hidden, m.hidden},
                       {"q_norm", &W::q_norm, dim, q},
                       {"k_norm", &W::k_norm, dim, kv},
                       {"attention_output_norm", &W::attention_output_norm, m.hidden, m.hidden},
                       {"mlp_norm", &W::mlp_norm, m.hidden, m.hidden},
                       {"mlp_output_norm", &W::mlp_output_norm, m.hidden, m.hidden}},
                      {{"sinks", &W::sinks, m.heads.num_heads}},
                      {{"qkv", &W::qkv, q + 2 * kv, m.hidden}, {"o", &W::o, m.hidden, q}}};
  auto add = [&](MatrixPlace<W> place) { places.matrices.push_back(place); };
  if (e.count) {
    add({"router", &W::router, e.count, m.hidden});
    add({"expert_gate_up", &W::expert_gate_up, e.count * expert_rows(2 * e.size), m.hidden});
    add({"expert_down", &W::expert_down, e.count * expert_rows(m.hidden), e.size});
  } else {
    add({"gate_up", &W::gate_up, (m.gated ? 2 : 1) * m.intermediate, m.hidden});
    add({"down", &W::down, m.hidden, m.intermediate});
  }
  return places;
}

inline Places<Model> places_in_model(const Model& m) {
  return {{{"final_norm", &Model::final_norm, m.hidden, m.hidden}},
          {},
          {{"embedding", &Model::embedding, m.vocab, m.hidden}, {"head", &Model::head, m.vocab, m.hidden}}};
}

inline const void* vector_of(const char* what, const Tensor& t, int64_t size, DType dtype) {
  STD_TORCH_CHECK(t.numel() == size && t.is_contiguous(), what, " has ", t.numel(), " elements, not ", size);
  STD_TORCH_CHECK(dtype_of(what, t) == dtype, what, " has another dtype than x");
  return data<void>(t);
}

// Puts one part of a matrix; `part` is the name after the dot, for example "weight". Returns false if unknown.
template <class Owner>
bool put_matrix(const char* what, const MatrixPlace<Owner>& place, Matrix& matrix, const std::string& part,
                const Tensor& t, DType dtype) {
  if (part == "weight") {
    Matrix found = matrix_of(what, t, place.out, place.in, dtype);
    matrix.weight = found.weight;
    matrix.dtype = found.dtype;
    matrix.form = found.form;
  } else if (part == "bias") {
    matrix.bias = vector_of(what, t, place.out, dtype);
  } else {
    return false;
  }
  return true;
}

// The same for a norm. Its first part decides which of the two sizes it has.
template <class Owner>
bool put_norm(const char* what, const NormPlace<Owner>& place, Norm& norm, const std::string& part, const Tensor& t,
              DType dtype) {
  if (part != "weight" && part != "bias") return false;
  if (!norm.size) norm.size = t.numel() == place.wide ? place.wide : place.size;
  (part == "weight" ? norm.weight : norm.bias) = vector_of(what, t, norm.size, dtype);
  return true;
}

// If `owner` has a place of that name, checks the tensor and puts it there. Returns whether there is such a place.
template <class Owner>
bool put(const char* what, const Places<Owner>& places, Owner& owner, const std::string& name, const Tensor& t,
         DType dtype) {
  for (const auto& place : places.vectors)
    if (name == place.name) {
      owner.*place.place = vector_of(what, t, place.size, dtype);
      return true;
    }
  size_t dot = name.find('.');
  if (dot == std::string::npos) return false;
  const std::string whole = name.substr(0, dot), part = name.substr(dot + 1);
  for (const auto& place : places.matrices)
    if (whole == place.name) return put_matrix(what, place, owner.*place.place, part, t, dtype);
  for (const auto& place : places.norms)
    if (whole == place.name) return put_norm(what, place, owner.*place.place, part, t, dtype);
  return false;
}

template <class Owner>
void require_all(const std::string& where, const Places<Owner>& places, const Owner& owner) {
  for (const auto& place : places.norms)
    STD_TORCH_CHECK((owner.*place.place).weight || !(owner.*place.place).bias, "finish_model: ", where, place.name,
                    ".weight is missing");
  for (const auto& place : places.matrices)
    STD_TORCH_CHECK((owner.*place.place).weight, "finish_model: ", where, place.name, ".weight is missing");
}

}  // namespace minillm
