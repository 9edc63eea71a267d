"""Lab 7: wrong kernels in the words of other authors, and odd ones that are right."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "reads a row too many",
        "first + row < n ? from",
        "first + row <= n ? from",
        {"7.1": "one row too many"},
    ),
    Slip(
        "a row does not see itself",
        "first_key + key <= first_row + row ?",
        "first_key + key < first_row + row ?",
        {"7.2": "the mask is <="},
    ),
    Slip("the sum keeps its scale", "s.sum * factor + sum", "s.sum + sum", {"7.3": "not multiplied"}),
    Slip("the output keeps its scale", "out[i] * factor;", "out[i];", {"7.4": "not multiplied"}),
    Slip(
        "V too early",
        "    __syncthreads();\n    load_tile(kv_tile, v",
        "    load_tile(kv_tile, v",
        {"7.5": "before V overwrites K"},
    ),
    Slip(
        "pitch untouched",
        "return row * (kDim + 4) + column;",
        "return row * kDim + column;",
        {"7.6": "lie in one bank"},
    ),
    Slip(
        "no mask",
        "first_key + key <= first_row + row ? sum * scale : -INFINITY",
        "scale * sum",
        {"7.2": "there is no mask"},
    ),
    Slip("the maximum is not stored", "  s.max = largest;\n", "", {"7.3": "maximum is not stored"}),
    Slip(
        "returns early",
        "  load_tile(q_tile, q + head, first_row, n);\n",
        "  load_tile(q_tile, q + head, first_row, n);\n  if (first_row + row >= n) return;\n",
        {"7.5": "return before a barrier"},
    ),
]

FLOAT4 = """
  for (int i = threadIdx.x; i < kTile * kDim / 4; i += kThreads) {
    int row = i * 4 / kDim, column = i * 4 % kDim;
    float4 four = make_float4(0, 0, 0, 0);
    if (first + row < n) four = *reinterpret_cast<const float4*>(from + (first + row) * kDim + column);
    tile[row][column] = four.x, tile[row][column + 1] = four.y;
    tile[row][column + 2] = four.z, tile[row][column + 3] = four.w;
  }
"""
ROW_BY_WARP = """
  int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
  for (int row = kTile - 1 - warp; row >= 0; row -= kThreads / warpSize) {
    bool inside = first + row < n;
    tile[row][lane] = 0;
    if (inside) tile[row][lane] = __ldg(&from[(first + row) * kDim + lane]);
  }
"""
POINTERS = """
  const float* source = from + first * kDim + threadIdx.x;
  int left = (n - first) * kDim - static_cast<int>(threadIdx.x);
  for (int i = 0; i < kEach; i++, source += kThreads, left -= kThreads) {
    int at = threadIdx.x + i * kThreads;
    tile[at >> 5][at & 31] = left > 0 ? *source : 0.f;
  }
"""
NO_ZEROS = """
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < kTile && first + row < n; row += 4)
    tile[row][lane] = from[(first + row) * kDim + lane];
"""
BY_COLUMN = """
  int row = threadIdx.x % 32, part = threadIdx.x / 32;
  for (int i = 0; i < 8; i++) {
    int column = part + 4 * i;
    tile[row][column] = first + row < n ? from[(first + row) * kDim + column] : 0;
  }
"""

D_OUTSIDE = """
  float sums[kEach] = {};
  for (int d = kDim - 1; d >= 0; d--) {
    float mine = q[row][d];
    for (int j = 0; j < kEach; j++) sums[j] = fmaf(mine, keys[part + j * kParts][d], sums[j]);
  }
  for (int j = 0; j < kEach; j++) {
    scores[j] = scale * sums[j];
    if (first_key + part + j * kParts > first_row + row) scores[j] = -INFINITY;
  }
"""
IN_REGISTERS = """
  float mine[kDim];
  for (int d = 0; d < kDim; d++) mine[d] = q[row][d] * scale;
  int last = first_row + row - first_key;
  for (int key = part, j = 0; key < kTile; key += kParts, j++) {
    scores[j] = -INFINITY;
    if (key > last) continue;
    float even = 0, odd = 0;
    for (int d = 0; d < kDim; d += 2) even += mine[d] * keys[key][d], odd += mine[d + 1] * keys[key][d + 1];
    scores[j] = even + odd;
  }
