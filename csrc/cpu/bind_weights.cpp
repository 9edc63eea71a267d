// Binds a model's weights by name.
//
//     bind_model     sizes                          -> a number that identifies the model in the other ops
//     bind_layer     one layer's caches, window and scale; once per layer, in order
//     bind_rope      the tables of angles
//     bind_weight    one tensor: its layer (-1: not part of a layer) and its name, "qkv.weight" or "q_norm"
//     finish_model   checks that nothing is missing; from now on the ops over a whole model accept the number
//
// The tables below list the names. A new weight is one member of its struct in kernels.h and one line here. A part
// of every matrix (a bias, a scale) is one member of `Matrix` and one line of `put_matrix`.

#include <map>
#include <mutex>
#include <string>

#include "bind.h"

namespace minillm::cpu {
namespace {

template <class Owner>
struct VectorPlace {
  const char* name;
  const void* Owner::*place;
  int64_t size;
  bool may_lack;
};

template <class Owner>
struct MatrixPlace {
  const char* name;
  Matrix Owner::*place;
  int64_t out, in;
};

template <class Owner>
struct Places {
  std::vector<VectorPlace<Owner>> vectors;
  std::vector<MatrixPlace<Owner>> matrices;
};

Places<LayerWeights> places_in_layer(const Model& m) {
  using W = LayerWeights;
  int64_t dim = m.heads.head_dim, q = m.heads.num_heads * dim, kv = m.heads.num_kv_heads * dim;
  return {{{"input_norm", &W::input_norm, m.hidden, false},
           {"q_norm", &W::q_norm, dim, true},
           {"k_norm", &W::k_norm, dim, true},
           {"post_attention_norm", &W::post_attention_norm, m.hidden, false}},
          {{"qkv", &W::qkv, q + 2 * kv, m.hidden},
           {"o", &W::o, m.hidden, q},
           {"gate_up", &W::gate_up, 2 * m.intermediate, m.hidden},
           {"down", &W::down, m.hidden, m.intermediate}}};
}

Places<Model> places_in_model(const Model& m) {
  return {{{"final_norm", &Model::final_norm, m.hidden, false}},
          {{"embedding", &Model::embedding, m.vocab, m.hidden}, {"head", &Model::head, m.vocab, m.hidden}}};
}

// ---- one weight -------------------------------------------------------------------------------

const void* vector_of(const char* what, const Tensor& t, int64_t size, DType dtype) {
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
    matrix.packed = found.packed;
    matrix.dtype = found.dtype;
  } else if (part == "bias") {
    matrix.bias = vector_of(what, t, place.out, dtype);
  } else {
    return false;
  }
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
  for (const auto& place : places.matrices)
    if (name.compare(0, dot, place.name) == 0)
      return put_matrix(what, place, owner.*place.place, name.substr(dot + 1), t, dtype);
  return false;
}

template <class Owner>
void require_all(const std::string& where, const Places<Owner>& places, const Owner& owner) {
  for (const auto& place : places.vectors)
    STD_TORCH_CHECK(owner.*place.place || place.may_lack, "finish_model: ", where, place.name, " is missing");
  for (const auto& place : places.matrices)
    STD_TORCH_CHECK((owner.*place.place).packed, "finish_model: ", where, place.name, ".weight is missing");
}

// ---- models by number -------------------------------------------------------------------------

std::mutex models_mutex;
std::map<int64_t, std::shared_ptr<BoundModel>> unfinished;
std::map<int64_t, std::shared_ptr<const BoundModel>> finished;
int64_t last_number = 0;

// Only the thread that is binding a model knows its number, so the model is changed without the lock.
BoundModel& find_unfinished(const char* op, int64_t number) {
  std::lock_guard lock(models_mutex);
  auto found = unfinished.find(number);
  STD_TORCH_CHECK(found != unfinished.end(), op, ": no model is being bound as ", number);
  return *found->second;
}

int64_t bind_model(int64_t num_heads, int64_t hidden, int64_t intermediate, int64_t vocab, double eps) {
  auto bound = std::make_shared<BoundModel>();
  bound->model = {};
  bound->model.heads.num_heads = num_heads;
  bound->model.hidden = hidden;
  bound->model.intermediate = intermediate;
  bound->model.vocab = vocab;
  bound->model.eps = static_cast<float>(eps);
  std::lock_guard lock(models_mutex);
  unfinished[++last_number] = bound;
  return last_number;
}

void bind_layer(int64_t number, const Tensor& k_cache, const Tensor& v_cache, int64_t window, double scale) {
  const char* op = "bind_layer";
  BoundModel& bound = find_unfinished(op, number);
  check_caches(op, k_cache, v_cache);
  if (!bound.cache) {
    int64_t heads = bound.model.heads.num_heads;
    STD_TORCH_CHECK(heads % k_cache.size(2) == 0, op, ": ", heads, " heads over ", k_cache.size(2), " kv heads");
    bound.cache = k_cache;
    bound.model.heads = heads_of(k_cache, heads, dtype_of(op, k_cache));
  }
  STD_TORCH_CHECK(k_cache.scalar_type() == bound.cache->scalar_type(), op, ": the caches differ in dtype");
  for (int d = 0; d < 4; d++) check_size(op, "a cache's shape", k_cache.size(d), bound.cache->size(d));
  bound.layers.push_back(
      {{}, cache_of(k_cache, v_cache), window, static_cast<float>(scale)});
  bound.kept.push_back(k_cache);
  bound.kept.push_back(v_cache);
}

void bind_rope(int64_t number, const Tensor& cos, const Tensor& sin) {
  const char* op = "bind_rope";
  BoundModel& bound = find_unfinished(op, number);
  STD_TORCH_CHECK(bound.cache, op, ": the layers come first");
  check_rope(op, cos, sin, bound.model.heads.head_dim);
  bound.model.rope = {data<float>(cos), data<float>(sin)};
  bound.max_positions = cos.size(0);
  bound.kept.push_back(cos);
  bound.kept.push_back(sin);
}

void bind_weight(int64_t number, int64_t layer, std::string name, const Tensor& tensor) {
  const char* op = "bind_weight";
  BoundModel& bound = find_unfinished(op, number);
  Model& m = bound.model;
  STD_TORCH_CHECK(bound.cache, op, ": the layers come first");
  int64_t count = bound.layers.size();
  STD_TORCH_CHECK(layer >= -1 && layer < count, op, ": layer ", layer, " of ", count);
  std::string what = std::string(op) + ": " + (layer < 0 ? "" : "layer " + std::to_string(layer) + " ") + name;
  bool known = layer < 0 ? put(what.c_str(), places_in_model(m), m, name, tensor, m.heads.dtype)
                         : put(what.c_str(), places_in_layer(m), bound.layers[layer].weights, name, tensor,
                               m.heads.dtype);
  STD_TORCH_CHECK(known, what, ": there is no weight of that name");
  bound.kept.push_back(tensor);
}

void finish_model(int64_t number) {
  const char* op = "finish_model";
  BoundModel& bound = find_unfinished(op, number);
  Model& m = bound.model;
  STD_TORCH_CHECK(!bound.layers.empty(), op, ": there are no layers");
  STD_TORCH_CHECK(m.rope.cos, op, ": rope is missing");
  require_all("", places_in_model(m), m);
  for (size_t i = 0; i < bound.layers.size(); i++)
    require_all("layer " + std::to_string(i) + " ", places_in_layer(m), bound.layers[i].weights);
  m.layers = bound.layers.data();
  m.num_layers = bound.layers.size();
  std::lock_guard lock(models_mutex);
  finished[number] = unfinished[number];
  unfinished.erase(number);
}

void unbind_model(int64_t number) {
  std::lock_guard lock(models_mutex);
  unfinished.erase(number);
  finished.erase(number);
}

}  // namespace

