"""Lab 7: one-line mistakes in the finished file, and the diagnosis of each."""

from corpus.variants import Slip

SLIPS = [
    Slip(
        "reads a row too many",
        "tile[row][column] = first + row < n ?",
        "tile[row][column] = first + row <= n ?",
        {"7.1": ""},
    ),
    Slip(
        "a row does not see itself",
        "first_key + key <= first_row + row ?",
        "first_key + key < first_row + row ?",
        {"7.2": "the mask is <="},
    ),
    Slip("the sum keeps its scale", "s.sum * factor + sum", "s.sum + sum", {"7.3": "not multiplied"}),
    Slip("the output keeps its scale", "out[i] * factor;", "out[i];", {"7.4": "not multiplied"}),
    Slip(
        "V too early",
        "    __syncthreads();\n    load_tile(kv_tile, v",
        "    load_tile(kv_tile, v",
        {"7.5": "before or after V overwrites K"},
    ),
]
