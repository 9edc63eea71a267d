"""The known mistakes of tasks 14.1 to 14.4: edits of the finished file, each with its diagnosis."""

from __future__ import annotations

from minillm.labs.grader.cuda_kernels import Edits
from minillm.labs.grader.lab import Mistake
from minillm.labs.lab14_int4.group_cases import SOURCE

Change = tuple[str, str]


def mistakes(number: str, *known: tuple[str, *tuple[Change, ...]]) -> tuple[Mistake, ...]:
    """The mistakes of task `number`, from (diagnosis, changes of the finished file ..)."""
    edits = Edits(SOURCE, number)
    return tuple(Mistake(diagnosis, edits(*changes)) for diagnosis, *changes in known)


SMALLEST = "low = fminf(low, w[i]), high = fmaxf(high, w[i]);"
SCALE = "float scale = (high - low) / 15;"
MINIMUM = "chunk.minimum[output] = low;"
WORD = "uint32_t word = 0;"
INPUT = "int i = line * kCodes + k;"
INSIDE = "i < count && scale > 0"
CODE = "static_cast<uint32_t>(lrintf((w[i] - low) / scale))"
PUT = "word |= code << 4 * k;"
STORE = "chunk.line[line][output] = word;"
PACK = mistakes(
    "14.1",
    (
        "codes are cut off, not rounded: the nearest code is at most half a scale away",
        (CODE, "static_cast<uint32_t>((w[i] - low) / scale)"),
    ),
    (
        "the codes of a word are in reverse order: input 0 is in the lowest four bits",
        (PUT, "word |= code << 4 * (7 - k);"),
    ),
    (
        "the two codes of each byte are exchanged: the even input is in the lower half",
        (PUT, "word |= code << 4 * (k ^ 1);"),
    ),
    (
        "the scale is a 16th of the distance: 16 codes have 15 steps between them",
        (SCALE, "float scale = (high - low) / 16;"),
        (CODE, f"min(15u, {CODE})"),
    ),
    (
        "the scale is a 16th of the distance, and the largest weight becomes code 16, which has five bits",
        (SCALE, "float scale = (high - low) / 16;"),
    ),
    (
        "the scale is a 15th of the largest weight: take the distance from the smallest to the largest",
        (SCALE, "float scale = high / 15;"),
        (CODE, "static_cast<uint32_t>(fminf(15, fmaxf(0, rintf((w[i] - low) / scale))))"),
    ),
    (
        "the minimum is not subtracted before the division: code 0 is the smallest weight",
        (CODE, "static_cast<uint32_t>(fminf(15, fmaxf(0, rintf(w[i] / scale))))"),
    ),
    (
        "the smallest weight is never below 0, because the search begins with 0: begin with w[0]",
        ("float low = w[0], high = w[0];", "float low = 0, high = w[0];"),
    ),
    (
        "the largest weight is never below 0, because the search begins with 0: begin with w[0]",
        ("float low = w[0], high = w[0];", "float low = w[0], high = 0;"),
    ),
    (
        "smallest and largest weight are both searched from 0 on: begin with w[0]",
        ("float low = w[0], high = w[0];", "float low = 0, high = 0;"),
    ),
    (
        "weights from `count` on are read: w ends there",
        ("i = 1; i < count", "i = 1; i < kGroup"),
        (INSIDE, "scale > 0"),
    ),
    ("codes from `count` on are not 0: w ends there", (INSIDE, "scale > 0")),
    (
        "equal weights have a scale of 0, and the division by it gives no code: all codes are 0",
        (INSIDE, "i < count"),
        (CODE, "static_cast<int>((w[i] - low) / scale + 0.5f)"),
    ),
    (
        "the lines have the inputs in turns: line l has the inputs 8 l to 8 l + 7",
        (INPUT, "int i = k * kLines + line;"),
    ),
    (
        "the words still have what the chunk held before: begin each word with 0",
        (WORD, "uint32_t word = chunk.line[line][output];"),
    ),
    (
        "lines past the end keep what they held before: write all eight words",
        (STORE, "if (line * kCodes < count) chunk.line[line][output] = word;"),
    ),
    (
        "the words of an output do not follow each other: line l of it is line[l][output]",
        (STORE, "chunk.line[output / 2][output % 2 * 8 + line] = word;"),
    ),
    (
        "minimum and scale are exchanged",
        ("chunk.scale[output] = scale;", "chunk.scale[output] = low;"),
        (MINIMUM, "chunk.minimum[output] = scale;"),
    ),
    (
        "the minimum is stored divided by the scale: store the smallest weight itself",
        (MINIMUM, "chunk.minimum[output] = low / scale;"),
    ),
    (
        "the minimum is stored with its sign changed: it is added to scale * code",
        (MINIMUM, "chunk.minimum[output] = -low;"),
    ),
    (
        "codes run from -8 to 7: here they run from 0 to 15, because there is a minimum",
        (PUT, "word |= (code + 8 & 15) << 4 * k;"),
    ),
)

