"""Lab 14: wrong products in the words of other authors, and odd ones that are right."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "16 steps", "float scale = (high - low) / 15;", "float scale = (high - low) / 16;", {"14.1": "16th"}
    ),
    Slip("no minimum", " + chunk.minimum[o] * total;", ";", {"14.4": "the minimum is missing"}),
    Slip(
        "one chunk for all",
        "first += kGroup, chunks++",
        "first += kGroup",
        {"14.5": "the next group is the next chunk"},
    ),
    Slip(
        "16 outputs always",
        "outputs = min(kSide, out - first_out)",
        "outputs = kSide",
        {"14.6": "over those of the next row"},
    ),
    Slip("every line twice", "int line = half; line", "int line = 0; line", {"14.7": "same lines"}),
    Slip(
        "no barrier at the end",
        "group], x_group);\n    __syncthreads();\n",
        "group], x_group);\n",
        {"14.8": "missing after a group was multiplied"},
    ),
]

# ---- 14.1 --------------------------------------------------------------------------------------------------

SHIFTED_IN = """
  float least = INFINITY, most = -INFINITY;
  for (const float* p = w; p != w + count; p++) {
    if (*p < least) least = *p;
    if (*p > most) most = *p;
  }
  float step = (most - least) / 15.0f;
  chunk.minimum[output] = least, chunk.scale[output] = step;
  for (int line = 0; line < 8; line++) {
    uint32_t word = 0;
    for (int k = 7; k >= 0; k--) {
      int i = 8 * line + k, code = 0;
      if (i < count && most > least) code = int((w[i] - least) / step + 0.5f);
      word = word << 4 | code;
    }
    chunk.line[line][output] = word;
  }
"""
ONE_BY_ONE = """
  float low = w[0], high = w[0];
  for (int i = 0; i < count; i++) low = min(low, w[i]), high = max(high, w[i]);
  for (int line = 0; line < kLines; line++) chunk.line[line][output] = 0;
  float scale = chunk.scale[output] = (high - low) * (1.0f / 15);
  chunk.minimum[output] = low;
  if (scale == 0) return;
  for (int i = 0; i < count; i++) {
    uint32_t code = uint32_t(roundf((w[i] - low) / scale));
    chunk.line[i / kCodes][output] |= code << i % kCodes * 4;
  }
"""
BY_BYTES = """
  float low = *w, high = *w;
  for (int i = 1; i < count; i++) {
    low = w[i] < low ? w[i] : low;
    high = high < w[i] ? w[i] : high;
  }
  float scale = (high - low) / 15, inverse = scale != 0 ? 1 / scale : 0;
  chunk.scale[output] = scale;
  chunk.minimum[output] = low;
  auto code = [&](int i) { return i < count ? static_cast<uint32_t>((w[i] - low) * inverse + 0.5f) : 0u; };
  for (int i = 0; i < kGroup; i += kCodes) {
    uint32_t bytes[4];
    for (int b = 0; b < 4; b++) bytes[b] = code(i + 2 * b) + 16 * code(i + 2 * b + 1);
    chunk.line[i / kCodes][output] = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24;
  }
"""
CUT_OFF = SHIFTED_IN.replace(" + 0.5f", "")

# ---- 14.2 --------------------------------------------------------------------------------------------------

BY_DIVISION = """
  for (int o = 0; o < 16; o++) {
    uint32_t word = line[o];
    for (int k = 0; k < 8; k++, word /= 16) codes[k][o] = float(word % 16);
  }
"""
IN_PAIRS = """
  for (int o = 0; o < kSide; o++)
    for (int k = 0; k < kCodes; k += 2) {
      uint32_t byte = line[o] >> 4 * k & 0xff;
      codes[k][o] = byte & 0xf, codes[k + 1][o] = byte >> 4;
    }
"""
FROM_THE_TOP = """
  for (int k = kCodes; k-- > 0;)
    for (int o = kSide; o-- > 0;) codes[k][o] = static_cast<float>((line[o] << (28 - 4 * k)) >> 28);
"""
FROM_ONE_END = """
  for (int o = 0; o < kSide; o++) {
    uint32_t word = line[o];
    for (int k = 0; k < kCodes; k++) {
      codes[k][o] = word >> 28;
      word <<= 4;
    }
  }