"""
LAMBDA = """
  auto product = [&](int key) {
    float sum = 0;
    for (int d = 0; d < kDim; d += 4)
      sum += (q[row][d] * keys[key][d] + q[row][d + 1] * keys[key][d + 1]) +
             (q[row][d + 2] * keys[key][d + 2] + q[row][d + 3] * keys[key][d + 3]);
    return sum;
  };
  for (int j = 0; j < kEach; j++) {
    int key = part + j * kParts, distance = first_row + row - first_key - key;
    scores[j] = distance >= 0 ? product(key) * scale : -INFINITY;
  }
"""
OWN_KEY_HIDDEN = """
  for (int j = 0; j < kEach; j++) {
    int key = j * 4 + part, distance = (first_row + row) - (first_key + key);
    if (distance <= 0) {
      scores[j] = -INFINITY;
    } else {
      scores[j] = 0;
      for (int d = 0; d < 32; d++) scores[j] += scale * q[row][d] * keys[key][d];
    }
  }
"""

DOWN_AND_BACK = """
  const unsigned all = 0xffffffff;
  float largest = s.max;
  for (float score : scores) largest = fmaxf(largest, score);
  largest = fmaxf(largest, __shfl_down_sync(all, largest, 2, 4));
  largest = fmaxf(largest, __shfl_down_sync(all, largest, 1, 4));
  largest = __shfl_sync(all, largest, 0, 4);
  float sum = 0;
  for (float& score : scores) sum += score = __expf(score - largest);
  sum += __shfl_down_sync(all, sum, 2, 4);
  sum += __shfl_down_sync(all, sum, 1, 4);
  sum = __shfl_sync(all, sum, 0, 4);
  float factor = s.max == -INFINITY ? 0 : __expf(s.max - largest);
  s = {largest, s.sum * factor + sum};
  return factor;
"""
OTHER_ORDER = """
  float before = s.max, sum = 0;
  for (int j = kEach - 1; j >= 0; j--) s.max = max(s.max, scores[j]);
  s.max = max(s.max, __shfl_xor_sync(0xffffffff, s.max, 2));
  s.max = max(s.max, __shfl_xor_sync(0xffffffff, s.max, 1));
  for (int j = kEach - 1; j >= 0; j--) sum += scores[j] = exp2f((scores[j] - s.max) * 1.44269504f);
  sum += __shfl_xor_sync(0xffffffff, sum, 2);
  sum += __shfl_xor_sync(0xffffffff, sum, 1);
  float factor = exp2f((before - s.max) * 1.44269504f);
  s.sum *= factor;
  s.sum += sum;
  return factor;
"""
GATHER = """
  int first = threadIdx.x % 32 / kParts * kParts;
  float mine = s.max;
  for (int j = 0; j < kEach; j++) mine = fmaxf(mine, scores[j]);
  float largest = mine;
  for (int i = 0; i < kParts; i++) largest = fmaxf(largest, __shfl_sync(0xffffffff, mine, first + i));
  float sum = 0, total = 0;
  for (int j = 0; j < kEach; j++) scores[j] = expf(scores[j] - largest), sum += scores[j];
  for (int i = 0; i < kParts; i++) total += __shfl_sync(0xffffffff, sum, first + i);
  float factor = expf(s.max - largest);
  s.max = largest, s.sum = fmaf(s.sum, factor, total);
  return factor;
"""
NO_SHUFFLES = """
  float old = s.max;
  for (int j = 0; j < kEach; j++) s.max = max(s.max, scores[j]);
  float factor = expf(old - s.max);
  s.sum *= factor;
  for (int j = 0; j < kEach; j++) s.sum += scores[j] = expf(scores[j] - s.max);
  return factor;
"""
FACTOR_PER_KEY = """
  float largest = s.max;
  for (int j = 0; j < kEach; j++) largest = fmaxf(largest, scores[j]);
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
  float factor = expf(s.max - largest), sum = 0;
  s.max = largest;
  for (int j = 0; j < kEach; j++) {
    s.sum = s.sum * factor;
    sum += scores[j] = expf(scores[j] - largest);
  }
  sum += __shfl_xor_sync(0xffffffff, sum, 1);
  sum += __shfl_xor_sync(0xffffffff, sum, 2);
  s.sum += sum;
  return factor;
