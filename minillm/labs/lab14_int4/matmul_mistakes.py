"""The known mistakes of tasks 14.5 and 14.6: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.lab14_int4.group_mistakes import mistakes

ZERO = "for (float& sum : y[r]) sum = 0;"
GROUPS = "first < in; first += kGroup, chunks++"
COUNT = "int count = min(kGroup, in - first);"
LINES = "for (int i = 0; i < count; i += kCodes) {"
INNER = "k < kCodes && i + k < count"
ADD_UP = "sums[r][o] += codes[k][o] * x[r * in + first + i + k];"
FINISH = "for (int r = 0; r < rows; r++) add_group(y[r], *chunks, sums[r], x + r * in + first, count);"
UNPACK = "unpack_line(codes, chunks->line[i / kCodes]);\n"
EACH_ROW = "      for (int r = 0; r < rows; r++)\n        for (int k"
# Another order of the sum in one line: from the last input to the first.
BACKWARDS = "for (int k = kCodes - 1; k >= 0; k--)\n          if (i + k < count)"
ROWS = mistakes(
    "14.5",
    ("y begins with what was there: set the sums of each row to 0", (ZERO, ";")),
    (
        "y is set to 0 in each group: only the last group is left",
        (
            f"  {COUNT}",
            f"  for (int r = 0; r < rows; r++)\n      for (float& sum : y[r]) sum = 0;\n    {COUNT}",
        ),
    ),
    (
        "all groups use the first chunk: the next group is the next chunk",
        (GROUPS, "first < in; first += kGroup"),
    ),
    ("only the first group is multiplied", (GROUPS, "first < min(in, kGroup); first += kGroup, chunks++")),
    (
        "the last group is left out: `in` need not be a multiple of 64",
        (GROUPS, "first + kGroup <= in; first += kGroup, chunks++"),
    ),
    ("x is read past its end: the last group may have fewer than 64 inputs", (COUNT, "int count = kGroup;")),
    ("x is read past its end: the last line may have fewer than eight inputs", (INNER, "k < kCodes")),
    (
        "the rows of x are taken to be 64 numbers apart: they are `in` numbers apart",
        (ADD_UP, ADD_UP.replace("r * in", "r * kGroup")),
        (FINISH, FINISH.replace("r * in", "r * kGroup")),
    ),
    (
        "all rows use the first row of x: add r * in",
        (ADD_UP, ADD_UP.replace("r * in + ", "")),
        (FINISH, FINISH.replace("r * in + ", "")),
    ),
    (
        "the minimum of every row uses the sum of the first row of x",
        (FINISH, FINISH.replace("r * in + ", "")),
    ),
    (
        "all groups use the first 64 numbers of x: add the group's first input",
        (ADD_UP, ADD_UP.replace("first + ", "")),
        (FINISH, FINISH.replace(" + first", "")),
    ),
    (
        "the minimum of every group uses the sum of the first 64 numbers of x",
        (FINISH, FINISH.replace(" + first", "")),
    ),
    ("the last row is left out", (FINISH, FINISH.replace("r < rows", "r < max(1, rows - 1)"))),
    ("only the first row is multiplied", (FINISH, FINISH.replace("r < rows", "r < 1"))),
    (
        "rows that do not exist are read: x has `rows` rows, not kRows",
        (EACH_ROW, EACH_ROW.replace("r < rows", "r < kRows")),
    ),
    (
        "the sums of a group are not set to 0 for the next one: each group has a scale of its own",
        ("  for (int first = 0;", "  float sums[kRows][kSide] = {};\n  for (int first = 0;"),
        ("    float sums[kRows][kSide] = {};\n    for (int i", "    for (int i"),
    ),
    (
        "correct, but the lines are read again for each row: unpack a line once, use it for all rows",
        (LINES, f"for (int r = 0; r < rows; r++)\n    {LINES}"),
        (EACH_ROW, "      for (int k"),
    ),
    (
        "correct up to rounding, but one row alone is summed in another order than in four",
        (
            EACH_ROW + " = 0; " + INNER + "; k++)",
            EACH_ROW.replace("for (int k", "for (int j")
            + " = 0; j < kCodes; j++)\n          if (int k = rows == 1 ? 7 - j : j; i + k < count)",
        ),
    ),
    (
        "correct up to rounding, but four rows at once are summed in another order than fewer",
        (
            EACH_ROW + " = 0; " + INNER + "; k++)",
            EACH_ROW.replace("for (int k", "for (int j")
            + " = 0; j < kCodes; j++)\n          if (int k = rows == kRows ? 7 - j : j; i + k < count)",
        ),
    ),
    (
        "correct up to rounding, but pairs of rows are summed in another order than a row that is left over",
        (
            EACH_ROW + " = 0; " + INNER + "; k++)",
            EACH_ROW.replace("for (int k", "for (int j")
            + " = 0; j < kCodes; j++)\n          if (int k = r < rows / 2 * 2 ? j : 7 - j; i + k < count)",
        ),
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