"""

# ---- 14.3 --------------------------------------------------------------------------------------------------

OUTPUT_BY_OUTPUT = """
  for (int o = 0; o < kSide; o++) {
    float sum = 0;
    for (int i = 0; i < count; i++) sum += x[i] * (chunk.line[i / kCodes][o] >> i % kCodes * 4 & 15);
    sums[o] = sum;
  }
"""
PADDED = """
  float padded[kGroup];
  for (int i = 0; i < kGroup; i++) padded[i] = i < count ? x[i] : 0;
  for (int o = 0; o < kSide; o++) sums[o] = 0;
  for (int line = 0; line < kLines; line++) {
    float codes[kCodes][kSide];
    unpack_line(codes, chunk.line[line]);
    for (int o = 0; o < kSide; o++)
      for (int k = 0; k < kCodes; k++) sums[o] += codes[k][o] * padded[line * kCodes + k];
  }
"""
FUSED_BACKWARDS = """
  for (int o = 0; o < kSide; o++) sums[o] = 0;
  for (int i = count - 1; i >= 0; i--) {
    float codes[kCodes][kSide];
    unpack_line(codes, chunk.line[i / 8]);
    for (int o = 0; o < kSide; o++) sums[o] = fmaf(codes[i % 8][o], x[i], sums[o]);
  }
"""
WHOLE_LINES = PADDED.replace("i < count ? x[i] : 0", "i / 8 < count / 8 ? x[i] : 0")

# ---- 14.4 --------------------------------------------------------------------------------------------------

TWO_LOOPS = """
  for (int o = 0; o < kSide; o++) y[o] += chunk.scale[o] * sums[o];
  for (int i = 0; i < count; i++)
    for (int o = 0; o < kSide; o++) y[o] += chunk.minimum[o] * x[i];
"""
FUSED = """
  float total = 0;
  const float* end = x + count;
  while (x != end) total += *x++;
  for (int o = 0; o < kSide; o++) y[o] = fmaf(chunk.minimum[o], total, fmaf(chunk.scale[o], sums[o], y[o]));
"""
FOUR_TOTALS = """
  float totals[4] = {};
  for (int i = 0; i < count; i++) totals[i % 4] += x[i];
  float total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  for (int o = kSide - 1; o >= 0; o--) {
    float more = chunk.minimum[o] * total;
    more += sums[o] * chunk.scale[o];
    y[o] = y[o] + more;
  }
"""
POINTERS = """
  float all = 0;
  for (const float *p = x + count; p-- != x;) all += *p;
  const float *scale = chunk.scale, *minimum = chunk.minimum, *from = sums;
  for (float* to = y; to != y + kSide;) *to++ += *scale++ * *from++ + *minimum++ * all;
"""
COUNTED = """
  for (int o = 0; o < kSide; o++) y[o] += chunk.scale[o] * sums[o] + chunk.minimum[o] * count;
"""

# ---- 14.5 --------------------------------------------------------------------------------------------------

UNPACK_A_GROUP = """
  int groups = (in + kGroup - 1) / kGroup;
  for (int r = 0; r < rows; r++)
    for (int o = 0; o < kSide; o++) y[r][o] = 0;
  for (int g = 0; g < groups; g++) {
    int count = g + 1 < groups ? kGroup : in - g * kGroup;
    float codes[kLines][kCodes][kSide];
    for (int line = 0; line < kLines; line++) unpack_line(codes[line], chunks[g].line[line]);
    for (int r = 0; r < rows; r++) {
      const float* mine = x + r * in + g * kGroup;
      float sums[kSide] = {};
      for (int i = 0; i < count; i++)
        for (int o = 0; o < kSide; o++) sums[o] += codes[i / kCodes][i % kCodes][o] * mine[i];
      add_group(y[r], chunks[g], sums, mine, count);
    }
  }
"""
ROWS_INSIDE = """
  for (int i = 0; i < kRows * kSide; i++) y[i / kSide][i % kSide] = 0;
  for (int first = 0; first < in; first += kGroup) {
    const Chunk& chunk = chunks[first / kGroup];
    int count = in - first < kGroup ? in - first : kGroup;
    float sums[kRows][kSide] = {}, totals[kRows] = {};
    for (int line = 0; 8 * line < count; line++) {
      float codes[kCodes][kSide];
      unpack_line(codes, chunk.line[line]);
      for (int k = 0; k < kCodes && 8 * line + k < count; k++)
        for (int r = 0; r < rows; r++) {
          float number = x[r * in + first + 8 * line + k];
          totals[r] += number;
          for (int o = 0; o < kSide; o++) sums[r][o] = fmaf(number, codes[k][o], sums[r][o]);
        }
    }
    for (int r = 0; r < rows; r++)
      for (int o = 0; o < kSide; o++) y[r][o] += chunk.scale[o] * sums[r][o] + chunk.minimum[o] * totals[r];
  }