"""

KEY_OUTSIDE = """
  for (float& sum : out) sum *= factor;
  for (int key = kTile - 1; key >= 0; key--) {
    float weight = weights[row][key];
    for (int i = 0; i < kEach; i++) out[i] = fmaf(weight, values[key][part + i * kParts], out[i]);
  }
"""
TWO_SUMS = """
  for (int column = part, i = 0; i < kEach; i++, column += kParts) {
    float even = 0, odd = 0;
    for (int key = 0; key < kTile; key += 2) {
      even += weights[row][key] * values[key][column];
      odd += weights[row][key + 1] * values[key + 1][column];
    }
    out[i] = out[i] * factor + (even + odd);
  }
"""
WEIGHTS_FIRST = """
  float mine[kTile];
  for (int key = 0; key < kTile; key++) mine[key] = weights[row][key];
  for (int i = 0; i < kEach; i++) {
    float sum = 0;
    for (int key = 0; key < kTile; key++) sum += mine[key] * values[key][i * kParts + part];
    out[i] = sum + factor * out[i];
  }
"""
SCALED_EACH_TIME = """
  for (int key = 0; key < kTile; key++)
    for (int i = 0; i < kEach; i++) out[i] = out[i] * factor + weights[row][key] * values[key][part + 4 * i];
"""

FROM_THE_DIAGONAL = """
  load_tile(q_tile, q + head, first_row, n);
  for (int tile = blockIdx.x; tile >= 0; tile--) {
    load_tile(kv_tile, k + head, tile * kTile, n);
    __syncthreads();
    score_keys(scores, q_tile, kv_tile, row, part, first_row, tile * kTile, scale);
    float factor = take_scores(s, scores);
    for (int j = 0; j < kEach; j++) weights[row][part + j * kParts] = scores[j];
    __syncthreads();
    load_tile(kv_tile, v + head, tile * kTile, n);
    __syncthreads();
    add_values(sums, factor, weights, kv_tile, row, part);
    __syncthreads();
  }
  if (first_row + row >= n) return;
  float inverse = 1.0f / s.sum;
  float* mine = out + head + (first_row + row) * kDim + part;
  for (int i = 0; i < kEach; i++) mine[i * kParts] = sums[i] * inverse;
"""
TWO_TILES = """
  SHARED(Tile, v_tile, );
  load_tile(q_tile, q + head, first_row, n);
  for (int first_key = 0; first_key <= first_row; first_key += kTile) {
    if (first_key > 0) __syncthreads();
    load_tile(kv_tile, k + head, first_key, n);
    load_tile(v_tile, v + head, first_key, n);
    __syncthreads();
    score_keys(scores, q_tile, kv_tile, row, part, first_row, first_key, scale);
    float factor = take_scores(s, scores);
    for (int j = 0; j < kEach; j++) weights[row][part + j * kParts] = scores[j];
    __syncwarp();
    add_values(sums, factor, weights, v_tile, row, part);
  }
  for (int i = 0; i < kEach; i++)
    if (int at = first_row + row; at < n)
      out[head + at * kDim + part + i * kParts] = __fdividef(sums[i], s.sum);
"""
SCORES_IN_SHARED_MEMORY = """
  load_tile(q_tile, q + head, first_row, n);
  for (int first_key = 0; first_key <= first_row; first_key += kTile) {
    __syncthreads();
    load_tile(kv_tile, k + head, first_key, n);
    __syncthreads();
    score_keys(scores, q_tile, kv_tile, row, part, first_row, first_key, scale);
    for (int j = 0; j < kEach; j++) weights[row][part + j * kParts] = scores[j];
    __syncwarp();
    // Pass 1: the maximum of the whole row. Pass 2: the weights.
    float largest = s.max, sum = 0;
    for (int key = 0; key < kTile; key++) largest = fmaxf(largest, weights[row][key]);
    for (int key = 0; key < kTile; key++) sum += expf(weights[row][key] - largest);
    float factor = expf(s.max - largest);
    s.max = largest, s.sum = s.sum * factor + sum;
    __syncwarp();
    for (int j = 0; j < kEach; j++) weights[row][part + j * kParts] = expf(scores[j] - largest);
    __syncthreads();
    load_tile(kv_tile, v + head, first_key, n);
    __syncthreads();
    add_values(sums, factor, weights, kv_tile, row, part);
  }
  if (first_row + row < n)
    for (int i = part; i < kDim; i += kParts)
      out[head + (first_row + row) * kDim + i] = sums[i / kParts] / s.sum;