std::shared_ptr<const BoundModel> find_model(const char* op, int64_t number) {
  std::lock_guard lock(models_mutex);
  auto found = finished.find(number);
  STD_TORCH_CHECK(found != finished.end(), op, ": no model is bound as ", number);
  return found->second;
}

STABLE_TORCH_LIBRARY_FRAGMENT(minillm, m) {
  m.def("bind_model(int num_heads, int hidden, int intermediate_size, int vocab_size, float eps) -> int");
  m.def("bind_layer(int model, Tensor k_cache, Tensor v_cache, int window, float scale) -> ()");
  m.def("bind_rope(int model, Tensor cos, Tensor sin) -> ()");
  m.def("bind_weight(int model, int layer, str name, Tensor tensor) -> ()");
  m.def("finish_model(int model) -> ()");
  m.def("unbind_model(int model) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CPU, m) {
  m.impl("bind_layer", TORCH_BOX(&bind_layer));
  m.impl("bind_rope", TORCH_BOX(&bind_rope));
  m.impl("bind_weight", TORCH_BOX(&bind_weight));
}

STABLE_TORCH_LIBRARY_IMPL(minillm, CompositeExplicitAutograd, m) {
  m.impl("bind_model", TORCH_BOX(&bind_model));
  m.impl("finish_model", TORCH_BOX(&finish_model));
  m.impl("unbind_model", TORCH_BOX(&unbind_model));
}

}  // namespace minillm::cpu