"""
FOUR_ALWAYS = """
  float numbers[kRows][kGroup], found[kRows][kSide] = {};
  for (int first = 0; first < in; first += kGroup, chunks++) {
    int count = min(kGroup, in - first);
    for (int r = 0; r < kRows; r++)
      for (int i = 0; i < kGroup; i++) numbers[r][i] = r < rows && i < count ? x[r * in + first + i] : 0;
    float sums[kRows][kSide] = {};
    for (int line = 0; line < kLines; line++)
      for (int o = 0; o < kSide; o++) {
        uint32_t word = chunks->line[line][o];
        for (int k = 0; k < kCodes; k++, word >>= 4)
          for (int r = 0; r < kRows; r++) sums[r][o] += float(word & 15) * numbers[r][line * kCodes + k];
      }
    for (int r = 0; r < kRows; r++) add_group(found[r], *chunks, sums[r], numbers[r], kGroup);
  }
  for (int r = 0; r < rows; r++)
    for (int o = 0; o < kSide; o++) y[r][o] = found[r][o];
"""
ROW_AFTER_ROW = """
  for (int r = 0; r < rows; r++) {
    for (int o = 0; o < kSide; o++) y[r][o] = 0;
    for (int first = 0; first < in; first += kGroup) {
      float sums[kSide];
      int count = min(kGroup, in - first);
      dot_group(sums, chunks[first / kGroup], x + r * in + first, count);
      add_group(y[r], chunks[first / kGroup], sums, x + r * in + first, count);
    }
  }
"""
ONE_ROW_APART = (
    """
  if (rows == 1) {
    for (int o = 0; o < kSide; o++) y[0][o] = 0;
    for (int first = 0; first < in; first += kGroup) {
      int count = min(kGroup, in - first);
      float even[kSide] = {}, odd[kSide] = {};
      for (int i = 0; i < count; i++)
        for (int o = 0; o < kSide; o++)
          (i % 2 ? odd : even)[o] += (chunks->line[i / 8][o] >> i % 8 * 4 & 15) * x[first + i];
      for (int o = 0; o < kSide; o++) even[o] += odd[o];
      add_group(y[0], *chunks++, even, x + first, count);
    }
    return;
  }
"""
    + UNPACK_A_GROUP
)

# ---- 14.6 --------------------------------------------------------------------------------------------------

ROWS_OUTSIDE = """
  int blocks = (out + kSide - 1) / kSide, groups = (in + kGroup - 1) / kGroup;
  float part[kRows][kSide];
  for (int row = 0; row < rows; row += kRows)
    for (int block = 0; block < blocks; block++) {
      int count = rows - row < kRows ? rows - row : kRows;
      multiply_rows(part, &chunks[block * groups], &x[row * in], count, in);
      for (int i = 0; i < count * kSide; i++) {
        int r = i / kSide, o = i % kSide, output = block * kSide + o;
        if (output < out) y[(row + r) * out + output] = part[r][o];
      }
    }
"""
COLUMN_BY_COLUMN = """
  const int groups = in / kGroup + (in % kGroup != 0);
  for (int o = 0; o < out; o += kSide) {
    for (int done = 0; done < rows;) {
      float found[kRows][kSide];
      int now = min(rows - done, kRows);
      multiply_rows(found, chunks + o / kSide * groups, x + done * in, now, in);
      for (int j = o; j < out && j < o + kSide; j++)
        for (int r = 0; r < now; r++) y[(done + r) * out + j] = found[r][j - o];
      done += now;
    }
  }
"""
LAST_ROWS_FIRST = """
  int groups = (in + kGroup - 1) / kGroup;
  for (int tile = (rows - 1) / kRows; tile >= 0; tile--) {
    int first = tile * kRows, count = min(kRows, rows - first);
    for (int block = (out - 1) / kSide; block >= 0; block--) {
      float part[kRows][kSide];
      multiply_rows(part, chunks + block * groups, x + first * in, count, in);
      for (int r = 0; r < count; r++)
        for (int o = 0; o < kSide; o++)
          if (int output = block * kSide + o; output < out) y[(first + r) * out + output] = part[r][o];
    }
  }
