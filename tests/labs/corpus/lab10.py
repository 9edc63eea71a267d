"""Lab 10: wrong kernels in the words of other authors, and odd ones that are right."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip("half of a", " + t + i / 4 * 8);", " + t);", {"10.1": "8 further are missing in a"}),
    Slip(
        "x stays",
        "load_by_hand(f, w + k, x + k, stride)",
        "load_by_hand(f, w + k, x, stride)",
        {"10.2": "only w"},
    ),
    Slip("row 40 of 40", "first + row < rows &&", "first + row <= rows &&", {"10.5": "one row too many"}),
    Slip(
        "no barrier at the end",
        "    }\n    __syncthreads();\n  }\n",
        "    }\n  }\n",
        {"10.6": "missing after a stage was multiplied"},
    ),
    Slip("four rows", "chunk ^ row % 8", "chunk ^ row % 4", {"10.4": "2.00 wavefronts"}),
]

BY_WORDS = """
  int lane = threadIdx.x & 31;
  const bfloat16 *upper = w + (lane >> 2) * stride + 2 * (lane & 3), *lower = upper + 8 * stride;
  const bfloat16* other = x + (lane >> 2) * stride + 2 * (lane & 3);
  uint32_t* a = reinterpret_cast<uint32_t*>(f.a.v);
  uint32_t* b = reinterpret_cast<uint32_t*>(f.b.v);
  a[0] = *reinterpret_cast<const uint32_t*>(upper), a[1] = *reinterpret_cast<const uint32_t*>(lower);
  a[2] = *reinterpret_cast<const uint32_t*>(upper + 8), a[3] = *reinterpret_cast<const uint32_t*>(lower + 8);
  b[0] = *reinterpret_cast<const uint32_t*>(other), b[1] = *reinterpret_cast<const uint32_t*>(other + 8);
"""
PAIR_BY_PAIR = """
  const int lane = threadIdx.x % 32, row = lane / 4, column = (lane - row * 4) * 2;
  auto pair = [&](bfloat16* to, const bfloat16* from) {
    Vec<bfloat16, 2> both = load_wide<Vec<bfloat16, 2>>(from);
    to[0] = both.v[0];
    to[1] = both.v[1];
  };
  pair(f.b.v + 2, &x[row * stride + column + 8]);
  pair(f.b.v, &x[row * stride + column]);
  for (int right = 0; right < 2; right++)
    for (int down = 0; down < 2; down++)
      pair(f.a.v + 4 * right + 2 * down, &w[(row + 8 * down) * stride + column + 8 * right]);
"""
BY_MASKS = """
  int lane = threadIdx.x % 32;
  Vec<bfloat16, 2> pairs[6];
  for (int i = 0; i < 6; i++) {
    const bfloat16* from = i < 4 ? w : x;
    int row = lane / 4 + (i < 4 && i & 1 ? 8 : 0), right = i < 4 ? i >> 1 : i & 1;
    pairs[i] = load_wide<Vec<bfloat16, 2>>(from + row * stride + (lane & 3) * 2 + right * 8);
  }
  for (int i = 0; i < 8; i++) f.a.v[i] = pairs[i / 2].v[i % 2];
  for (int i = 0; i < 4; i++) f.b.v[i] = pairs[4 + i / 2].v[i % 2];
"""
ONE_BY_ONE = """
  int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 8; i++)
    f.a.v[i] = w[(row + (i & 2 ? 8 : 0)) * stride + column + (i & 1) + (i & 4 ? 8 : 0)];
  for (int i = 0; i < 4; i++) f.b.v[i] = x[row * stride + column + (i & 1) + (i & 2 ? 8 : 0)];
"""

ONE_AHEAD = """
  int lane = threadIdx.x % 32;
  float c[4] = {0, 0, 0, 0};
  Fragments now, next;
  load_by_hand(now, w, x, stride);
  for (int tile = 0; tile < columns / 16; tile++) {
    if (16 * (tile + 1) < columns) load_by_hand(next, w + 16 * (tile + 1), x + 16 * (tile + 1), stride);
    mma_m16n8k16(c, now.a.v, now.b.v);
    now = next;
  }
  float* to = y + lane % 4 * 32 + lane / 4;
  to[0] = c[0], to[16] = c[1], to[8] = c[2], to[24] = c[3];
