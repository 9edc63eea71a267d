"""The known mistakes of tasks 10.1 to 10.4: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.grader.cuda_kernels import Edits
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab10_tensor_cores.fragment_cases import SOURCE

Change = tuple[str, str]


def mistakes(number: str, *known: tuple[str, Change] | tuple[str, Change, Change]) -> tuple[Mistake, ...]:
    """The mistakes of task `number`, from (diagnosis, changes of the finished file ..)."""
    edits = Edits(SOURCE, number)
    return tuple(Mistake(diagnosis, edits(*changes)) for diagnosis, *changes in known)


OF_A = "w + (g + i / 2 % 2 * 8) * stride + t + i / 4 * 8"
OF_B = "x + g * stride + t + i * 4"
LANE = "t = threadIdx.x % 4 * 2;"
# The two lines that load a pair.
PAIR_A = f"""auto two = load_wide<Vec<bfloat16, 2>>({OF_A});
    f.a.v[i] = two.v[0], f.a.v[i + 1] = two.v[1];"""
PAIR_B = f"""auto two = load_wide<Vec<bfloat16, 2>>({OF_B});
    f.b.v[i] = two.v[0], f.b.v[i + 1] = two.v[1];"""
SINGLE_A = f"f.a.v[i] = *({OF_A}), f.a.v[i + 1] = *({OF_A} + 1);"
SINGLE_B = f"f.b.v[i] = *({OF_B}), f.b.v[i + 1] = *({OF_B} + 1);"
AS_B = "f.b.v[i] = x[(t + i * 4) * stride + g], f.b.v[i + 1] = x[(t + i * 4 + 1) * stride + g];"
TURNED = "x is read as if it were b itself: b (k, n) is x (n, k), so lane group g reads row g of x"
BY_HAND_MISTAKES = mistakes(
    "10.1",
    (
        "correct, but each number is an access of its own: two neighbours are one access of 4 bytes",
        (PAIR_A, SINGLE_A),
        (PAIR_B, SINGLE_B),
    ),
    (
        "pairs 2 and 3 of a are exchanged: first the row 8 further down, then the columns 8 further",
        (OF_A, "w + (g + i / 4 * 8) * stride + t + i / 2 % 2 * 8"),
    ),
    (
        "the rows 8 further down are missing in a: pairs 2 and 4 are of row g + 8",
        (OF_A, OF_A.replace("(g + i / 2 % 2 * 8)", "g")),
    ),
    (
        "the columns 8 further are missing in a: pairs 3 and 4 begin at column t + 8",
        (OF_A, OF_A.removesuffix(" + i / 4 * 8")),
    ),
    ("the columns 8 further are missing in b: its second pair begins at t + 8", (OF_B, "x + g * stride + t")),
    (TURNED, (PAIR_B, AS_B)),
    (TURNED, (PAIR_A, SINGLE_A), (PAIR_B, AS_B)),
    (
        "a and b are exchanged: a is W, b is x",
        (OF_A, OF_A.replace("w", "x", 1)),
        (OF_B, OF_B.replace("x", "w", 1)),
    ),
    ("a lane begins at column 2 * (lane % 4), because it holds pairs", (LANE, "t = threadIdx.x % 4;")),
    (
        "the thread's number is taken for the lane's: lane = threadIdx.x % 32, also in the second warp",
        ("g = threadIdx.x % 32 / 4", "g = threadIdx.x / 4"),
    ),
    (
        "group and place in it are exchanged: g = lane / 4 is the row, t = 2 * (lane % 4) the column",
        ("g = threadIdx.x % 32 / 4", "g = threadIdx.x % 8"),
        (LANE, "t = threadIdx.x % 32 / 8 * 2;"),
    ),
)

SUMS, LOOP = "  float sums[4] = {};\n", "for (int k = 0; k < columns; k += 16) {\n"
MMA = "mma_m16n8k16(sums, f.a.v, f.b.v);"
LOAD = "load_by_hand(f, w + k, x + k, stride);"
STORE = "for (int i = 0; i < 4; i++) y[(t + i % 2) * 16 + g + i / 2 * 8] = sums[i];"
APART = """float part[4] = {};
    mma_m16n8k16(part, f.a.v, f.b.v);
    for (int i = 0; i < 4; i++) sums[i] += part[i];"""
EXCHANGED = "outputs and tokens are exchanged: sum 0 is output g of token t, at y[t * 16 + g]"
TILE_MISTAKES = mistakes(
    "10.2",
    (
        "each round begins with sums of 0: the mma adds to its first argument, so set that to 0 once",
        (LOOP, f"{LOOP}    for (float& sum : sums) sum = 0;\n"),
    ),
    (
        "only the first 16 columns are multiplied: add k to w and to x",
        (LOAD, "load_by_hand(f, w, x, stride);"),
    ),
    (
        "only w moves on to the next columns: add k to x too",
        (LOAD, LOAD.replace("x + k", "x")),
    ),
    ("the last 16 columns are left out", ("k < columns; k", "k + 16 < columns; k")),
    ("half of the columns are left out: an mma has 16, not 32", ("k += 16", "k += 32")),
    (
        "correct up to rounding, but the sum runs from the last column to the first",
        ("int k = 0; k < columns; k += 16", "int k = columns - 16; k >= 0; k -= 16"),
    ),
    (
        "correct up to rounding, but each mma has sums of its own, added afterwards: let it add to the sums",
        (MMA, APART),
    ),
    (
        "correct up to rounding, but there are two sums, added at the end: use one",
        (SUMS, "  float sums[4] = {}, others[4] = {};\n"),
        (
            MMA,
            "mma_m16n8k16(k % 32 ? others : sums, f.a.v, f.b.v);\n    if (k + 16 >= columns)\n"
            "      for (int i = 0; i < 4; i++) sums[i] += others[i];",
        ),
    ),
    ("sums 2 and 3 belong to outputs 8 further on: g + 8", (STORE, STORE.replace(" + i / 2 * 8", ""))),
    (
        "sums 0 and 1 are two tokens of output g, sums 2 and 3 those of output g + 8",
        (STORE, STORE.replace("i % 2", "i / 2").replace("i / 2 * 8", "i % 2 * 8")),
    ),
    (EXCHANGED, (STORE, "for (int i = 0; i < 4; i++) y[(g + i / 2 * 8) * 16 + t + i % 2] = sums[i];")),
    (EXCHANGED, (STORE, "for (int i = 0; i < 4; i++) y[(g + i / 2 * 8) * 8 + t + i % 2] = sums[i];")),
    ("a lane's first token is 2 * (lane % 4), because it holds pairs", (LANE, "t = threadIdx.x % 4;")),
    (
        "correct, but y is written in each round: once, after the last",
        (MMA, f"{MMA}\n    {STORE}"),
    ),
)

X4 = "load_matrices<4>(f.a.v, w + place(first_row + lane % 16, 2 * step + lane / 16));"
X2 = "load_matrices<2>(f.b.v, x + place(lane % 8, 2 * step + lane / 8 % 2));"
HAND = """  int g = lane / 4, t = lane % 4 * 2;
  for (int i = 0; i < 8; i += 2) {
    int row = first_row + g + i / 2 % 2 * 8, chunk = 2 * step + i / 4;
    auto two = load_wide<Vec<bfloat16, 2>>(w + place(row, chunk) + t);
    f.a.v[i] = two.v[0], f.a.v[i + 1] = two.v[1];
  }