LOOP_K, LOOP_O = "for (int k = 0; k < kCodes; k++)", "for (int o = 0; o < kSide; o++)"
TAKE = "codes[k][o] = static_cast<int>(line[o] >> 4 * k & 15);"
UNPACK = mistakes(
    "14.2",
    (
        "the mask is missing: the other codes of the word are still there",
        (TAKE, "codes[k][o] = line[o] >> 4 * k;"),
    ),
    ("the mask has three bits: a code has four, so it is 15", (TAKE, TAKE.replace("15", "7"))),
    ("the mask has eight bits: a code has four, so it is 15", (TAKE, TAKE.replace("15", "255"))),
    ("the word is shifted by k: a code has four bits", (TAKE, TAKE.replace("4 * k", "k"))),
    (
        "the word is shifted by whole bytes: a byte holds two codes",
        (TAKE, TAKE.replace("4 * k", "8 * (k % 4)")),
    ),
    (
        "the codes come in reverse order: input 0 is in the lowest four bits",
        (TAKE, TAKE.replace("4 * k", "4 * (7 - k)")),
    ),
    (
        "the two codes of each byte are exchanged: the even input is in the lower half",
        (TAKE, TAKE.replace("4 * k", "4 * (k ^ 1)")),
    ),
    (
        "8 is subtracted: codes run from 0 to 15, the minimum takes care of the sign",
        (TAKE, TAKE.replace("& 15)", "& 15) - 8")),
    ),
    (
        "codes from 8 on become negative: shift an unsigned word, and mask after the shift",
        (TAKE, "codes[k][o] = static_cast<int>(line[o] << 28 - 4 * k) >> 28;"),
    ),
    (
        "the mask is used before the shift: only the lowest code of each word is left",
        (TAKE, "codes[k][o] = static_cast<int>((line[o] & 15) >> 4 * k);"),
    ),
    (
        "inputs and outputs are exchanged: codes[k][o] is code k of word o",
        (TAKE, "codes[(k * kSide + o) % 8][(k * kSide + o) / 8] = static_cast<int>(line[o] >> 4 * k & 15);"),
    ),
    (
        "inputs and outputs are exchanged: codes[k][o] is code k of word o",
        (TAKE, "(&codes[0][0])[o * kCodes + k] = static_cast<int>(line[o] >> 4 * k & 15);"),
    ),
    ("only eight of the 16 outputs are unpacked", (LOOP_O, "for (int o = 0; o < kCodes; o++)")),
    ("only four of the eight codes of a word are unpacked", (LOOP_K, "for (int k = 0; k < 4; k++)")),
)