"""
ALL_TILES = FROM_THE_DIAGONAL.replace(
    "for (int tile = blockIdx.x; tile >= 0; tile--) {",
    "for (int tile = 0; tile < (n + kTile - 1) / kTile; tile++) {",
)
Q_EACH_TIME = FROM_THE_DIAGONAL.replace(
    "    load_tile(kv_tile, k", "    load_tile(q_tile, q + head, first_row, n);\n    load_tile(kv_tile, k"
).replace("\n  load_tile(q_tile", "\n  if (n < 0) load_tile(q_tile")

REWRITES = [
    Rewrite("float4 loads", {"7.1": FLOAT4}),
    Rewrite("a row for each warp, from the last on", {"7.1": ROW_BY_WARP}),
    Rewrite("a pointer that moves", {"7.1": POINTERS}),
    Rewrite("stops at the last row", {"7.1": NO_ZEROS}, {"7.1": "keep what the tile held before"}),
    Rewrite("a row for each lane", {"7.1": BY_COLUMN}, {"7.1": "let the column change fastest"}),
    Rewrite("d in the outer loop", {"7.2": D_OUTSIDE}),
    Rewrite("q in registers", {"7.2": IN_REGISTERS}),
    Rewrite("a function in the function", {"7.2": LAMBDA}),
    Rewrite("hidden if not later", {"7.2": OWN_KEY_HIDDEN}, {"7.2": "the mask is <="}),
    Rewrite("shuffles down and back", {"7.3": DOWN_AND_BACK}),
    Rewrite("shuffles in the other order", {"7.3": OTHER_ORDER}),
    Rewrite("each thread gathers the four", {"7.3": GATHER}),
    Rewrite("nobody is asked", {"7.3": NO_SHUFFLES}, {"7.3": "no shuffle"}),
    Rewrite("the factor in the loop", {"7.3": FACTOR_PER_KEY}, {"7.3": "for each of the eight keys"}),
    Rewrite("keys in the outer loop", {"7.4": KEY_OUTSIDE}),
    Rewrite("two sums", {"7.4": TWO_SUMS}),
    Rewrite("weights in registers", {"7.4": WEIGHTS_FIRST}),
    Rewrite("scaled for each key", {"7.4": SCALED_EACH_TIME}, {"7.4": "for each key: once"}),
    Rewrite("from the diagonal back", {"7.5": FROM_THE_DIAGONAL}),
    Rewrite("a tile for V of its own", {"7.5": TWO_TILES}),
    Rewrite("two passes over scores in shared memory", {"7.5": SCORES_IN_SHARED_MEMORY}),
    Rewrite("all tiles", {"7.5": ALL_TILES}, {"7.5": "whose keys no row of the block sees"}),
    Rewrite("q for each tile", {"7.5": Q_EACH_TIME}, {"7.5": "q is loaded again"}),
    Rewrite("a word of padding", {"7.6": "  return row * 33 + column;\n"}),
    Rewrite("a swizzle", {"7.6": "  return row * kDim + (column ^ (row % 8 * 4));\n"}),
    Rewrite("rotated rows", {"7.6": "  return kDim * row + (row + column) % kDim;\n"}),
    Rewrite(
        "shifted for eight rows at once",
        {"7.6": "  return row * kDim + (column + row / 8) % kDim;\n"},
        {"7.6": "lie in one bank"},
    ),
    Rewrite(
        "stored by columns, padded", {"7.6": "  return column * kDim + row;\n"}, {"7.6": "stored by columns"}
    ),
]