"""
POINTERS = """
  float c[2][2] = {};
  float(&flat)[4] = reinterpret_cast<float(&)[4]>(c);
  const bfloat16* end = w + columns;
  while (w != end) {
    Fragments f;
    load_by_hand(f, w, x, stride);
    mma_m16n8k16(flat, f.a.v, f.b.v);
    w += 16, x += 16;
  }
  int output = threadIdx.x % 32 / 4, token = threadIdx.x % 4 * 2;
  for (int down = 0; down < 2; down++)
    for (int right = 0; right < 2; right++) y[(token + right) * 16 + output + 8 * down] = c[down][right];
"""
TWO_A_ROUND = """
  float c[4] = {};
  Fragments f;
  int k = 0;
  if (columns % 32) load_by_hand(f, w, x, stride), mma_m16n8k16(c, f.a.v, f.b.v), k = 16;
  for (; k < columns; k += 32) {
    load_by_hand(f, w + k, x + k, stride);
    mma_m16n8k16(c, f.a.v, f.b.v);
    load_by_hand(f, w + k + 16, x + k + 16, stride);
    mma_m16n8k16(c, f.a.v, f.b.v);
  }
  int first = threadIdx.x % 32 / 4 + threadIdx.x % 4 * 32;
  for (int i = 3; i >= 0; i--) y[first + i / 2 * 8 + i % 2 * 16] = c[i];
"""
ODD_AND_EVEN = """
  float even[4] = {}, odd[4] = {};
  Fragments f;
  for (int k = 0; k < columns; k += 16) {
    load_by_hand(f, w + k, x + k, stride);
    if (k / 16 % 2 == 0)
      mma_m16n8k16(even, f.a.v, f.b.v);
    else
      mma_m16n8k16(odd, f.a.v, f.b.v);
  }
  int first = threadIdx.x % 32 / 4 + threadIdx.x % 4 * 32;
  for (int i = 0; i < 4; i++) y[first + i / 2 * 8 + i % 2 * 16] = even[i] + odd[i];
"""

HALVES = """
  int lane = threadIdx.x % 32, row = first_row + lane % 16, chunk = step * 2;
  load_matrices<2>(&f.a.v[0], w + place(row, chunk));
  load_matrices<2>(&f.a.v[4], w + place(row, chunk + 1));
  load_matrices<2>(&f.b.v[0], x + place(lane & 7, chunk + (lane >> 3 & 1)));
"""
FOUR_FOR_X = """
  int lane = threadIdx.x & 31, matrix = lane >> 3, row = lane & 7;
  Vec<bfloat16, 8> twice;
  load_matrices<4>(twice.v, &x[place(row, 2 * step + (matrix & 1))]);
  for (int i = 0; i < 4; i++) f.b.v[i] = twice.v[i];
  load_matrices<4>(f.a.v, &w[place(first_row + row + (matrix & 1) * 8, 2 * step + (matrix >> 1))]);
"""
BY_MATRIX = """
  int i = threadIdx.x % 32, matrix = i / 8;
  int down = matrix == 1 || matrix == 3 ? 8 : 0, right = matrix >= 2 ? 1 : 0;
  const bfloat16* mine = w + place(first_row + down + i % 8, step + step + right);
  const bfloat16* other = x + place(i % 8, step + step + (matrix == 1 ? 1 : 0));
  load_matrices<4>(f.a.v, mine);
  load_matrices<2>(f.b.v, other);
"""
PLAIN_ROWS = """
  int lane = threadIdx.x % 32, column = 16 * step;
  load_matrices<4>(f.a.v, &w[(first_row + lane % 16) * 64 + column + lane / 16 * 8]);
  load_matrices<2>(f.b.v, &x[(lane % 8) * 64 + column + (lane / 8 % 2) * 8]);
"""

EVERY_FOURTH = """
  int chunk = threadIdx.x % 8;
  bool has_columns = column + 8 * chunk < columns;
  for (int row = threadIdx.x / 8; row < kRows; row += kThreads / 8) {
    bool inside = has_columns && first + row < rows;
    const bfloat16* source = &from[(first + row) * columns + column + 8 * chunk];
    copy_async_or_zero(&stage[place(row, chunk)], source, inside);
  }
