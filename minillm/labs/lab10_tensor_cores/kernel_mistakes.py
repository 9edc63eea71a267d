"""The known mistakes of tasks 10.5 and 10.6: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.lab10_tensor_cores.mistakes import mistakes

LINES = "for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {"
WHERE = "int row = i / kChunks, chunk = i % kChunks, at"
TO, INSIDE = "stage + place(row, chunk)", "first + row < rows && at < columns"
ASYNC = f"copy_async_or_zero({TO}, source, {INSIDE});"
PLAIN = f"""Vec<bfloat16, 8> eight = {{}};
    if ({INSIDE}) eight = load_wide<Vec<bfloat16, 8>>(source);
    store_wide({TO}, eight);"""
COPY = mistakes(
    "10.5",
    (
        "correct, but the threads load and store themselves: use copy_async_or_zero, which does not wait",
        (ASYNC, PLAIN),
    ),
    (
        "correct, but the function commits: the caller does, once for both matrices of a stage",
        (f"{ASYNC}\n  }}\n", f"{ASYNC}\n  }}\n  commit_copies();\n"),
    ),
    ("rows past the end are read: nothing is inside from row `rows` on", (INSIDE, "at < columns")),
    ("one row too many is read: row `rows` is past the end", (INSIDE, INSIDE.replace("< rows", "<= rows"))),
    (
        "the row is compared by its number in the stage: add `first`",
        (INSIDE, INSIDE.replace("first + row", "row")),
    ),
    (
        "columns past the end are read: nothing is inside from column `columns` on",
        (INSIDE, "first + row < rows"),
    ),
    (
        "the column is compared by its number in the stage: add `column`",
        (INSIDE, INSIDE.replace("at < columns", "chunk * kWide < columns")),
    ),
    (
        "what is past the end keeps what the stage held before: copy_async_or_zero writes zeros",
        (ASYNC, f"if ({INSIDE}) copy_async<16>({TO}, source);"),
    ),
    ("the stage begins at row `first` of the matrix", ("(first + row) * columns", "row * columns")),
    ("the stage begins at column `column` of the matrix", ("columns + at;", "columns + chunk * kWide;")),
    (
        "each thread copies one chunk: 32 rows have 256 chunks, four for each thread",
        (LINES, "if (int i = threadIdx.x; i < kRows * kChunks) {"),
    ),
    (
        "correct, but neighbouring lanes read different rows: half of each sector is fetched in vain",
        (WHERE, "int row = i % kRows, chunk = i / kRows, at"),
    ),
    (
        "the layout is not used: chunk c of row r lies at place(r, c)",
        (ASYNC, ASYNC.replace("place(row, chunk)", "row * kDepth + chunk * kWide")),
    ),
)

START = "  copy_stage(0);\n  commit_copies();\n"
NEXT = "    if (stage + 1 < stages) copy_stage(stage + 1);\n    commit_copies();\n"
WAIT, BARRIER = "    wait_copies<1>();\n", "    __syncthreads();\n"
MULTIPLY = "    for (int step = 0; step < kSteps; step++) {\n"
LOAD = "load_fragments(f, w_stages[stage % 2], x_stages[stage % 2], 16 * warp, step);"
MMA = "mma_m16n8k16(sums, f.a.v, f.b.v);"
ROW = "row = first_out + 16 * warp + lane / 4 + i / 2 * 8"
TOKEN = "token = first_token + lane % 4 * 2 + i % 2"
END = "if (row < out && token < tokens) y"
STAGES = "stage < stages; stage++"
COPY_W = "weight, first_out, out, in, stage * kDepth);"
COPY_X = "x, first_token, tokens, in, stage * kDepth);"
BACKWARDS = "(stages - 1 - stage) * kDepth"
KERNEL = mistakes(
    "10.6",
    (
        "the copies of this stage are still on their way: only the next stage's may be, wait_copies<1>",
        (WAIT, "    wait_copies<2>();\n"),
    ),
    (
        "the copies of the last stage are not waited for: commit in each round, or wait_copies<0> at the end",
        (
            NEXT,
            "    if (stage + 1 < stages) {\n      copy_stage(stage + 1);\n      commit_copies();\n    }\n",
        ),
    ),
    (
        "a barrier is missing between the wait and the reads: a thread waits only for its own copies",
        (WAIT + BARRIER, WAIT),
    ),
    (
        "a barrier is missing after a stage was multiplied: the next copy overwrites what others still read",
        (f"    }}\n{BARRIER}  }}\n", "    }\n  }\n"),
    ),
    (
        "both barriers are missing: threads read what others copy, and overwrite what others still read",
        (WAIT + BARRIER, WAIT),
        (f"    }}\n{BARRIER}  }}\n", "    }\n  }\n"),
    ),
    (
        "correct, but a stage is copied only after the one before was multiplied: nothing overlaps",
        (START, ""),
        (NEXT + WAIT, "    copy_stage(stage);\n    commit_copies();\n    wait_copies<0>();\n"),
    ),
    (
        "each stage begins with sums of 0: only the columns of the last stage are left",
        (MULTIPLY, f"    for (float& sum : sums) sum = 0;\n{MULTIPLY}"),
    ),
    (
        "the last columns are left out: `in` need not be a multiple of 64",
        (STAGES, "stage < in / kDepth; stage++"),
    ),
    ("only the first stage is multiplied", (STAGES, "stage < 1; stage++")),
    (
        "the stages are multiplied from the last to the first: another order of the sum",
        (COPY_W, COPY_W.replace("stage * kDepth", BACKWARDS)),
        (COPY_X, COPY_X.replace("stage * kDepth", BACKWARDS)),
    ),
    (
        "only 16 columns of each stage are multiplied: four steps",
        (MULTIPLY, MULTIPLY.replace("step < kSteps", "step < 1")),
    ),
    (
        "all steps read the first 16 columns: give `step` to load_fragments",
        (LOAD, LOAD.replace("warp, step", "warp, 0")),
    ),
    (
        "both warps multiply the first 16 rows of W: the second begins at row 16",
        (LOAD, LOAD.replace("16 * warp", "0")),
    ),
    (
        "the sums of both warps are written to the same outputs: add 16 * warp",
        (ROW, ROW.replace("16 * warp + ", "")),
    ),
    ("sums 2 and 3 belong to outputs 8 further on", (ROW, ROW.removesuffix(" + i / 2 * 8"))),
    (
        "sums 0 and 1 are two tokens of one output, 2 and 3 those of the output 8 further on",
        (ROW, ROW.replace("i / 2 * 8", "i % 2 * 8")),
        (TOKEN, TOKEN.replace("i % 2", "i / 2")),
    ),
    ("outputs past the end are written, over those of the next token", (END, "if (token < tokens) y")),
    ("tokens past the end are written", (END, "if (row < out) y")),
    ("every block writes the first 8 tokens: add first_token", (TOKEN, TOKEN.replace("first_token + ", ""))),
    (
        "each mma has sums of its own, added afterwards: other bits than one sum from column 0 to the last",
        (
            MMA,
            "float part[4] = {};\n      mma_m16n8k16(part, f.a.v, f.b.v);\n"
            "      for (int i = 0; i < 4; i++) sums[i] += part[i];",
        ),
    ),
)
