"""Lab 8: wrong kernels in the words of other authors, and odd ones that are right."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "pages ignored",
        "return table[key / block_size] * block_size + key % block_size;",
        "return key;",
        {"8.1": "is not used"},
    ),
    Slip("half a dot product", "d < kDim; d += 4", "d < kDim / 2; d += 4", {"8.2": "left out"}),
    Slip(
        "one barrier too few",
        "  __syncthreads();\n  if (threadIdx.x % 32 == 0)",
        "  if (threadIdx.x % 32 == 0)",
        {"8.3": "missing before scratch is written"},
    ),
    Slip("the sum keeps its scale", "  sum *= factor;\n", "", {"8.4": "sum is not multiplied"}),
    Slip("a key too many", "key < keys)", "key <= keys)", {"8.5": "past kv_len"}),
    Slip(
        "a row of heads",
        "head / (num_heads / num_kv_heads)",
        "head % num_kv_heads",
        {"8.5": "not h % num_kv_heads"},
    ),
    Slip(
        "one round",
        "first < keys; first += kThreads",
        "first < 1; first += kThreads",
        {"8.5": "only the first 128"},
    ),
]

BY_SUBTRACTION = """
  int page = key / block_size;
  return table[page] * block_size + (key - page * block_size);
"""
BY_LOOP = """
  int page = 0;
  for (; key >= block_size; key -= block_size) page++;
  return __ldg(table + page) * block_size + key;
"""
REMAINDER_FIRST = """
  const int offset = key % block_size, *entry = table + (key - offset) / block_size;
  return offset + *entry * block_size;
"""
MASKED = "  return table[key / block_size] * block_size + (key & (block_size - 1));\n"

FLOAT4 = """
  const float4* fours = reinterpret_cast<const float4*>(key);
  float sum = 0;
  for (int i = 0; i < kDim / 4; i++) {
    float4 four = fours[i];
    sum += q[4 * i] * four.x, sum += q[4 * i + 1] * four.y;
    sum += q[4 * i + 2] * four.z, sum += q[4 * i + 3] * four.w;
  }
  return sum;
"""
READ_ONLY = """
  const float4* halves = reinterpret_cast<const float4*>(key);
  float4 low = __ldg(halves), high = __ldg(halves + 1);
  return (q[0] * low.x + q[1] * low.y + q[2] * low.z + q[3] * low.w) +
         (q[4] * high.x + q[5] * high.y + q[6] * high.z + q[7] * high.w);
"""
BACKWARDS = """
  float sum = 0;
  for (int d = kDim - 4; d >= 0; d -= 4) {
    auto four = load_wide<Vec<float, 4>>(&key[d]);
    UNROLL
    for (int j = 3; j >= 0; j--) sum = fmaf(q[d + j], four.v[j], sum);
  }
  return sum;
"""
NARROW = """
  float sum = 0;
  for (int d = 0; d < kDim; d++) sum += key[d] * q[d];
  return sum;
"""

DOWN_AND_BACK = """
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_down_sync(0xffffffff, value, step));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = fmaxf(fmaxf(scratch[0], scratch[1]), fmaxf(scratch[2], scratch[3]));
  __syncthreads();
  return value;
