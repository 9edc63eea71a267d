"""The known mistakes of lab 7: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.grader.cuda_kernels import Edits
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab7_attention.kernel_cases import SOURCE

Change = tuple[str, str]


def mistakes(number: str, *known: tuple[str, Change] | tuple[str, Change, Change]) -> tuple[Mistake, ...]:
    """The mistakes of task `number`, from (diagnosis, changes of the finished file ..)."""
    edits = Edits(SOURCE, number)
    return tuple(Mistake(diagnosis, edits(*changes)) for diagnosis, *changes in known)


STORE = "tile[row][column] = first + row < n ? from[(first + row) * kDim + column] : 0.0f;"
LOAD = mistakes(
    "7.1",
    (
        "rows past the end are read: test the row before reading",
        (STORE, "tile[row][column] = from[(first + row) * kDim + column];"),
    ),
    (
        "one row too many is read: row n is past the end",
        ("first + row < n", "first + row <= n"),
    ),
    (
        "the row is compared with n by its index in the tile: add `first`",
        ("first + row < n", "row < n"),
    ),
    (
        "rows past the end keep what the tile held before: store zeros there",
        (STORE, "if (first + row < n) tile[row][column] = from[(first + row) * kDim + column];"),
    ),
    (
        "rows past the end repeat the last row: they must be zero",
        (STORE, "tile[row][column] = from[min(first + row, n - 1) * kDim + column];"),
    ),
    (
        "neighbouring threads read addresses in different rows: let the column change fastest",
        ("int row = i / kDim, column = i % kDim;", "int row = i % kTile, column = i / kTile;"),
    ),
    ("the tile begins at row `first` of the matrix", ("from[(first + row) * kDim", "from[row * kDim")),
    (
        "each thread loads one number; the tile has 1024, eight for each thread",
        ("for (int i = threadIdx.x; i < kTile * kDim; i += kThreads)", "if (int i = threadIdx.x; true)"),
    ),
)

MASK = "first_key + key <= first_row + row"
SCORE = mistakes(
    "7.2",
    ("a row sees its own key too: the mask is <=", (MASK, "first_key + key < first_row + row")),
    ("there is no mask: a row must not see later keys", (f"{MASK} ? sum * scale : -INFINITY", "sum * scale")),
    ("the mask hides the wrong half: a row sees earlier keys", (MASK, "first_key + key >= first_row + row")),
    ("the scores are not scaled", ("? sum * scale :", "? sum :")),
    ("a hidden key's score is -INFINITY, not 0: exp(0) is 1", (": -INFINITY;", ": 0.0f;")),
    (
        "rows and keys are compared by their index in the tile: add the tile's first position",
        (MASK, "key <= row"),
    ),
    (
        "a thread's keys are part, part + 4, ...: neighbouring keys belong to other threads",
        ("int key = part + j * kParts;\n    float sum", "int key = part * kEach + j;\n    float sum"),
    ),
    (
        "half of the head is left out of the dot product",
        ("d < kDim; d++) sum +=", "d < kDim / 2; d++) sum +="),
    ),
)

SHARE_MAX = "largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));"
MAX_STEPS = f"for (int step = 1; step < kParts; step *= 2) {SHARE_MAX}"
SHARE_SUM = "sum += __shfl_xor_sync(0xffffffff, sum, step);"
SUM_STEPS = f"for (int step = 1; step < kParts; step *= 2) {SHARE_SUM}"
STORE_STATE = "s.sum = s.sum * factor + sum;"


def steps(text: str, limit: str) -> str:
    """The loop `text` with another limit."""
    return text.replace("step < kParts", f"step < {limit}")


SOFTMAX_MISTAKES = mistakes(
    "7.3",
    ("the sum before this tile is not multiplied by the factor", (STORE_STATE, "s.sum = s.sum + sum;")),
    (
        "no shuffle: maximum and sum cover only one thread's scores; the row has four threads",
        (MAX_STEPS, ""),
        (SUM_STEPS, ""),
    ),
    ("the maximum covers only one thread's scores: the row has four threads", (MAX_STEPS, "")),
    ("the sum covers only one thread's weights: the row has four threads", (SUM_STEPS, "")),
    (
        "one shuffle each: maximum and sum cover two of the row's four threads",
        (MAX_STEPS, steps(MAX_STEPS, "2")),
        (SUM_STEPS, steps(SUM_STEPS, "2")),
    ),
    (
        "one shuffle: the maximum covers two of the row's four threads",
        (MAX_STEPS, steps(MAX_STEPS, "2")),
    ),
    ("one shuffle: the sum covers two of the row's four threads", (SUM_STEPS, steps(SUM_STEPS, "2"))),
    (
        "the maximum covers a whole warp, eight rows: exchange it between four lanes",
        (MAX_STEPS, steps(MAX_STEPS, "32")),
    ),
    (
        "the sum covers a whole warp, eight rows: exchange it between four lanes",
        (SUM_STEPS, steps(SUM_STEPS, "32")),
    ),
    ("the new maximum is not stored in s.max", ("  s.max = largest;\n", "")),
    ("the new sum is not stored in s.sum", (STORE_STATE, "(void)sum;")),
    (
        "the factor is exp(old max - new max), not exp(new max - old max)",
        ("expf(s.max - largest)", "expf(largest - s.max)"),
    ),
    (
        "the factor is computed after s.max has the new maximum, so it is always 1",
        ("float factor = expf(s.max", "s.max = largest;\n  float factor = expf(s.max"),
    ),
    (
        "the maximum covers only this tile: include the old maximum",
        ("float largest = s.max;", "float largest = -INFINITY;"),
    ),
    (
        "the old sum is multiplied by the factor for each of the eight keys: once for the tile",
        (STORE_STATE, "for (int j = 0; j < kEach; j++) s.sum *= factor;\n  s.sum += sum;"),
    ),
    (
        "the old sum is added once by each of the four threads: exchange only the sum of the new weights",
        (
            "float factor = expf(s.max - largest), sum = 0;",
            "float factor = expf(s.max - largest), sum = s.sum * factor;",
        ),
        (STORE_STATE, "s.sum = sum;"),
    ),
    (
        "the scores are not replaced by the weights",
        (
            "    scores[j] = expf(scores[j] - largest);\n    sum += scores[j];",
            "    sum += expf(scores[j] - largest);",
        ),
    ),
    ("the weights are exp(score): subtract the maximum", ("expf(scores[j] - largest)", "expf(scores[j])")),
    ("the returned factor is 1: return exp(old max - new max)", ("return factor;", "return 1.0f;")),
)

START = "float sum = out[i] * factor;"
PRODUCT = "sum += weights[row][key] * values[key][part + i * kParts];"
VALUE = mistakes(
    "7.4",
    ("the output so far is not multiplied by the factor", (START, "float sum = out[i];")),
    ("the output so far is lost: add to it", (START, "float sum = 0;")),
    (
        "the output is multiplied by the factor for each key: once for the tile",
        (START, "float sum = out[i];"),
        (PRODUCT, f"sum *= factor, {PRODUCT}"),
    ),
    (
        "the new values are multiplied by the factor too: only the output so far",
        (START, "float sum = out[i];"),
        ("out[i] = sum;", "out[i] = sum * factor;"),
    ),
    ("the weights are read with row and key exchanged", ("weights[row][key] *", "weights[key][row] *")),
    (
        "the values are read with key and column exchanged",
        ("values[key][part + i * kParts]", "values[part + i * kParts][key]"),
    ),
    (
        "a thread's columns are part, part + 4, ...: neighbouring columns belong to other threads",
        ("values[key][part + i * kParts]", "values[key][part * kEach + i]"),
    ),
)

LOOP = """for (int first_key = 0; first_key <= first_row; first_key += kTile) {
    __syncthreads();
    load_tile(kv_tile, k"""
LOAD_Q = "  load_tile(q_tile, q + head, first_row, n);\n"
WRITE_WEIGHTS = "    for (int j = 0; j < kEach; j++) weights[row][part + j * kParts] = scores[j];\n"
TAKE = "    float factor = take_scores(s, scores);\n"
NAIVE = """  int at = first_row + row;
  const float* mine = q + head + min(at, n - 1) * kDim;
  for (int key = 0; key <= min(at, n - 1); key++) {
    float score = 0;
    for (int d = 0; d < kDim; d++) score += mine[d] * k[head + key * kDim + d];
    score *= scale;
    float largest = fmaxf(s.max, score), factor = expf(s.max - largest), weight = expf(score - largest);
    s.sum = s.sum * factor + weight, s.max = largest;
    for (int i = 0; i < kEach; i++)
      sums[i] = sums[i] * factor + weight * v[head + key * kDim + part + i * kParts];
  }
"""


def naive() -> Change:
    """The loop over tiles replaced by one over keys."""
    text = SOURCE.read_text(encoding="utf-8")
    return text[text.index(LOAD_Q) : text.index("  if (first_row + row < n)\n")], NAIVE


KERNEL = mistakes(
    "7.5",
    (
        "a barrier is missing between loading K and using it",
        ("__syncthreads();\n    score_keys", "score_keys"),
    ),
    (
        "a barrier is missing before V overwrites K: other warps still read K",
        ("__syncthreads();\n    load_tile(kv_tile, v", "load_tile(kv_tile, v"),
    ),
    (
        "a barrier is missing between loading V and using it",
        ("__syncthreads();\n    add_values", "add_values"),
    ),
    (
        "a barrier is missing before the next K overwrites V: other warps still read V",
        (LOOP, LOOP.replace("    __syncthreads();\n", "")),
    ),
    (
        "threads whose row is past the end return before a barrier: let them compute, and write nothing",
        (LOAD_Q, f"  if (first_row + row >= n) return;\n{LOAD_Q}"),
    ),
    ("rows past the end are written", ("  if (first_row + row < n)\n", "")),
    (
        "the last tile is left out: the block's rows see the keys of their own tile",
        ("first_key <= first_row;", "first_key < first_row;"),
    ),
    (
        "tiles are loaded whose keys no row of the block sees: end at the block's own tile",
        ("first_key <= first_row;", "first_key < n;"),
    ),
    (
        "q is loaded again for each tile of keys: once is enough",
        (LOAD_Q, ""),
        ("    load_tile(kv_tile, k", f"  {LOAD_Q}    load_tile(kv_tile, k"),
    ),
    ("no tiles: each warp reads K and V from global memory by itself", naive()),
    ("the result is not divided by the sum of the weights", ("sums[i] / s.sum", "sums[i]")),
    (
        "the scores are stored before they become weights: store them after take_scores",
        (TAKE + WRITE_WEIGHTS, WRITE_WEIGHTS + TAKE),
    ),
    (
        "the factor is not given to add_values",
        ("add_values(sums, factor,", "(void)factor;\n    add_values(sums, 1.0f,"),
    ),
    ("K is loaded where V is needed", ("load_tile(kv_tile, v + head", "load_tile(kv_tile, k + head")),
    (
        "every head reads the keys and values of head 0: add the head's offset",
        ("load_tile(kv_tile, k + head", "load_tile(kv_tile, k"),
        ("load_tile(kv_tile, v + head", "load_tile(kv_tile, v"),
    ),
)

PLACE = "return row * (kDim + 4) + column;"
LAYOUT_MISTAKES = mistakes(
    "7.6",
    (
        "eight rows of a column lie in one bank, so eight words wait for each other (a row is 32 words)",
        (PLACE, "return row * kDim + column;"),
    ),
    ("eight rows of a column lie in two banks", (PLACE, "return row * kDim + (column ^ (row & 1));")),
    ("eight rows of a column lie in four banks", (PLACE, "return row * (kDim + 8) + column;")),
    ("two numbers share a word: rows overlap", (PLACE, "return row * (kDim - 1) + column;")),
    ("words past kWords are used", (PLACE, "return row * 2 * kDim + column;")),
    (
        "the tile is stored by columns: now the words of a row wait for each other",
        (PLACE, "return column * kDim + row;"),
    ),
)