"""
WHOLE_TILES = LAST_ROWS_FIRST.replace("(rows - 1) / kRows;", "rows / kRows - 1;")

# ---- 14.7 --------------------------------------------------------------------------------------------------

HALF_AND_HALF = """
  int lane = threadIdx.x & 31, output = lane & 15, first = lane < 16 ? 0 : 4;
  float scale = chunk.scale[output], minimum = chunk.minimum[output];
  uint32_t words[4];
  for (int i = 0; i < 4; i++) words[i] = chunk.line[first + i][output];
  for (int r = 0; r < kRows; r++) {
    float dot = 0, total = 0;
    for (int i = 0; i < 32; i++) {
      float number = x[r][8 * first + i];
      dot = fmaf(words[i / 8] >> 4 * (i % 8) & 15, number, dot);
      total += number;
    }
    sums[r] = fmaf(minimum, total, fmaf(scale, dot, sums[r]));
  }
"""
WORD_BY_WORD = """
  const int lane = threadIdx.x % 32;
  float dot[kRows] = {0}, all[kRows] = {0};
  for (int i = lane; i < kLines * kSide; i += 32) {
    uint32_t word = (&chunk.line[0][0])[i];
    int input = i / kSide * kCodes;
    while (input < (i / kSide + 1) * kCodes) {
      for (int r = 0; r < kRows; r++) dot[r] += float(word & 15) * x[r][input], all[r] += x[r][input];
      word >>= 4, input++;
    }
  }
  float scale = chunk.scale[lane % kSide], minimum = chunk.minimum[lane % kSide];
  for (int r = 0; r < kRows; r++) sums[r] += dot[r] * scale + all[r] * minimum;
"""
MINIMUM_IN_ONE_HALF = """
  int output = threadIdx.x % kSide;
  bool is_upper = threadIdx.x % 32 >= kSide;
  float dots[kRows] = {};
  for (int i = 0; i < kLines / 2; i++) {
    int line = 2 * i + is_upper;
    uint32_t word = chunk.line[line][output];
    for (int k = 0; k < kCodes; k++)
      for (int r = 0; r < kRows; r++) dots[r] += x[r][line * kCodes + k] * (word >> k * 4 & 0xf);
  }
  float minimum = chunk.minimum[output], scale = chunk.scale[output];
  for (int r = 0; r < kRows; r++) {
    float total = 0;
    for (int i = 0; i < kGroup; i++) total += x[r][i];
    sums[r] += scale * dots[r] + (is_upper ? 0 : minimum * total);
  }
"""
NO_MINIMUM = HALF_AND_HALF.replace("fmaf(minimum, total, fmaf(scale, dot, sums[r]))", "sums[r] + scale * dot")

# ---- 14.8 --------------------------------------------------------------------------------------------------

COPY_BY_WARP = """
  for (int g = 0; g < groups; g++) {
    for (int row = threadIdx.x / 32; row < kRows; row += kWarps)
      for (int column = lane; column < kGroup; column += 32) {
        bool inside = first_row + row < rows && g * kGroup + column < in;
        x_group[row][column] = inside ? x[(first_row + row) * in + g * kGroup + column] : 0.0f;
      }
    __syncthreads();
    if (block < blocks) multiply_chunk(sums, *(chunks + block * groups + g), x_group);
    __syncthreads();
  }
  for (int r = 0; r < kRows && first_row + r < rows; r++) {
    float other = __shfl_down_sync(0xffffffff, sums[r], 16);
    if (lane < 16 && 16 * block + lane < out) y[(first_row + r) * out + 16 * block + lane] = sums[r] + other;
  }
"""
IN_REGISTERS_FIRST = """
  float next[kRows * kGroup / kThreads];
  auto load = [&](int g) {
    for (int r = 0; r < kRows; r++) {
      int row = first_row + r, column = g * kGroup + threadIdx.x;
      next[r] = row < rows && column < in ? x[row * in + column] : 0;
    }
  };
  load(0);
  for (int g = 0; g < groups; g++) {
    for (int r = 0; r < kRows; r++) x_group[r][threadIdx.x] = next[r];
    __syncthreads();
    if (g + 1 < groups) load(g + 1);
    if (block < blocks) multiply_chunk(sums, chunks[block * groups + g], x_group);
    __syncthreads();
  }
  for (float& sum : sums) sum += __shfl_xor_sync(0xffffffffu, sum, 16);
  int output = block * kSide + lane % kSide;
  for (int r = 0; r < kRows; r++)
    if (lane < kSide && output < out && first_row + r < rows) y[(first_row + r) * out + output] = sums[r];