"""
ONE_FOR_ALL = """
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int step = 1; step < 32; step <<= 1) value = max(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();
  if (lane == warp) scratch[warp] = value;
  __syncthreads();
  float found = lane < kWarps ? scratch[lane] : -INFINITY;
  for (int step = 2; step > 0; step /= 2) found = max(found, __shfl_xor_sync(~0u, found, step));
  return __shfl_sync(~0u, found, 0);
"""
UP = """
  for (int step = 1; step < 32; step *= 2) {
    float other = __shfl_up_sync(0xffffffff, value, step);
    value = other > value ? other : value;
  }
  if (threadIdx.x % 32 == 31) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float largest = scratch[0];
  for (int warp = 1; warp < kWarps; warp++) largest = fmaxf(largest, scratch[warp]);
  __syncthreads();
  return largest;
"""
FROM_ZERO = """
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float largest = 0;
  for (int i = 0; i < kWarps; i++) largest = scratch[i] > largest ? scratch[i] : largest;
  return largest;
"""

NEIGHBOUR = """
  int page = key / block_size, offset = key % block_size;
  volatile int next = offset + 1 < block_size ? table[(key + 1) / block_size] : 0;
  return table[page] * block_size + offset;
"""
AGAIN = """
  out *= factor, sum *= factor;
  for (int i = 0; i < count; i++) {
    volatile float first = values[offsets[i] + column];
    sum += weights[i];
    out += weights[i] * *(const volatile float*)(values + offsets[i] + column);
  }
"""

TWO_LOOPS = """
  sum *= factor, out *= factor;
  for (int i = 0; i < count; i++) sum += weights[i];
  for (int i = 0; i < count; i++) out += weights[i] * values[offsets[i] + column];
"""
OWN_SUMS = """
  float mine = 0, total = 0;
  const float* base = values + column;
  for (int i = count; i-- > 0;) mine = fmaf(weights[i], base[offsets[i]], mine), total += weights[i];
  out = out * factor + mine;
  sum = sum * factor + total;
"""
WHILE = """
  int i = 0;
  out = factor * out;
  sum = factor * sum;
  while (i != count) {
    float weight = weights[i];
    sum += weight;
    out += weight * __ldg(values + offsets[i++] + column);
  }
"""
PER_KEY = """
  for (int i = 0; i < count; i++) {
    sum = sum * factor + weights[i];
    out = out * factor + weights[i] * values[offsets[i] + column];
  }
"""

BARRIER_AT_THE_END = """
  int kv_head = head * num_kv_heads / num_heads;
  if (thread < kDim) q_row[thread] = q[row + thread] * scale;
  __syncthreads();
  for (int first = 0; first < keys; first += kThreads) {
    int count = min(kThreads, keys - first);
    float score = -INFINITY;
    if (thread < count) {
      offsets[thread] = (slot_of(table, first + thread, block_size) * num_kv_heads + kv_head) * kDim;
      score = dot(q_row, k_cache + offsets[thread]);
    }
    float before = max_score;
    max_score = fmaxf(max_score, block_max(score, scratch));
    weights[thread] = __expf(score - max_score);
    __syncthreads();
    float factor = expf(before - max_score);
    if (thread < kDim) add_values(column, sum, factor, weights, v_cache, offsets, count, thread);
    __syncthreads();
  }
  if (thread < kDim) out[row + thread] = column * (1.0f / sum);
"""
LAST_ROUND_FIRST = """
  const int kv_head = head / (num_heads / num_kv_heads), rounds = (keys + kThreads - 1) / kThreads;
  if (thread >= 32 && thread < 32 + kDim) q_row[thread - 32] = q[row + thread - 32];
  for (int round = rounds - 1; round >= 0; round--) {
    int first = round * kThreads;
    __syncthreads();
    bool exists = first + thread < keys;
    int slot = exists ? slot_of(table, first + thread, block_size) : 0;
    offsets[thread] = kDim * (kv_head + num_kv_heads * slot);
    float score = exists ? scale * dot(q_row, &k_cache[offsets[thread]]) : -INFINITY;
    float largest = fmaxf(block_max(score, scratch), max_score), factor = expf(max_score - largest);
    max_score = largest;
    weights[thread] = exists ? expf(score - largest) : 0;
    __syncthreads();
    int count = min(kThreads, keys - first);
    if (thread < kDim) add_values(column, sum, factor, weights, v_cache, offsets, count, thread);
  }
  if (thread < kDim) out[row + thread] = __fdividef(column, sum);
"""
FOUR_LANES_A_COLUMN = """
  int kv_head = head / (num_heads / num_kv_heads), lane_column = thread / 4, part = thread % 4;
  if (thread < kDim) q_row[thread] = q[row + thread];
  float mine = 0, total = 0;
  for (int first = 0; first < keys; first += kThreads) {
    __syncthreads();
    int key = first + thread, count = min(kThreads, keys - first);
    float score = -INFINITY;
    if (key < keys) {
      offsets[thread] = (slot_of(table, key, block_size) * num_kv_heads + kv_head) * kDim;
      score = dot(q_row, k_cache + offsets[thread]) * scale;
    }
    float largest = fmaxf(max_score, block_max(score, scratch)), factor = expf(max_score - largest);
    max_score = largest;
    weights[thread] = expf(score - largest);
    __syncthreads();
    mine *= factor, total *= factor;
    if (lane_column < kDim)
      for (int i = part; i < count; i += 4) {
        total += weights[i];
        mine += weights[i] * v_cache[offsets[i] + lane_column];
      }
  }
  for (int step = 1; step < 4; step *= 2) {
    mine += __shfl_xor_sync(0xffffffff, mine, step);
    total += __shfl_xor_sync(0xffffffff, total, step);
  }
  if (part == 0 && lane_column < kDim) out[row + lane_column] = mine / total;
"""
IDLE_THREADS_LEAVE = BARRIER_AT_THE_END.replace(
    "  __syncthreads();\n  for", "  if (thread >= kDim) return;\n  __syncthreads();\n  for", 1
)

REWRITES = [
    Rewrite("the offset by subtraction", {"8.1": BY_SUBTRACTION}),
    Rewrite("the entry by a loop", {"8.1": BY_LOOP}),
    Rewrite("the remainder first", {"8.1": REMAINDER_FIRST}),
    Rewrite("the next entry too", {"8.1": NEIGHBOUR}, {"8.1": "entry of key + 1 is read too"}),
    Rewrite("each value again", {"8.4": AGAIN}, {"8.4": "each value is read twice"}),
    Rewrite("a mask for a power of two", {"8.1": MASKED}, {"8.1": "need not be a power of two"}),
    Rewrite("float4", {"8.2": FLOAT4}),
    Rewrite("both halves through the read-only cache", {"8.2": READ_ONLY}),
    Rewrite("backwards, fused", {"8.2": BACKWARDS}),
    Rewrite("a plain loop", {"8.2": NARROW}, {"8.2": "4 bytes at a time"}),
    Rewrite("shuffles down, barrier at the end", {"8.3": DOWN_AND_BACK}),
    Rewrite("shuffles twice", {"8.3": ONE_FOR_ALL}),
    Rewrite("shuffles up", {"8.3": UP}),
    Rewrite("the largest so far is 0", {"8.3": FROM_ZERO}, {"8.3": "begins with 0"}),
    Rewrite("two loops", {"8.4": TWO_LOOPS}),
    Rewrite("sums of their own, backwards", {"8.4": OWN_SUMS}),
    Rewrite("a while loop", {"8.4": WHILE}),
    Rewrite("scaled for each key", {"8.4": PER_KEY}, {"8.4": "for each key: once"}),
    Rewrite("barrier at the end of a round", {"8.5": BARRIER_AT_THE_END}),
    Rewrite("the last round first", {"8.5": LAST_ROUND_FIRST}),
    Rewrite("four lanes for each column", {"8.5": FOUR_LANES_A_COLUMN}),
    Rewrite(
        "idle threads leave", {"8.5": IDLE_THREADS_LEAVE}, {"8.5": "add no values return before a barrier"}
    ),
]
