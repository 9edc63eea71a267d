"""The known mistakes of tasks 14.7 and 14.8: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.lab14_int4.group_mistakes import mistakes

OUTPUT, HALF = "output = threadIdx.x % kSide", "half = threadIdx.x % 32 / kSide"
LINES = "int line = half; line < kLines; line += 2"
WORD = "uint32_t word = chunk.line[line][output];"
CODE = "float code = word >> 4 * k & 15;"
NUMBER = "float number = x[r][line * kCodes + k];"
TOTALS = "totals[r] += number;"
SCALES = "float scale = chunk.scale[output], minimum = chunk.minimum[output];"
GROW = "sums[r] += scale * dots[r] + minimum * totals[r];"
BYTES = "reinterpret_cast<const unsigned char*>(&chunk.line[line][output])"
PER_LINE = """    for (int r = 0; r < kRows; r++) {
      sums[r] += chunk.scale[output] * dots[r] + chunk.minimum[output] * totals[r];
      dots[r] = totals[r] = 0;
    }
"""
ALL_INPUTS = """{
    float total = 0;
    for (float number : x[r]) total += number;
    sums[r] += scale * dots[r] + minimum * total;
  }"""
WARP = mistakes(
    "14.7",
    (
        "both halves of the warp take all lines: every code is counted twice",
        (LINES, "int line = 0; line < kLines; line++"),
    ),
    (
        "both halves of the warp take the same lines: the others are missing",
        (LINES, "int line = 0; line < kLines; line += 2"),
    ),
    (
        "the thread's number is taken for the lane's: lane = threadIdx.x % 32, also in the second warp",
        (HALF, "half = threadIdx.x / kSide"),
    ),
    (
        "correct, but the upper half of the warp does nothing: share the lines between the halves",
        (LINES, "int line = half * kLines; line < kLines; line++"),
        (GROW, "if (half == 0) sums[r] += scale * dots[r] + minimum * totals[r];"),
    ),
    ("the sums are overwritten: the groups before are in them, add to them", (GROW, GROW.replace("+=", "="))),
    ("the minimum is missing: it adds minimum * (sum of x)", (GROW, "sums[r] += scale * dots[r];")),
    (
        "the minimum uses all 64 inputs in both halves, so it counts twice: each half has its own lines",
        (GROW, ALL_INPUTS),
    ),
    (
        "the minimum is multiplied by the scale too: weight = scale * code + minimum",
        (GROW, "sums[r] += scale * (dots[r] + minimum * totals[r]);"),
    ),
    ("the minimum is multiplied by the number of inputs, not by the sum of x", (TOTALS, "totals[r] += 1;")),
    (
        "the minimum uses the sum of the first row of x in every row",
        (GROW, GROW.replace("totals[r]", "totals[0]")),
    ),
    ("all rows use the first row of x", (NUMBER, NUMBER.replace("x[r]", "x[0]"))),
    (
        "each line uses the first eight numbers of x: add the line's first input, 8 * line",
        (NUMBER, NUMBER.replace("line * kCodes + ", "")),
    ),
    (
        "the mask is missing: the other codes of the word are still there",
        (CODE, "float code = word >> 4 * k;"),
    ),
    (
        "the codes come in reverse order: input 0 is in the lowest four bits",
        (CODE, CODE.replace("4 * k", "4 * (7 - k)")),
    ),
    (
        "8 is subtracted from each code: here codes run from 0 to 15",
        (CODE, "float code = static_cast<int>(word >> 4 * k & 15) - 8;"),
    ),
    (
        "scale and minimum are those of output 0: each lane needs its output's",
        (SCALES, SCALES.replace("[output]", "[0]")),
    ),
    (
        "lanes 16 to 31 read past the 16 outputs of a line: lane l belongs to output l % 16",
        (OUTPUT, "output = threadIdx.x % 32"),
    ),
    (
        "correct, but the words are read again for each row: let the loop over rows be the inner one",
        (f"for ({LINES}) {{", f"for (int r = 0; r < kRows; r++)\n  for ({LINES}) {{"),
        (f"for (int r = 0; r < kRows; r++) {{\n        {NUMBER}", NUMBER),
        ("number;\n      }\n    }\n  }", "number;\n    }\n  }"),
    ),
    (
        "correct, but the codes are read byte by byte: a lane can read the whole word in one access",
        (WORD, ""),
        (CODE, f"float code = {BYTES}[k / 2] >> k % 2 * 4 & 15;"),
    ),
    (
        "correct, but the scale is read for each line: once for a chunk is enough",
        ("number;\n      }\n    }\n", f"number;\n      }}\n    }}\n{PER_LINE}"),
        (SCALES, ""),
        ("  for (int r = 0; r < kRows; r++) sums[r] += scale * dots[r] + minimum * totals[r];\n", ""),
    ),
)

COPY = "for (int i = threadIdx.x; i < kRows * kGroup; i += kThreads) {"
WHERE = "int row = first_row + i / kGroup, column = group * kGroup + i % kGroup;"
FROM = "row < rows && column < in ? x[row * in + column] : 0;"
TO = "x_group[i / kGroup][i % kGroup]"
BARRIER = "    __syncthreads();\n"
FIRST = "    }\n" + BARRIER
CHUNK = "if (block < blocks) multiply_chunk(sums, chunks[block * groups + group], x_group);\n"
GROUPS = "int group = 0; group < groups; group++"
BOTH = "float sum = sums[r] + __shfl_xor_sync(0xffffffff, sums[r], 16);"
PLACE = "int row = first_row + r, output = block * kSide + lane;"
WRITE = "if (lane < kSide && row < rows && output < out) y[row * out + output] = sum;"
EACH_ROW = """float none[kRows][kGroup];
    for (int r = 0; r < kRows; r++) {
      for (int j = 0; j < kRows; j++)
        for (int i = 0; i < kGroup; i++) none[j][i] = j == r ? x_group[j][i] : 0;
      if (block < blocks) multiply_chunk(sums, chunks[block * groups + group], none);
    }
