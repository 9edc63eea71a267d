// The launches of mixture.h, each with the memory that it may touch.

#include "mixture.h"

#include "device.h"
#include "rungs.h"
#include "touches.h"

namespace minillm::cuda {
namespace {

// y = x W^T + bias, the rows of each expert with its matrix.
void multiply(const Mixture& m, const char* name, const Matrix& w, const int32_t* starts, const void* x, void* y,
              int64_t pairs, int64_t out, int64_t in, Stream stream) {
  const int64_t count = m.experts.count, pitch = expert_rows(out), width = width_of(m.dtype);
  touches({{name, w.weight, matrix_bytes(w, count * pitch, in, width)}, {"order", w.form.order, in * 4},
           {"bias", w.bias, count * pitch * width},
           {"starts", starts, (count + 1) * 4}, {"x_rows", x, pairs * in * width}, {"y_rows", y, pairs * out * width}});
  cuda::experts({{x, w.weight, w.bias, y, static_cast<int>(pairs), static_cast<int>(in), static_cast<int>(out), m.dtype,
                  false, w.form},
                 starts, static_cast<int>(count), static_cast<int>(pitch)},
                m.tensor_cores, stream);
}

}  // namespace

MixtureScratch MixtureScratch::cut(char* base, const Experts& e, int64_t hidden, int64_t width, int64_t rows, size_t& end) {
  auto piece = [&](int64_t bytes) {
    char* at = base ? base + end : nullptr;
    end += aligned(bytes);
    return at;
  };
  const int64_t pairs = rows * e.per_token;
  MixtureScratch s = {};
  s.starts = reinterpret_cast<int32_t*>(piece((e.count + 1) * 4));
  s.order = reinterpret_cast<int64_t*>(piece(pairs * 8));
  s.place = reinterpret_cast<int64_t*>(piece(pairs * 8));
  s.x = piece(pairs * hidden * width);
  s.gate_up = piece(pairs * 2 * e.size * width);
  s.gated = piece(pairs * e.size * width);
  s.outputs = piece(pairs * hidden * width);
  return s;
}

void mix(const Mixture& m, const Routed& r, const MixtureScratch& s, void* y, Stream stream) {
  const Experts& e = m.experts;
  const int64_t pairs = r.rows * e.per_token, width = width_of(m.dtype);
  const int hidden = static_cast<int>(m.hidden), size = static_cast<int>(e.size), per_token = static_cast<int>(e.per_token);
  touches({{"chosen", r.chosen, pairs * 8}, {"starts", s.starts, (e.count + 1) * 4}, {"order", s.order, pairs * 8},
           {"place", s.place, pairs * 8}});
  group({r.chosen, s.starts, s.order, s.place, static_cast<int>(pairs), per_token, static_cast<int>(e.count)}, stream);
  touches({{"x", r.x, r.rows * hidden * width}, {"order", s.order, pairs * 8}, {"x_rows", s.x, pairs * hidden * width}});
  gather({r.x, s.order, nullptr, nullptr, s.x, static_cast<int>(pairs), hidden, 1, m.dtype}, stream);
  multiply(m, "gate_up", m.gate_up, s.starts, s.x, s.gate_up, pairs, 2 * size, hidden, stream);
  touches({{"x_rows", s.gate_up, pairs * 2 * size * width}, {"y_rows", s.gated, pairs * size * width}});
  act_and_mul({s.gate_up, s.gated, static_cast<int>(pairs), size, m.activation, 0, m.dtype}, stream);
  multiply(m, "down", m.down, s.starts, s.gated, s.outputs, pairs, hidden, size, stream);
  touches({{"outputs", s.outputs, pairs * hidden * width}, {"weights", r.weights, pairs * 4},
           {"place", s.place, pairs * 8}, {"y", y, r.rows * hidden * width}});
  combine({s.outputs, r.weights, s.place, y, static_cast<int>(r.rows), hidden, per_token, m.dtype}, stream);
}

}  // namespace minillm::cuda
