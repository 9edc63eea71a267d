"""The known mistakes of tasks 14.5 and 14.6: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.lab14_int4.group_mistakes import Change, mistakes

ZERO = "for (float& sum : y[r]) sum = 0;"
GROUPS = "first < in; first += kGroup, chunks++"
COUNT = "    int count = min(kGroup, in - first);\n"
SUMS = "    float sums[kRows][kSide] = {};\n"
LINES = "for (int i = 0; i < count; i += kCodes) {"
EACH_ROW = "      for (int r = 0; r < rows; r++) {\n"
TAKE = "for (int k = 0; k < kCodes && i + k < count; k++) numbers[k] = x[r * in + first + i + k];"
ADD_UP = "for (int k = 0; k < kCodes; k++) sums[r][o] += codes[k][o] * numbers[k];"
FINISH = "for (int r = 0; r < rows; r++) add_group(y[r], *chunks, sums[r], x + r * in + first, count);"


def turned(when: str) -> Change:
    """The sum of a line runs from its last input to the first if `when` is true."""
    code = f"for (int j = 0, k; k = {when} ? 7 - j : j, j < kCodes; j++)"
    return ADD_UP, ADD_UP.replace("for (int k = 0; k < kCodes; k++)", code)


ROWS = mistakes(
    "14.5",
    ("y begins with what was there: set the sums of each row to 0", (ZERO, ";")),
    (
        "y is set to 0 in each group: only the last group is left",
        (COUNT, f"{COUNT}    for (int r = 0; r < rows; r++)\n      {ZERO}\n"),
    ),
    (
        "all groups use the first chunk: the next group is the next chunk",
        (GROUPS, "first < in; first += kGroup"),
    ),
    ("only the first group is multiplied", (GROUPS, GROUPS.replace("< in", "< min(in, kGroup)"))),
    (
        "the last group is left out: `in` need not be a multiple of 64",
        (GROUPS, GROUPS.replace("first <", "first + kGroup <=")),
    ),
    (
        "x is read past its end: the last group may have fewer than 64 inputs",
        (COUNT, "    int count = kGroup;\n"),
    ),
    (
        "x is read past its end: the last line may have fewer than eight inputs",
        (TAKE, TAKE.replace(" && i + k < count", "")),
    ),
    (
        "the rows of x are taken to be 64 numbers apart: they are `in` numbers apart",
        (TAKE, TAKE.replace("r * in", "r * kGroup")),
        (FINISH, FINISH.replace("r * in", "r * kGroup")),
    ),
    (
        "all rows use the first row of x: add r * in",
        (TAKE, TAKE.replace("r * in + ", "")),
        (FINISH, FINISH.replace("r * in + ", "")),
    ),
    (
        "the minimum of every row uses the sum of the first row of x",
        (FINISH, FINISH.replace("r * in + ", "")),
    ),
    (
        "all groups use the first 64 numbers of x: add the group's first input",
        (TAKE, TAKE.replace("first + ", "")),
        (FINISH, FINISH.replace(" + first", "")),
    ),
    (
        "the minimum of every group uses the sum of the first 64 numbers of x",
        (FINISH, FINISH.replace(" + first", "")),
    ),
    ("the last row is left out", (FINISH, FINISH.replace("< rows", "< max(1, rows - 1)"))),
    ("only the first row is multiplied", (FINISH, FINISH.replace("< rows", "< 1"))),
    (
        "rows that do not exist are read: x has `rows` rows, not kRows",
        (EACH_ROW, EACH_ROW.replace("r < rows", "r < kRows")),
    ),
    (
        "the sums of a group are not set to 0 for the next one: each group has a scale of its own",
        ("  for (int first = 0;", f"{SUMS}  for (int first = 0;"),
        (SUMS + "    for", "    for"),
    ),
    (
        "correct, but the lines are read again for each row: unpack a line once, use it for all rows",
        (LINES, f"for (int r = 0; r < rows; r++)\n    {LINES}"),
        (EACH_ROW, "      {\n"),
    ),
    ("correct up to rounding, but one row alone is summed in another order than four", turned("rows == 1")),
    (
        "correct up to rounding, but four rows at once are summed in another order than fewer",
        turned("rows == kRows"),
    ),
    (
        "correct up to rounding, but pairs of rows are summed in another order than a row that is left over",
        turned("r >= rows / 2 * 2"),
    ),
)

NUM_GROUPS = "int groups = (in + kGroup - 1) / kGroup;"
OUTPUTS = "first_out < out; first_out += kSide, chunks += groups"
TILES = "first < rows; first += kRows"
SIZES = "int count = min(kRows, rows - first), outputs = min(kSide, out - first_out);"
CALL = "multiply_rows(part, chunks, x + first * in, count, in);"
WRITE = "y[(first + r) * out + first_out + o] = part[r][o];"
MATMUL = mistakes(
    "14.6",
    (
        "the rows that are left over are missing: the last few may be fewer than kRows",
        (TILES, "first + kRows <= rows; first += kRows"),
    ),
    ("only the first four rows are multiplied", (TILES, "first < min(rows, kRows); first += kRows")),
    (
        "rows past the end are read: the last few may be fewer than kRows",
        (SIZES, SIZES.replace("min(kRows, rows - first)", "kRows")),
    ),
    (
        "the outputs that are left over are missing: the last block may have fewer than 16",
        (OUTPUTS, OUTPUTS.replace("first_out < out", "first_out + kSide <= out")),
    ),
    (
        "outputs past the end are written, over those of the next row",
        (SIZES, SIZES.replace("min(kSide, out - first_out)", "kSide")),
    ),
    (
        "only the first 16 outputs are multiplied",
        (OUTPUTS, OUTPUTS.replace("first_out < out", "first_out < min(out, kSide)")),
    ),
    (
        "all blocks use the first chunks: a block of 16 outputs has as many chunks as there are groups",
        (OUTPUTS, "first_out < out; first_out += kSide"),
    ),
    (
        "the number of groups is rounded down: the last one may have fewer than 64 inputs",
        (NUM_GROUPS, "int groups = max(1, in / kGroup);"),
    ),
    (
        "the next block is taken to begin one chunk further on: it has as many chunks as there are groups",
        (OUTPUTS, OUTPUTS.replace("chunks += groups", "chunks++")),
    ),
    ("all rows use the first rows of x: add first * in", (CALL, CALL.replace("x + first * in", "x"))),
    ("all rows are written over the first ones: add `first`", (WRITE, WRITE.replace("(first + r)", "r"))),
    (
        "all blocks are written over the first outputs: add first_out",
        (WRITE, WRITE.replace("first_out + ", "")),
    ),
    (
        "the rows of y are taken to be 16 numbers apart: they are `out` numbers apart",
        (WRITE, WRITE.replace("* out", "* kSide")),
    ),
    (
        "y is written output by output: number (row, output) is y[row * out + output]",
        (WRITE, "y[(first_out + o) * rows + first + r] = part[r][o];"),
    ),
    (
        "correct, but the matrix is read again for each row: multiply kRows rows at a time",
        (TILES, "first < rows; first++"),
        (SIZES, SIZES.replace("min(kRows, rows - first)", "1")),
    ),
)
