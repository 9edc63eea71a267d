"""Lab 8: one-line mistakes in the finished file, and the diagnosis of each."""

from corpus.variants import Slip

SLIPS = [
    Slip(
        "pages ignored",
        "return table[key / block_size] * block_size + key % block_size;",
        "return key;",
        {"8.1": "is not used"},
    ),
    Slip("half a dot product", "d < kDim; d += 4", "d < kDim / 2; d += 4", {"8.2": "left out"}),
    Slip(
        "one barrier too few",
        "  __syncthreads();\n  if (threadIdx.x % 32 == 0)",
        "  if (threadIdx.x % 32 == 0)",
        {"8.3": "barrier is missing"},
    ),
    Slip("the sum keeps its scale", "  sum *= factor;\n", "", {"8.4": "sum is not multiplied"}),
    Slip("a key too many", "key < keys)", "key <= keys)", {"8.5": "past kv_len"}),
]
