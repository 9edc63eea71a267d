// A model's weights and caches, checked once and kept (bind_weights.cpp), and the input of a step over it (steps.cpp).
//
// A step then passes one number instead of hundreds of tensors: the dispatcher's work for those would take a tenth of
// the time that reading the weights takes.

#pragma once

#include "tensors.h"

namespace minillm {

struct DeviceState;  // of csrc/cuda: the memory of passes over the model

struct BoundModel {
  Model model;
  std::vector<Layer> layers;
  std::vector<Tensor> kept;     // the owners of the memory behind the pointers
  std::optional<Tensor> cache;  // the first layer's key cache; all caches have its shape
  ScalarType dtype;             // of activations; also of the caches, if these are not codes
  int64_t max_positions;        // the shortest table of angles or of learned positions
  bool has_weights;
  mutable std::shared_ptr<DeviceState> device;
};

std::shared_ptr<const BoundModel> find_model(const char* op, int64_t number);

// Read the index tensors of a step and check them against the cache and the number of positions. `read_slots` makes
// a batch of the tensors per token; `read_sequences` adds the tensors per sequence.
Batch read_slots(const char* op, const Tensor& positions, const Tensor& slot_mapping, int64_t num_tokens,
                 int64_t max_positions, const Tensor& cache);
void read_sequences(const char* op, Batch& batch, const Tensor& block_table, const Tensor& query_start,
                    const Tensor& kv_len, const Tensor& cache);

using Tensors = std::vector<Tensor>;

// The input of a pass; `rows` are the tensors of AttentionMetadata (minillm/ops/contract.py), in the order there.
PassArgs read_pass(const char* op, const BoundModel& bound, const Tensor& ids, const Tensors& rows);
// For ops that return one result per sequence: no sequence may be empty.
void require_rows(const char* op, const Batch& batch);

Draws read_draws(const char* op, int64_t rows, int64_t vocab, const Tensors& sampling, int64_t num_token_ids);

// The rows of logits that are drawn from: `rows` of `count`, or null for all of them in order.
const int64_t* read_draw_rows(const char* op, const Optional& rows, int64_t count);

AheadArgs read_ahead(const char* op, const BoundModel& bound, const Tensor& ids, const Tensors& rows,
                     const Tensor& depths, const Tensor& keys, const Tensors& filters, int64_t num_token_ids);

}  // namespace minillm