"""
BACKWARDS = """
  for (int i = kRows * kChunks - 1 - threadIdx.x; i >= 0; i -= kThreads) {
    int chunk = i & 7, row = i >> 3, left = columns - column - chunk * kWide;
    const bfloat16* source = from + (row + first) * columns + column + chunk * kWide;
    copy_async_or_zero(stage + place(row, chunk), source, left > 0 && rows - first > row);
  }
"""
ZEROS_BY_HAND = """
  Vec<bfloat16, 8> zeros = {};
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    int row = i / kChunks, chunk = i % kChunks, at = column + chunk * kWide;
    bfloat16* to = stage + place(row, chunk);
    if (first + row < rows && at < columns)
      copy_async<16>(to, from + (first + row) * columns + at);
    else
      store_wide(to, zeros);
  }
"""
WITHOUT_ZEROS = """
  for (int row = threadIdx.x / 8; row < kRows; row += 8) {
    int at = column + threadIdx.x % 8 * 8;
    if (first + row >= rows || at >= columns) continue;
    copy_async<16>(stage + place(row, threadIdx.x % 8), from + (first + row) * columns + at);
  }
"""

ONE_BARRIER = """
  copy_rows<kOut>(w_stages[0], weight, first_out, out, in, 0);
  copy_rows<kTokens>(x_stages[0], x, first_token, tokens, in, 0);
  commit_copies();
  for (int stage = 0; stage < stages; stage++) {
    int now = stage & 1, next = now ^ 1;
    wait_copies<0>();
    __syncthreads();
    if (stage + 1 != stages) {
      copy_rows<kTokens>(x_stages[next], x, first_token, tokens, in, (stage + 1) * kDepth);
      copy_rows<kOut>(w_stages[next], weight, first_out, out, in, (stage + 1) * kDepth);
      commit_copies();
    }
    for (int step = 0; step < kSteps; step++) {
      Fragments f;
      load_fragments(f, w_stages[now], x_stages[now], 16 * warp, step);
      mma_m16n8k16(sums, f.a.v, f.b.v);
    }
  }
  int output = first_out + 16 * warp + lane / 4, token = first_token + 2 * (lane & 3);
  for (int down = 0; down < 2; down++)
    for (int right = 0; right < 2; right++)
      if (output + 8 * down < out && token + right < tokens)
        y[(token + right) * out + output + 8 * down] = from_float<bfloat16>(sums[2 * down + right]);