ZERO = "for (float& sum : sums) sum = 0;"
LINES = "i < count; i += kCodes"
LINE = "chunk.line[i / kCodes]"
INNER = "k < kCodes && i + k < count"
ADD_UP = "sums[o] += codes[k][o] * x[i + k];"
DOT = mistakes(
    "14.3",
    ("the sums begin with what was there: set them to 0", (ZERO, "")),
    (
        "each line uses the first eight numbers of x: add the line's first input",
        (ADD_UP, ADD_UP.replace("i + k", "k")),
    ),
    ("each line is line 0: input i is in line i / 8", (LINE, "chunk.line[0]")),
    (
        "only the last line is left: set the sums to 0 once, before the loop",
        (ADD_UP, f"sums[o] = (k ? sums[o] : 0) + {ADD_UP[11:]}"),
    ),
    ("only the last input is left: add to the sums", (ADD_UP, ADD_UP.replace("+=", "="))),
    ("x is read past its end: the last line may have fewer than eight inputs", (INNER, "k < kCodes")),
    (
        "x is read past its end: stop at `count`, not at 64",
        (LINES, "i < kGroup; i += kCodes"),
        (INNER, "k < kCodes"),
    ),
    (
        "the last inputs are left out: `count` need not be a multiple of 8",
        (LINES, "i + kCodes <= count; i += kCodes"),
    ),
    ("the last input is left out", (INNER, "k < kCodes && i + k + 1 < count")),
    ("one input too many is read: x ends after `count` numbers", (INNER, "k < kCodes && i + k <= count")),
    (
        "the inputs of a line are taken in turns: line l has the inputs 8 l to 8 l + 7",
        (ADD_UP, "if (k * kLines + i / kCodes < count) sums[o] += codes[k][o] * x[k * kLines + i / kCodes];"),
    ),
    (
        "each code is multiplied by the scale: add_group does that, once for a group",
        (ADD_UP, ADD_UP.replace("codes[k][o]", "chunk.scale[o] * codes[k][o]")),
    ),
    (
        "each code becomes a weight here: add_group multiplies by the scale and adds the minimum",
        (ADD_UP, ADD_UP.replace("codes[k][o]", "(chunk.scale[o] * codes[k][o] + chunk.minimum[o])")),
    ),
    (
        "8 is subtracted from each code: here codes run from 0 to 15",
        (ADD_UP, ADD_UP.replace("codes[k][o]", "(codes[k][o] - 8)")),
    ),
    ("all outputs have the codes of output 0", (ADD_UP, ADD_UP.replace("codes[k][o]", "codes[k][0]"))),
)

TOTAL = "total += x[i];"
UP_TO = "i < count; i++"
GROW = "y[o] += chunk.scale[o] * sums[o] + chunk.minimum[o] * total;"
ADD = mistakes(
    "14.4",
    ("y is overwritten: the groups before are in it, add to it", (GROW, GROW.replace("+=", "="))),
    (
        "the minimum is missing: it adds minimum * (sum of x)",
        (GROW, GROW.replace(" + chunk.minimum[o] * total", "")),
    ),
    (
        "the minimum is multiplied by the number of inputs, not by the sum of x",
        (TOTAL, "total += 1;"),
    ),
    ("the minimum is added once, without the sum of x", (GROW, GROW.replace(" * total", ""))),
    (
        "the minimum is multiplied by the scale too: weight = scale * code + minimum",
        (GROW, "y[o] += chunk.scale[o] * (sums[o] + chunk.minimum[o] * total);"),
    ),
    (
        "the minimum is subtracted: weight = scale * code + minimum",
        (GROW, GROW.replace("sums[o] +", "sums[o] -")),
    ),
    ("the scale is missing", (GROW, GROW.replace("chunk.scale[o] * ", ""))),
    (
        "scale and minimum are exchanged",
        (GROW, "y[o] += chunk.minimum[o] * sums[o] + chunk.scale[o] * total;"),
    ),
    (
        "y is multiplied by the scale as well: only the new group is",
        (GROW, "y[o] = chunk.scale[o] * (y[o] + sums[o]) + chunk.minimum[o] * total;"),
    ),
    (
        "all outputs have the scale and the minimum of output 0",
        (GROW, GROW.replace("scale[o]", "scale[0]").replace("minimum[o]", "minimum[0]")),
    ),
    ("x is summed past its end: it has `count` numbers", (UP_TO, "i < kGroup; i++")),
    (
        "only the first eight numbers of x are summed: the group has `count`",
        (UP_TO, "i < min(count, kCodes); i++"),
    ),
    ("the last number of x is not summed", (UP_TO, "i + 1 < count; i++")),
    (
        "the sum of x is its mean: do not divide by the number of inputs",
        (GROW, GROW.replace("total", "total / count")),
    ),
    ("sums of sizes are taken: the sum of x keeps the signs", (TOTAL, "total += fabsf(x[i]);")),
    (
        "correct, but the minimum is used for each x: once for each output is enough, with the sum of x",
        (TOTAL, "for (int o = 0; o < kSide; o++) y[o] += chunk.minimum[o] * x[i];"),
        (GROW, "y[o] += chunk.scale[o] * sums[o];"),
    ),
    (
        "the minimum is added to each of the sums before the scale: weight = scale * code + minimum",
        (GROW, "y[o] += chunk.scale[o] * (sums[o] + chunk.minimum[o]);"),
    ),
)
