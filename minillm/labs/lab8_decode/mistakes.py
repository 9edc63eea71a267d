"""The known mistakes of lab 8: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.grader.cuda_kernels import Edits
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab8_decode.kernel_cases import SOURCE

Change = tuple[str, str]


def mistakes(number: str, *known: tuple[str, Change] | tuple[str, Change, Change]) -> tuple[Mistake, ...]:
    """The mistakes of task `number`, from (diagnosis, changes of the finished file ..)."""
    edits = Edits(SOURCE, number)
    return tuple(Mistake(diagnosis, edits(*changes)) for diagnosis, *changes in known)


SLOT = "table[key / block_size] * block_size + key % block_size"
NEXT = "key % block_size + 1 < block_size ? ((const volatile int*)table)[(key + 1) / block_size] : 0"
TWICE = "const volatile int* entry = table + key / block_size;\n  int first = *entry;\n"
SLOTS = mistakes(
    "8.1",
    (
        "correct, but the entry of key + 1 is read too: read only the entry of key",
        (f"return {SLOT};", f"int next = {NEXT};\n  return next < 0 ? 0 : {SLOT};"),
    ),
    (
        "the entry of key + 1 is read too, past the end of the table: read only the entry of key",
        (f"return {SLOT};", f"int next = table[(key + 1) / block_size];\n  return next < -1 ? 0 : {SLOT};"),
    ),
    (
        "correct, but the entry is read twice: keep it in a variable",
        (f"return {SLOT};", f"{TWICE}  return (first + *entry) / 2 * block_size + key % block_size;"),
    ),
    ("the block table is not used: a position is not a slot", (SLOT, "key")),
    (
        "the offset in the page is missing: add key % block_size",
        (SLOT, "table[key / block_size] * block_size"),
    ),
    (
        "quotient and remainder are exchanged: key / block_size selects the entry",
        (SLOT, "table[key % block_size] * block_size + key / block_size"),
    ),
    (
        "the page's number is not its first slot: multiply it by block_size",
        (SLOT, "table[key / block_size] + key % block_size"),
    ),
    (
        "only the first page is used: key / block_size selects the entry",
        (SLOT, "table[0] * block_size + key % block_size"),
    ),
    (
        "only the first page is used, and its end is overrun: key / block_size selects the entry",
        (SLOT, "table[0] * block_size + key"),
    ),
    ("a page has block_size slots, not four", (SLOT, "table[key / 4] * 4 + key % 4")),
    (
        "block_size need not be a power of two: divide, do not mask",
        (SLOT, "table[key / block_size] * block_size + (key & (block_size - 1))"),
    ),
)

FOUR = "Vec<float, 4> four = load_wide<Vec<float, 4>>(key + d);"
ADD = "sum += q[d + j] * four.v[j];"
TWO_AT_A_TIME = """if (j % 2 == 0) {
        Vec<float, 2> two = load_wide<Vec<float, 2>>(key + d + j);
        sum += q[d + j] * two.v[0];
        sum += q[d + j + 1] * two.v[1];
      }"""
DOT = mistakes(
    "8.2",
    (
        "correct, but it reads 4 bytes at a time: a float4 or load_wide<Vec<float, 4>> reads 16",
        (FOUR, ""),
        (ADD, "sum += q[d + j] * key[d + j];"),
    ),
    (
        "correct, but it reads 8 bytes at a time: a float4 or load_wide<Vec<float, 4>> reads 16",
        (FOUR, ""),
        (
            ADD,
            TWO_AT_A_TIME,
        ),
    ),
    ("half of the components are left out: kDim is 8", ("d < kDim; d += 4", "d < kDim / 2; d += 4")),
    ("the second four of the key are multiplied by the first four of q", (ADD, "sum += q[j] * four.v[j];")),
    ("the first four of the key are used twice: read from key + d", (FOUR, FOUR.replace("key + d", "key"))),
    ("only the last product is returned: add up", (ADD, "sum = q[d + j] * four.v[j];")),
    ("only the first of each four numbers is used", ("j < 4", "j < 1")),
)

SHUFFLES = (
    "for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, step));"
)
WRITE = "if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;"
READ = "for (int warp = 0; warp < kWarps; warp++) value = fmaxf(value, scratch[warp]);"
MAX = mistakes(
    "8.3",
    ("the maximum covers only one warp: the block has four", (READ, "")),
    (
        "the maximum covers only lane 0 of each warp, and the thread itself: use shuffles first",
        (SHUFFLES, ""),
    ),
    (
        "a shuffle is missing: the maximum covers half of each warp",
        (SHUFFLES, SHUFFLES.replace("step = 16", "step = 8")),
    ),
    (
        "the shuffle with step 1 is missing: the maximum covers every second lane",
        (SHUFFLES, SHUFFLES.replace("step > 0", "step > 1")),
    ),
    (
        "a barrier is missing before scratch is written: the next call overwrites it while others still read",
        (f"  __syncthreads();\n  {WRITE}", f"  {WRITE}"),
    ),
    ("a barrier is missing between writing scratch and reading it", (f"{WRITE}\n  __syncthreads();", WRITE)),
    (
        "all lanes write their warp's number to one place: let one lane write",
        (WRITE, WRITE.replace("if (threadIdx.x % 32 == 0) ", "")),
    ),
    ("the last step begins with 0, but all values may be negative", (READ, f"value = 0;\n  {READ}")),
    ("the last warp is left out", (READ, READ.replace("warp < kWarps", "warp < kWarps - 1"))),
)

OUT, SUM = "  out *= factor;\n", "  sum *= factor;\n"
EACH = "    sum += weights[i];\n    out += weights[i] * values[offsets[i] + column];\n"
AGAIN = "    float again = ((const volatile float*)values)[offsets[i] + column];\n"
VALUE = mistakes(
    "8.4",
    ("the output is not multiplied by the factor", (OUT, "")),
    ("the sum is not multiplied by the factor", (SUM, "")),
    ("neither the output nor the sum is multiplied by the factor", (OUT, ""), (SUM, "")),
    (
        "the output and the sum are multiplied by the factor for each key: once",
        (OUT + SUM, ""),
        (EACH, f"  {OUT}  {SUM}{EACH}"),
    ),
    (
        "the factor is applied to the new weights and values too: only to what was summed before",
        (OUT + SUM, ""),
        (f"{EACH}  }}\n", f"{EACH}  }}\n{OUT}{SUM}"),
    ),
    (
        "the offsets are not used: key i is not row i of the cache",
        ("values[offsets[i] + column]", "values[i * kDim + column]"),
    ),
    (
        "the column is missing: every thread reads column 0",
        ("values[offsets[i] + column]", "values[offsets[i]]"),
    ),
    ("the values are not multiplied by their weights", ("out += weights[i] * values", "out += values")),
    ("the weights are not added to the sum", ("    sum += weights[i];\n", "")),
    (
        "correct, but each value is read twice: keep it in a variable",
        (
            EACH,
            f"{AGAIN}{EACH}    out += 0 * again;\n",
        ),
    ),
    ("one key too many is read: stop at count", ("i < count", "i <= count")),
    ("always 128 keys are read: stop at count", ("i < count", "i < kThreads + 0 * count")),
)

GROUP = "kv_head = head / (num_heads / num_kv_heads);"
LOOP = "for (int first = 0; first < keys; first += kThreads) {\n    __syncthreads();\n"
SCORE = "score = dot(q_row, k_cache + offsets[thread]) * scale;"
WEIGHT = "weights[thread] = expf(score - largest);"
COUNT = "min(kThreads, keys - first)"
FINISH = "out[row + thread] = column / sum;"
LOAD_Q = "  if (thread < kDim) q_row[thread] = q[row + thread];\n"
KERNEL = mistakes(
    "8.5",
    (
        "query head h reads kv head h / (num_heads / num_kv_heads), not h % num_kv_heads",
        (GROUP, "kv_head = head % num_kv_heads;"),
    ),
    ("query head h reads kv head h / (num_heads / num_kv_heads), not kv head h", (GROUP, "kv_head = head;")),
    ("every query head reads kv head 0: use h / (num_heads / num_kv_heads)", (GROUP, "kv_head = 0;")),
    ("a key past kv_len is read: its slot may hold NaN", ("key < keys)", "key <= keys)")),
    ("only the first 128 keys are seen", ("first < keys; first += kThreads", "first < 1; first += kThreads")),
    (
        "the keys after the last full 128 are left out",
        ("first < keys; first", "first + kThreads <= keys; first"),
    ),
    ("the result is not divided by the sum of the weights", (FINISH, "out[row + thread] = column;")),
    ("the scores are not scaled", (SCORE, SCORE.replace(" * scale", ""))),
    (
        "the maximum of the earlier rounds is forgotten, or no maximum is subtracted: exp overflows",
        ("fmaxf(max_score, block_max(score, scratch))", "block_max(score, scratch)"),
    ),
    ("the new maximum is not stored", ("    max_score = largest;\n", "")),
    ("the weights are the scores: write exp(score - max)", (WEIGHT, "weights[thread] = score - largest;")),
    ("the last round adds 128 keys: it has only keys - first", (COUNT, "kThreads")),
    ("K is read where V is needed", ("weights, v_cache,", "weights, k_cache,")),
    (
        "a barrier is missing between writing the weights and adding the values",
        (f"{WEIGHT}\n    __syncthreads();", WEIGHT),
    ),
    (
        "a barrier is missing at the start of a round: q is not yet written when it is read",
        (LOOP, LOOP.replace("    __syncthreads();\n", "")),
    ),
    (
        "threads without a key leave the loop before a barrier: let them take part with the score -INFINITY",
        ("    float score = -INFINITY;\n", "    if (key >= keys) break;\n    float score = -INFINITY;\n"),
    ),
    (
        "threads that add no values return before a barrier: let them take part",
        (LOAD_Q, f"  if (thread >= kDim) return;\n{LOAD_Q}"),
    ),
    (
        "every key is read twice from global memory: keep its score",
        (WEIGHT, f"if (key < keys) {SCORE}\n    {WEIGHT}"),
    ),
    (
        "correct, but the table's entry of each key is read twice: keep it in a variable",
        (
            "offsets[thread] = (slot_of(table, key, block_size)",
            "int entry = ((const volatile int*)table)[key / block_size];\n"
            "      offsets[thread] = (entry < 0 ? 0 : slot_of(table, key, block_size)",
        ),
    ),
    ("the slot of the key is not looked up: use slot_of", ("slot_of(table, key, block_size)", "key")),
)