"""
HALVES_WRITE_ROWS = """
  for (int group = groups - 1; group >= 0; group--) {
    if (group + 1 < groups) __syncthreads();
    for (int i = threadIdx.x; i < kRows * kGroup; i += kThreads) {
      float number = 0;
      if (first_row + i / kGroup < rows && group * kGroup + i % kGroup < in)
        number = x[(first_row + i / kGroup) * in + group * kGroup + i % kGroup];
      x_group[i / kGroup][i % kGroup] = number;
    }
    __syncthreads();
    if (block < blocks) multiply_chunk(sums, chunks[block * groups + group], x_group);
  }
  int half = lane / kSide, output = block * kSide + lane % kSide;
  for (int r = 0; r < kRows; r++) {
    float sum = sums[r] + __shfl_xor_sync(0xffffffff, sums[r], kSide);
    if (r % 2 == half && first_row + r < rows && output < out) y[(first_row + r) * out + output] = sum;
  }
"""
LEAVES_EARLY = "  if (block >= blocks) return;\n" + COPY_BY_WARP

REWRITES = [
    Rewrite("from the last input on", {"14.1": SHIFTED_IN}),
    Rewrite("code by code", {"14.1": ONE_BY_ONE}),
    Rewrite("four bytes", {"14.1": BY_BYTES}),
    Rewrite("cut off", {"14.1": CUT_OFF}, {"14.1": "not rounded"}),
    Rewrite("by division", {"14.2": BY_DIVISION}),
    Rewrite("byte by byte", {"14.2": IN_PAIRS}),
    Rewrite("out at the top", {"14.2": FROM_THE_TOP}),
    Rewrite("from the wrong end", {"14.2": FROM_ONE_END}, {"14.2": "reverse order"}),
    Rewrite("output by output", {"14.3": OUTPUT_BY_OUTPUT}),
    Rewrite("x with zeros", {"14.3": PADDED}),
    Rewrite("backwards, fused", {"14.3": FUSED_BACKWARDS}),
    Rewrite("whole lines only", {"14.3": WHOLE_LINES}, {"14.3": "need not be a multiple of 8"}),
    Rewrite("the minimum input by input", {"14.4": TWO_LOOPS}, {"14.4": "used for each x"}),
    Rewrite("moving pointer", {"14.4": POINTERS}),
    Rewrite("fused", {"14.4": FUSED}),
    Rewrite("four totals", {"14.4": FOUR_TOTALS}),
    Rewrite("by the count", {"14.4": COUNTED}, {"14.4": "by the number of inputs"}),
    Rewrite("a whole group unpacked", {"14.5": UNPACK_A_GROUP}),
    Rewrite("rows in the inner loop", {"14.5": ROWS_INSIDE}),
    Rewrite("always four rows", {"14.5": FOUR_ALWAYS}),
    Rewrite("row after row", {"14.5": ROW_AFTER_ROW}, {"14.5": "read again for each row"}),
    Rewrite("one row has a path of its own", {"14.5": ONE_ROW_APART}, {"14.5": "one row alone is summed"}),
    Rewrite("rows outside", {"14.6": ROWS_OUTSIDE}),
    Rewrite("column by column", {"14.6": COLUMN_BY_COLUMN}),
    Rewrite("the last rows first", {"14.6": LAST_ROWS_FIRST}),
    Rewrite("whole tiles", {"14.6": WHOLE_TILES}, {"14.6": "left over are missing"}),
    Rewrite("upper and lower lines", {"14.7": HALF_AND_HALF}),
    Rewrite("all words in turns", {"14.7": WORD_BY_WORD}),
    Rewrite("the minimum in one half", {"14.7": MINIMUM_IN_ONE_HALF}),
    Rewrite("without minimum", {"14.7": NO_MINIMUM}, {"14.7": "the minimum is missing"}),
    Rewrite("a warp copies a row", {"14.8": COPY_BY_WARP}),
    Rewrite("the next group in registers", {"14.8": IN_REGISTERS_FIRST}),
    Rewrite("both halves write, the last group first", {"14.8": HALVES_WRITE_ROWS}),
    Rewrite("leaves early", {"14.8": LEAVES_EARLY}, {"14.8": "does not come to the barrier"}),
]
