// Binds a model's weights by name.
//
//     bind_model      sizes                          -> a number that identifies the model in the other ops
//     bind_layer      one layer's caches, and the dtype of activations; once per layer, in order
//     bind_number     one number by name: of a layer, or with the layer -1 of the model (numbers.h)
//     bind_rope       one layer's table of angles
//     bind_positions  the learned positions, if there are any
//     bind_weight     one tensor by name: "qkv.weight", "input_norm.bias", "sinks"
//     finish_model    checks that nothing is missing; from now on the ops over a whole model accept the number
//
// The names of weights and numbers are in places.h and numbers.h.

#include <algorithm>
#include <map>
#include <mutex>

#include "bound.h"
#include "numbers.h"
#include "places.h"

namespace minillm {
namespace {

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

int64_t bind_model(int64_t num_heads, int64_t hidden, int64_t intermediate, int64_t vocab, std::string activation) {
  auto bound = std::make_shared<BoundModel>();
  Model& m = bound->model;
  m.heads.num_heads = num_heads;
  m.hidden = hidden;
  m.intermediate = intermediate;
  m.vocab = vocab;
  m.activation = activation_of("bind_model", activation);
  m.gated = true;
  m.embedding_scale = m.residual_scale = m.logits_divisor = 1;
  bound->max_positions = INT64_MAX;
  std::lock_guard lock(models_mutex);
  unfinished[++last_number] = bound;
  return last_number;
}

void bind_layer(int64_t number, const Tensor& k_cache, const Tensor& v_cache, ScalarType dtype) {
  const char* op = "bind_layer";
  BoundModel& bound = find_unfinished(op, number);
  check_caches(op, k_cache, v_cache);
  if (!bound.cache) {
    int64_t heads = bound.model.heads.num_heads;
    STD_TORCH_CHECK(heads % k_cache.size(2) == 0, op, ": ", heads, " heads over ", k_cache.size(2), " kv heads");
    STD_TORCH_CHECK(has_codes(k_cache) || k_cache.scalar_type() == dtype, op, ": the caches have another dtype than the model");
    bound.cache = k_cache;
    bound.dtype = dtype;
    bound.model.heads = heads_of(k_cache, heads, dtype_of(op, dtype));
  }
  STD_TORCH_CHECK(k_cache.scalar_type() == bound.cache->scalar_type(), op, ": the caches differ in dtype");
  for (int d = 0; d < 4; d++) check_size(op, "a cache's shape", k_cache.size(d), bound.cache->size(d));
  Layer layer = {};
  layer.cache = cache_of(k_cache, v_cache);
  layer.scale = 1;
  bound.layers.push_back(layer);
  bound.kept.push_back(k_cache);
  bound.kept.push_back(v_cache);
}

// Null for -1, which stands for the model itself.
Layer* find_layer(const char* op, BoundModel& bound, int64_t layer) {
  STD_TORCH_CHECK(bound.cache, op, ": the layers come first");
  int64_t count = bound.layers.size();
  STD_TORCH_CHECK(layer >= -1 && layer < count, op, ": layer ", layer, " of ", count);
  return layer < 0 ? nullptr : &bound.layers[layer];
}

std::string named(const char* op, int64_t layer, const std::string& name) {
  return std::string(op) + ": " + (layer < 0 ? "" : "layer " + std::to_string(layer) + " ") + name;
}

void bind_number(int64_t number, int64_t layer, std::string name, double value) {
  const char* op = "bind_number";
  BoundModel& bound = find_unfinished(op, number);
  Layer* owner = find_layer(op, bound, layer);
  std::string what = named(op, layer, name);
  STD_TORCH_CHECK(!bound.has_weights, what, ": the numbers come before the weights");
  bool known = owner ? put_number(what.c_str(), *owner, name, value) : put_number(what.c_str(), bound.model, name, value);
  STD_TORCH_CHECK(known, what, ": there is no number of that name");
}

void bind_rope(int64_t number, int64_t layer, const Tensor& cos, const Tensor& sin) {
  const char* op = "bind_rope";
  BoundModel& bound = find_unfinished(op, number);
  Layer* owner = find_layer(op, bound, layer);
  STD_TORCH_CHECK(owner, op, ": a table belongs to a layer");
  owner->rope = read_rope(op, cos, sin, bound.model.heads.head_dim);
  owner->has_rope = true;
  bound.max_positions = std::min(bound.max_positions, cos.size(0));
  bound.kept.push_back(cos);
  bound.kept.push_back(sin);
}

void bind_positions(int64_t number, const Tensor& table) {
  const char* op = "bind_positions";
  BoundModel& bound = find_unfinished(op, number);
  STD_TORCH_CHECK(bound.cache, op, ": the layers come first");
  check(op, "positions", table, 2, bound.dtype);
  check_size(op, "positions' width", table.size(1), bound.model.hidden);
  bound.model.positions = data<void>(table);
  bound.max_positions = std::min(bound.max_positions, table.size(0));
  bound.kept.push_back(table);
}

void bind_weight(int64_t number, int64_t layer, std::string name, const Tensor& tensor) {
  const char* op = "bind_weight";
  BoundModel& bound = find_unfinished(op, number);
  Model& m = bound.model;
  Layer* owner = find_layer(op, bound, layer);
  std::string what = named(op, layer, name);
  bool known = owner ? put(what.c_str(), places_in_layer(m, owner->experts), owner->weights, name, tensor, m.heads.dtype)
                     : put(what.c_str(), places_in_model(m), m, name, tensor, m.heads.dtype);
  STD_TORCH_CHECK(known, what, ": there is no weight of that name");
  bound.has_weights = true;
  bound.kept.push_back(tensor);
}

void finish_model(int64_t number) {
  const char* op = "finish_model";
  BoundModel& bound = find_unfinished(op, number);
  Model& m = bound.model;
  STD_TORCH_CHECK(!bound.layers.empty(), op, ": there are no layers");
  for (size_t i = 0; i < bound.layers.size(); i++) {
    const Layer& layer = bound.layers[i];
    STD_TORCH_CHECK(layer.has_rope, op, ": the rope of layer ", i, " is missing");
    require_all("layer " + std::to_string(i) + " ", places_in_layer(m, layer.experts), layer.weights);
    check_numbers(op, i, layer.experts);
  }
  require_all("", places_in_model(m), m);
  STD_TORCH_CHECK(m.final_norm.weight, op, ": final_norm.weight is missing");
  STD_TORCH_CHECK(m.gated || m.activation != Activation::swiglu_clamped, op, ": swiglu_clamped needs a gate");
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

MINILLM_FRAGMENT(MINILLM_NAMESPACE, m) {
  m.def("bind_model(int num_heads, int hidden, int intermediate_size, int vocab_size, str activation) -> int");
  m.def("bind_layer(int model, Tensor k_cache, Tensor v_cache, ScalarType dtype) -> ()");
  m.def("bind_number(int model, int layer, str name, float value) -> ()");
  m.def("bind_rope(int model, int layer, Tensor cos, Tensor sin) -> ()");
  m.def("bind_positions(int model, Tensor positions) -> ()");
  m.def("bind_weight(int model, int layer, str name, Tensor tensor) -> ()");
  m.def("finish_model(int model) -> ()");
  m.def("unbind_model(int model) -> ()");
}

MINILLM_IMPL(MINILLM_NAMESPACE, MINILLM_KEY, m) {
  m.impl("bind_layer", TORCH_BOX(&bind_layer));
  m.impl("bind_rope", TORCH_BOX(&bind_rope));
  m.impl("bind_positions", TORCH_BOX(&bind_positions));
  m.impl("bind_weight", TORCH_BOX(&bind_weight));
}

MINILLM_IMPL(MINILLM_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("bind_model", TORCH_BOX(&bind_model));
  m.impl("bind_number", TORCH_BOX(&bind_number));
  m.impl("finish_model", TORCH_BOX(&finish_model));
  m.impl("unbind_model", TORCH_BOX(&unbind_model));
}

}  // namespace minillm