"""
KERNEL = mistakes(
    "14.8",
    (
        "a barrier is missing after x was copied: a thread reads what others have not written yet",
        (FIRST, "    }\n"),
    ),
    (
        "a barrier is missing after a group was multiplied: the next copy overwrites what others still read",
        (CHUNK + BARRIER, CHUNK),
    ),
    (
        "a warp without outputs does not come to the barrier: only multiply_chunk is left out",
        (
            BARRIER + "    " + CHUNK + BARRIER,
            "    if (block < blocks) {\n" + BARRIER + "    " + CHUNK[20:] + BARRIER + "    }\n",
        ),
    ),
    ("a warp without outputs reads chunks past the end of the matrix", (CHUNK, CHUNK[20:])),
    (
        "the rows past the end are read: they do not exist, put zeros there",
        (FROM, "column < in ? x[row * in + column] : 0;"),
    ),
    (
        "inputs past the end are read: they do not exist, put zeros there",
        (FROM, "row < rows ? x[row * in + column] : 0;"),
    ),
    (
        "what does not exist keeps what x_group held before: put zeros there",
        (f"{TO} = {FROM}", f"if (row < rows && column < in) {TO} = x[row * in + column];"),
    ),
    (
        "each thread copies one number: a group of four rows has 256",
        (COPY, "if (int i = threadIdx.x; i < kRows * kGroup) {"),
    ),
    ("all blocks copy the first rows of x: add first_row", (WHERE, WHERE.replace("first_row + ", ""))),
    (
        "all groups copy the first 64 inputs of x: add 64 * group",
        (WHERE, WHERE.replace("group * kGroup + ", "")),
    ),
    (
        "the rows of x are taken to be 64 numbers apart: they are `in` numbers apart",
        (FROM, FROM.replace("* in", "* kGroup")),
    ),
    ("all groups use the first chunk of the block: add `group`", (CHUNK, CHUNK.replace(" + group]", "]"))),
    (
        "all warps use the chunks of the first 16 outputs: add block * groups",
        (CHUNK, CHUNK.replace("block * groups + ", "")),
    ),
    (
        "the chunks are taken group by group: those of one block of 16 outputs follow each other",
        (CHUNK, CHUNK.replace("block * groups + group", "group * blocks + block")),
    ),
    ("only the first group is multiplied", (GROUPS, "int group = 0; group < 1; group++")),
    ("the last group is left out", (GROUPS, "int group = 0; group < max(1, groups - 1); group++")),
    (
        "the halves of a warp are not added: lane l and lane l + 16 have the same output",
        (BOTH, "float sum = sums[r];"),
    ),
    (
        "the sums of neighbouring lanes are added: those of lane l and l + 16 belong together",
        (BOTH, BOTH.replace(", 16)", ", 1)")),
    ),
    (
        "both halves of a warp write: only lanes 0 to 15 may",
        (WRITE, WRITE.replace("lane < kSide && ", "")),
        (PLACE, PLACE.replace("+ lane", "+ lane % kSide")),
    ),
    (
        "lanes 16 to 31 write the outputs of the next block: only lanes 0 to 15 may write",
        (WRITE, WRITE.replace("lane < kSide && ", "")),
    ),
    (
        "outputs past the end are written, over those of the next row",
        (WRITE, WRITE.replace(" && output < out", "")),
    ),
    ("rows past the end are written", (WRITE, WRITE.replace(" && row < rows", ""))),
    ("every block writes the first rows: add first_row", (PLACE, PLACE.replace("first_row + ", ""))),
    (
        "correct, but the chunks are read again for each row: multiply_chunk takes four rows at once",
        (CHUNK, EACH_ROW),
    ),
    (
        "correct, but a thread copies numbers side by side: a warp then fetches four times the sectors",
        (COPY, "for (int j = 0; j < 4; j++) {\n      int i = threadIdx.x * 4 + j;"),
    ),
    (
        "correct up to rounding, but one row alone is summed in another order than a batch",
        (CHUNK, CHUNK.replace("+ group]", "+ (rows == 1 ? groups - 1 - group : group)]")),
        (WHERE, WHERE.replace("group * kGroup", "(rows == 1 ? groups - 1 - group : group) * kGroup")),
    ),
)