"""
NO_EMPTY_GROUPS = """
  for (int stage = -1; stage < stages; stage++) {
    if (stage + 1 < stages) {
      copy_rows<kOut>(w_stages[(stage + 1) % 2], weight, first_out, out, in, (stage + 1) * kDepth);
      copy_rows<kTokens>(x_stages[(stage + 1) % 2], x, first_token, tokens, in, (stage + 1) * kDepth);
      commit_copies();
    }
    if (stage < 0) continue;
    if (stage + 1 < stages)
      wait_copies<1>();
    else
      wait_copies<0>();
    __syncthreads();
    for (int step = 0; step < kSteps && stage * kDepth + 16 * step < in; step++) {
      Fragments f;
      load_fragments(f, w_stages[stage % 2], x_stages[stage % 2], 16 * warp, step);
      mma_m16n8k16(sums, f.a.v, f.b.v);
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; i++) {
    int n = first_token + lane % 4 * 2 + (i & 1), m = first_out + warp * 16 + lane / 4 + (i & 2) * 4;
    if (n < tokens && m < out) y[n * out + m] = from_float<bfloat16>(sums[i]);
  }
"""
LOAD_THEN_MULTIPLY = """
  auto start = [&](int column) {
    int half = column / kDepth % 2;
    if (column < in) {
      copy_rows<kTokens>(x_stages[half], x, first_token, tokens, in, column);
      copy_rows<kOut>(w_stages[half], weight, first_out, out, in, column);
    }
    commit_copies();
  };
  start(0);
  for (int column = 0; column < in; column += kDepth) {
    start(column + kDepth);
    wait_copies<1>();
    __syncthreads();
    Fragments f[kSteps];
    int half = column / kDepth % 2;
    for (int step = 0; step < kSteps; step++)
      load_fragments(f[step], w_stages[half], x_stages[half], warp * 16, step);
    __syncthreads();
    for (int step = 0; step < kSteps; step++) mma_m16n8k16(sums, f[step].a.v, f[step].b.v);
  }
  for (int i = 0; i < 4; i++) {
    int m = first_out + warp * 16 + lane / 4 + i / 2 * 8, n = first_token + lane % 4 * 2 + i % 2;
    if (m >= out || n >= tokens) continue;
    y[n * out + m] = from_float<bfloat16>(sums[i]);
  }
"""
NO_FIRST_BARRIER = LOAD_THEN_MULTIPLY.replace(
    "    wait_copies<1>();\n    __syncthreads();\n", "    wait_copies<1>();\n"
)
ONE_AT_A_TIME = """
  for (int stage = 0; stage < stages; stage++) {
    copy_rows<kOut>(w_stages[0], weight, first_out, out, in, stage * kDepth);
    copy_rows<kTokens>(x_stages[0], x, first_token, tokens, in, stage * kDepth);
    commit_copies();
    wait_copies<0>();
    __syncthreads();
    for (int step = 0; step < kSteps; step++) {
      Fragments f;
      load_fragments(f, w_stages[0], x_stages[0], warp * 16, step);
      mma_m16n8k16(sums, f.a.v, f.b.v);
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; i++) {
    int m = first_out + warp * 16 + lane / 4 + i / 2 * 8, n = first_token + lane % 4 * 2 + i % 2;
    if (m < out && n < tokens) y[n * out + m] = from_float<bfloat16>(sums[i]);
  }
"""

REWRITES = [
    Rewrite("two numbers as a word", {"10.1": BY_WORDS}),
    Rewrite("pair by pair", {"10.1": PAIR_BY_PAIR}),
    Rewrite("six pairs", {"10.1": BY_MASKS}),
    Rewrite("number by number", {"10.1": ONE_BY_ONE}, {"10.1": "each number is an access of its own"}),
    Rewrite("the next fragments first", {"10.2": ONE_AHEAD}),
    Rewrite("moving pointers", {"10.2": POINTERS}),
    Rewrite("two mma a round", {"10.2": TWO_A_ROUND}),
    Rewrite("odd and even tiles", {"10.2": ODD_AND_EVEN}, {"10.2": "two sums"}),
    Rewrite("a in two halves", {"10.3": HALVES}),
    Rewrite("four matrices for x too", {"10.3": FOUR_FOR_X}),
    Rewrite("matrix by matrix", {"10.3": BY_MATRIX}),
    Rewrite("rows without the layout", {"10.3": PLAIN_ROWS}, {"10.3": "but not here"}),
    Rewrite("a gap after each row", {"10.4": "  return row * 72 + 8 * chunk;\n"}),
    Rewrite("rotated", {"10.4": "  return (row * kChunks + (chunk + row) % kChunks) * kWide;\n"}),
    Rewrite("exclusive or, backwards", {"10.4": "  return 64 * row + 8 * (chunk ^ (7 - (row & 7)));\n"}),
    Rewrite(
        "by pairs of rows",
        {"10.4": "  return 64 * row + 8 * (chunk ^ row / 2 % 8);\n"},
        {"10.4": "2.00 wavefronts"},
    ),
    Rewrite("a large gap", {"10.4": "  return 80 * row + 8 * chunk;\n"}, {"10.4": "more room"}),
    Rewrite("a thread has one chunk of every row", {"10.5": EVERY_FOURTH}),
    Rewrite("the last chunk first", {"10.5": BACKWARDS}),
    Rewrite("zeros by hand", {"10.5": ZEROS_BY_HAND}),
    Rewrite("no zeros", {"10.5": WITHOUT_ZEROS}, {"10.5": "keeps what the stage held"}),
    Rewrite("one barrier a stage", {"10.6": ONE_BARRIER}),
    Rewrite("no empty groups, no steps past the end", {"10.6": NO_EMPTY_GROUPS}),
    Rewrite("all fragments of a stage first", {"10.6": LOAD_THEN_MULTIPLY}),
    Rewrite("no first barrier", {"10.6": NO_FIRST_BARRIER}, {"10.6": "between the wait and the reads"}),
    Rewrite("one stage at a time", {"10.6": ONE_AT_A_TIME}, {"10.6": "nothing overlaps"}),
]