"""
HAND_B = """for (int i = 0; i < 4; i += 2) {
    auto two = load_wide<Vec<bfloat16, 2>>(x + place(lane / 4, 2 * step + i / 2) + lane % 4 * 2);
    f.b.v[i] = two.v[0], f.b.v[i + 1] = two.v[1];
  }"""
TURN = "load_matrices_transposed<4>"
LDMATRIX_MISTAKES = mistakes(
    "10.3",
    ("correct, but loaded by hand: two accesses are enough with load_matrices", (X4, HAND), (X2, HAND_B)),
    (
        "matrices 2 and 3 of a are exchanged: lanes 8 to 15 point to the rows 8 further down",
        (X4, X4.replace("lane % 16", "lane % 8 + lane / 16 * 8").replace("+ lane / 16)", "+ lane / 8 % 2)")),
    ),
    (
        "a lane points to the row of its own numbers: lane i must point to row i % 8 of matrix i / 8",
        (X4, X4.replace("lane % 16", "lane / 4").replace(" + lane / 16", "")),
        (X2, X2.replace("lane % 8", "lane / 4").replace(" + lane / 8 % 2", "")),
    ),
    (
        "all matrices of a begin at row first_row: lanes 8 to 15 and 24 to 31 point 8 rows further down",
        (X4, X4.replace("lane % 16", "lane % 8")),
    ),
    (
        "both halves of a are the same columns: lanes 16 to 31 point to the next chunk",
        (X4, X4.replace(" + lane / 16", "")),
    ),
    (
        "both halves of b are the same columns: lanes 8 to 15 point to the next chunk",
        (X2, X2.replace(" + lane / 8 % 2", "")),
    ),
    (
        "the step is not used: its 16 columns begin at chunk 2 * step",
        (X4, X4.replace("2 * step + ", "")),
        (X2, X2.replace("2 * step + ", "")),
    ),
    (
        "step is not the number of a chunk: 16 columns are two chunks",
        (X4, X4.replace("2 * step", "step")),
        (X2, X2.replace("2 * step", "step")),
    ),
    (
        "the thread's number is taken for the lane's: lane = threadIdx.x % 32, also in the second warp",
        ("int lane = threadIdx.x % 32;", "int lane = threadIdx.x;"),
    ),
    ("each warp has rows of its own: add first_row", (X4, X4.replace("first_row + ", ""))),
    (
        "the layout is used when a stage is written, but not here: chunk c of row r lies at place(r, c)",
        (
            X4,
            "load_matrices<4>(f.a.v, w + (first_row + lane % 16) * kDepth + (2 * step + lane / 16) * kWide);",
        ),
        (X2, "load_matrices<2>(f.b.v, x + lane % 8 * kDepth + (2 * step + lane / 8 % 2) * kWide);"),
    ),
    (
        "a is turned over: use load_matrices, not load_matrices_transposed",
        (X4, X4.replace("load_matrices<4>", TURN)),
    ),
    (
        "a and b are exchanged: a is W, b is x",
        (X4, X4.replace("w + place(first_row + lane % 16", "x + place(lane % 8")),
        (X2, X2.replace("x + place(", "w + place(first_row + ")),
    ),
)

PLACE = "return row * kDepth + (chunk ^ row % 8) * kWide;"
LAYOUT_MISTAKES = mistakes(
    "10.4",
    (
        "8.00 wavefronts: a chunk of eight rows lies in the same four banks, because a row is 32 words",
        (PLACE, "return row * kDepth + chunk * kWide;"),
    ),
    (
        "4.00 wavefronts: a chunk of eight rows lies in two places of four banks; there are eight",
        (PLACE, "return row * kDepth + (chunk ^ row % 2) * kWide;"),
    ),
    (
        "2.00 wavefronts: two of eight rows share their banks. All eight must differ: three bits of the row",
        (PLACE, "return row * kDepth + (chunk ^ row % 4) * kWide;"),
    ),
    ("two chunks share numbers: rows overlap", (PLACE, "return row * (kDepth - 8) + chunk * kWide;")),
    (
        "the rows take more room than kRoom numbers each",
        (PLACE, "return row * (kDepth + 24) + chunk * kWide;"),
    ),
    (
        "a chunk does not begin at a multiple of 8 numbers, 16 bytes",
        (PLACE, "return row * (kDepth + 4) + chunk * kWide;"),
    ),
    (
        "stored by columns: ldmatrix is free of conflicts, but storing a row takes 8.00 wavefronts",
        (PLACE, "return row / 8 * 8 * kDepth + (chunk * 8 + row % 8) * kWide;"),
    ),
)
