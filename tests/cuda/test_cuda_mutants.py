# ruff: noqa: E501 - a mutant is a line of the table
"""Kernels with one wrong line each (mutants): each is caught by the check that the table names.

A mutant runs in `fast`, which shows wrong numbers and accesses out of bounds, then in `check`. Then its
traffic is compared with that of the right kernel, which shows a slow kernel or an unnecessary read. A
mutant that survives all three shows a gap in the tests.
"""

from __future__ import annotations

import random as random_numbers
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path

import family_oracle
import oracle
import pytest
import torch
from cases import Case, random
from mutants import (
    BARRIER,
    BYTES,
    FLOAT32_ONLY,
    WAVEFRONTS,
    WRONG,
    compile_here,
    copy_sources,
    drop_lines,
    make_edits,
    verdict,
)
from torch import Tensor
from verifying import make_drafts, random_tree, walk_trees

from minillm.ops.reference import ReferenceOps
from minillm.ops.simt import KernelLibrary
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sources import find_sources

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

# (kernel, name of the mutant, text, replacement, what catches it). A text that begins with "paging.h: " or
# "tensor_tile.h: " is replaced in that file.
MUTANTS = [
    ("attention_v2", "no barrier after slots", f"{BARRIER}  // slots are written, and the previous tile's V has been read", "", WRONG),
    ("attention_v2", "no barrier after K", f"{BARRIER}\n\n    float scores", "float scores", WRONG),
    ("attention_v2", "no barrier before V", f"{BARRIER}  // K has been read; V takes its place", "", WRONG),
    ("attention_v2", "no barrier after V", f"{BARRIER}\n\n    if (from >= end)", "if (from >= end)", WRONG),
    ("attention_v2", "mask a key short", "keys.last + 1 - tile_start", "keys.last - tile_start", WRONG),
    ("attention_v2", "mask a key long", "keys.last + 1 - tile_start", "keys.last + 2 - tile_start", WRONG),
    ("attention_v2", "last tile forgotten", "key_tile <= last_tile", "key_tile < last_tile", WRONG),
    ("attention_v2", "all tiles from the first", "int first_tile = ", "int first_tile = 0 * ", BYTES),
    ("attention_v2", "a key past the end is read", "key < kv_len ?", "key <= kv_len ?", BYTES),
    ("attention_v2", "wrong kv head", "kv_head = head / (p.num_heads / p.num_kv_heads)", "kv_head = head % p.num_kv_heads", WRONG),
    ("attention_v2", "old sums not rescaled", "out[i] *= factor;", "", WRONG),
    ("attention_v2", "weights transposed", "float weight = weights[row][key];", "float weight = weights[key][row];", WRONG),
    ("attention_v2", "no padding", "kPitch = kDim + 1", "kPitch = kDim", WAVEFRONTS),
    ("attention_v2", "scale forgotten", "scores[j] *= p.scale;", "", WRONG),
    ("attention_v2", "rows past the tile written", "if (row >= tile.rows) return;", "", "out of bounds"),
    ("attention_v2", "maximum of two lanes only", "tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffff, tile_max, 2));", "", WRONG),
    ("attention_v2", "barrier in a branch", f"{BARRIER}  // K has been read; V takes its place", f"if (row < tile.rows) {BARRIER}", "divergence"),
    ("attention_v2", "window a key long", "paging.h: last - window + 1", "last - window", WRONG),
    ("attention_v2", "page table off by one", "paging.h: key / block_size]", "key / block_size + 1]", WRONG),
    ("attention_v2", "position in the page lost", "paging.h: block * block_size + key % block_size", "block * block_size", WRONG),
    ("attention_v2", "sum not rescaled", "paging.h: s.sum *= factor;", "", WRONG),
    ("decode_d1", "no barrier before the round", f"{BARRIER}  // q is written; the previous iteration's weights have been read", "", WRONG),
    ("decode_d1", "no barrier after the maxima", f"{BARRIER}\n\n      // The weights", "// The weights", WRONG),
    ("decode_d1", "no barrier after the weights", f"{BARRIER}\n\n      for (int tile = 0; tile < kTiles", "for (int tile = 0; tile < kTiles", WRONG),
    ("decode_d1", "maximum without its own tile", "tile <= thread / 32", "tile < thread / 32", WRONG),
    ("decode_d1", "mask a key short", "min(keys.last + 1, tile_start", "min(keys.last, tile_start", WRONG),
    ("decode_d1", "weights of the neighbour", "weights[k - start]", "weights[k - start + 1]", WRONG),
    ("decode_d1", "columns past the head", "if (thread >= kDim) continue;", "", BYTES),
    ("norm", "no barrier before the sum", f"{BARRIER}\n  float sum = 0;", "float sum = 0;", WRONG),
    ("norm", "half of a warp", "step = 16", "step = 8", WRONG),
    ("norm", "an element too many", "i < p.size; i += kThreads) {\n    float value", "i <= p.size; i += kThreads) {\n    float value", "out of bounds"),
    ("norm", "mean of another length", "block_sum(squares) / p.size", "block_sum(squares) / kThreads", WRONG),
    ("linear_l2", "no barrier before loading", f"{BARRIER}  // the previous tiles have been read", "", WRONG),
    ("linear_l2", "no barrier after loading", f"{BARRIER}\n    load_next(", "load_next(", WRONG),
    ("linear_l2", "a row too many", "first + row < rows", "first + row <= rows", "out of bounds"),
    ("linear_l2", "weights transposed", "w_tile[local_col][k]", "w_tile[local_row][k]", WRONG),
    ("linear_l2", "no padding", "kPitch = kDepth + 1", "kPitch = kDepth", WAVEFRONTS),
    ("linear_l5", "no barrier before the first stage", f"{BARRIER}  // everybody's copies", "// everybody's copies", WRONG),
    ("linear_l5", "no barrier before the next stage", f"{BARRIER}  // the next stage", "// the next stage", WRONG),
    ("linear_l5", "the first stage not waited for", "wait_copies<S::kStages - 2>", "wait_copies<S::kStages - 1>", WRONG),
    ("linear_l5", "the next stage not waited for", "commit_copies();\n        wait_copies<S::kStages - 2>", "commit_copies();\n        wait_copies<S::kStages - 1>", WRONG),
    ("linear_l5", "copies in no group", "commit_copies();\n        wait_copies", "wait_copies", WRONG),
    ("linear_l5", "copied over what is being read", "stage + S::kStages - 1, free_slot", "stage + S::kStages - 1, slot", WRONG),
    ("linear_l5", "the last columns are lost", "(p.in + kDepth - 1) / kDepth", "p.in / kDepth", WRONG),
    ("linear_l5", "a chunk too many", "column < columns_left", "column <= columns_left", "out of bounds"),
    ("linear_l5", "a row too many", "i * kRowsApart < rows_left", "i * kRowsApart <= rows_left", "out of bounds"),
    ("linear_l5", "no swizzle", "kSwizzled = 8", "kSwizzled = 1", WAVEFRONTS),
    ("linear_l5", "half of W twice", "place(w_row, lane / 16)", "place(w_row, 0)", WRONG),
    ("linear_l5", "halves of x exchanged", "place(x_row, lane / 8 % 2)", "place(x_row, (lane / 8 + 1) % 2)", WRONG),
    ("linear_l5", "fragments of the step before", "step % 2].x[j]", "(step + 1) % 2].x[j]", WRONG),
    ("linear_l5", "bias of the token", "(p.bias)[row]", "(p.bias)[token]", "out of bounds"),
    ("linear_l5", "a token too many", "token + next < p.rows", "token + next <= p.rows", "out of bounds"),
    ("attention_v3", "no barrier before the tile", f"tensor_tile.h: {BARRIER}  // everybody's copies", "// everybody's copies", WRONG),
    ("attention_v3", "the tile not waited for", "tensor_tile.h: wait_copies<kStages - 2>", "wait_copies<kStages - 1>", WRONG),
    ("attention_v3", "copies in no group", "tensor_tile.h: commit_copies();", "", WRONG),
    ("attention_v3", "copied over what is being read", "tensor_tile.h: kStages - 1, last, free_stage", "kStages - 1, last, stage", WRONG),
    ("attention_v3", "a key past the end", "tensor_tile.h: key < rows_.kv_len ?", "key <= rows_.kv_len ?", WRONG),
    ("attention_v3", "slots of the tile before", "tensor_tile.h: find_slots(tile + 1);", "find_slots(tile);", WRONG),
    ("attention_v3", "mask a key short", "tensor_tile.h: key > keys.last", "key >= keys.last", WRONG),
    ("attention_v3", "mask of the other row", "tensor_tile.h: query.keys[i % 4 / 2]", "query.keys[0]", WRONG),
    ("attention_v3", "window forgotten", "tensor_tile.h: start < query.all_first ||", "", WRONG),
    ("attention_v3", "window a key long", "tensor_tile.h: key < keys.first ||", "key < keys.first - 1 ||", WRONG),
    ("attention_v3", "wrong kv head", "tensor_tile.h: column = rows.kv_head * kDim", "column = 0 * kDim", WRONG),
    ("attention_v3", "wrong query head", "tensor_tile.h: rows.kv_head * rows.group + row % rows.group", "rows.kv_head * rows.group", WRONG),
    ("attention_v3", "old output not rescaled", "tensor_tile.h: to.out[j / 2][2 * i + j % 2] *= factor;", "to.out[j / 2][2 * i + j % 2] *= 1;", WRONG),
    ("attention_v3", "sum not rescaled", "tensor_tile.h: softmax.sum *= factor;", "", WRONG),
    ("attention_v3", "maximum of two lanes only", "tensor_tile.h: largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));", "", WRONG),
    ("attention_v3", "sum of two lanes only", "splits.h: sum += __shfl_xor_sync(0xffffffff, sum, 2);", "", WRONG),
    ("attention_v3", "V not turned over", "tensor_tile.h: load_matrices_transposed<4>", "load_matrices<4>", WRONG),
    ("attention_v3", "halves of K exchanged", "tensor_tile.h: lane / 16 * 8 + lane % 8, lane / 8 % 2", "lane / 16 * 8 + lane % 8, (lane / 8 + 1) % 2", WRONG),
    ("attention_v3", "no swizzle", "tensor_tile.h: kSwizzled = 8", "kSwizzled = 1", WAVEFRONTS),
    ("attention_v3", "a split as it is", "splits.h: fmaf(split, by.added,", "fmaf(split, 1.0f,", WRONG),
    ("attention_v3", "a split twice", "splits.h: part = Part<kDim>();", "", WRONG),
    ("attention_v3", "last tile forgotten", "ring.walk(first_tile, last_tile,", "ring.walk(first_tile, last_tile - 1,", WRONG),
    ("attention_v3", "all tiles from the first", "int first_tile = ", "int first_tile = 0 * ", BYTES),
    ("attention_v3", "rows past the last written", "splits.h: if (row >= count) return;", "", "out of bounds"),
    ("attention_v3", "tiles of the warp's first row", "<= warp_last)", "<= query.all_last)", WRONG),
    ("decode_d3", "no barrier before the tile", f"tensor_tile.h: {BARRIER}  // everybody's copies", "// everybody's copies", WRONG),
    ("decode_d3", "no barrier before the next rows", f"{BARRIER}             // the rows before", "// the rows before", "race"),
    ("decode_d3", "the first tile of the next split", "split * kSplitKeys + kSplitKeys - 1", "split * kSplitKeys + kSplitKeys", WRONG),
    ("decode_d3", "all tiles from the first", "max(rows.keys(first_row).first, split * kSplitKeys)", "split * kSplitKeys", BYTES),
    ("decode_d3", "rows of one group", "first_row < rows.count(); first_row", "first_row < min(16, rows.count()); first_row", WRONG),
    ("decode_d3", "rows past the last written", "if (row >= count) continue;", "", "out of bounds"),
    ("decode_d3", "sums not finished", "finish(part);", "", WRONG),
    ("decode_d3", "the last part forgotten", "if (first + i > last) continue;\n      Factors", "if (first + i >= last) continue;\n      Factors", WRONG),
    ("decode_d3", "parts from the first split on", "first = keys.first / kSplitKeys; first <= last", "first = 0; first <= last", BYTES),
    ("decode_d3", "the sequence after", "query_start[middle] <= token", "query_start[middle] < token", WRONG),
    ("decode_d3", "a row too many combined", "if (row >= rows) return;", "", "out of bounds"),
    ("activation", "bound off by one", "if (i >= p.size) return;", "if (i > p.size) return;", "out of bounds"),
    ("activation", "halves exchanged", "from_float<T>(y)) * to_float(gate[p.size + i])", "from_float<T>(y)) * to_float(gate[i])", WRONG),
    ("activation", "gate not cut", "gate = gate > 7.0f ? 7.0f : gate;", "", WRONG),
    ("activation", "up cut on one side", "up < -7.0f ? -7.0f : up", "up", WRONG),
    ("activation", "cap only outside", "tanhf(x / cap)", "tanhf(x)", WRONG),
    ("activation", "half of the cube", "0.044715f * x * x * x", "0.044715f * x * x", WRONG),
    ("activation", "error function unscaled", "erff(x * 0.70710678f)", "erff(x)", WRONG),
    ("activation", "numbers below 0 kept", "x < 0 ? 0.0f : x", "x", WRONG),
    ("combine", "bound off by one", "if (i >= p.size) return;", "if (i > p.size) return;", "out of bounds"),
    ("combine", "rows in another order", "row * p.size", "n * p.size", WRONG),
    ("combine", "weight of the token before", "weight = p.weights[n]", "weight = p.weights[token]", WRONG),
    ("combine", "an expert too few", "n < (token + 1) * p.per_token", "n + 1 < (token + 1) * p.per_token", WRONG),
    ("combine", "a block too few", "ceil_div(p.size, kThreads)", "p.size / kThreads", WRONG),
    ("route", "no barrier after the logits", f"{BARRIER}  // the logits are written", "", WRONG),
    ("route", "no barrier after the ranks", f"{BARRIER}  // the ranks are written", "", "out of bounds"),
    ("route", "ties go to the highest number", "a == b && a_number < b_number", "a == b && a_number > b_number", WRONG),
    ("route", "ties have one rank", "a > b || (a == b && a_number < b_number)", "a > b", "out of bounds"),
    ("route", "NaN is the lowest", "return a_nan && (", "return b_nan && (", "out of bounds"),
    ("route", "not in rising order", "place += ranks[other] < p.per_token;", "place += ranks[other] < ranks[e];", WRONG),
    ("route", "always over all experts", "!p.renormalize || ranks[e]", "true || ranks[e]", WRONG),
    ("route", "always over the chosen", "!p.renormalize || ranks[e]", "ranks[e]", WRONG),
    ("route", "an expert too many", "ranks[e] >= p.per_token", "ranks[e] > p.per_token", WRONG),
    ("route", "half of a warp", "step = 16; step > 0; step /= 2) sum", "step = 8; step > 0; step /= 2) sum", WRONG),
    ("norm", "no barrier between the two sums", f"{BARRIER}  // the first sum has been read", "", WRONG),
    ("norm", "mean of another length", "block_sum(sum) / p.size", "block_sum(sum) / kThreads", WRONG),
    ("norm", "mean not subtracted", "(to_float(x[i]) - mean) * scale", "to_float(x[i]) * scale", WRONG),
    ("norm", "bias forgotten", "to_float(bias[i])));", "0.0f));", WRONG),
    ("norm", "offset forgotten", "to_float(weight[i]) + p.offset", "to_float(weight[i])", WRONG),
    ("rope_and_cache", "the rest not copied", "to[at] = from[at];", "", WRONG),
    ("rope_and_cache", "the rest from the head's first number", "2 * half + i % kept;", "i % kept;", WRONG),
    ("attention_v2", "cap before the scale", "paging.h: cap * tanhf(score / cap)", "cap * tanhf(score)", WRONG),
    ("attention_v2", "sink of another head", "paging.h: (p.sinks)[head]", "(p.sinks)[0]", WRONG),
    ("attention_v2", "a sink counts nothing", "paging.h: INFINITY ? 1.0f", "INFINITY ? 0.0f", WRONG),
    ("attention_v2", "scores not capped", "if (kVariant) scores[j] = cap_score", "if (false) scores[j] = cap_score", WRONG),
    ("decode_d1", "scores not capped", "if (kVariant) mine = cap_score", "if (false) mine = cap_score", WRONG),
    ("decode_d1", "sinks forgotten", "first_state<T, kVariant>", "first_state<T, false>", WRONG),
    ("attention_v2", "sinks forgotten", "first_state<T, kVariant>", "first_state<T, false>", WRONG),
    ("rope_and_cache", "turned the other way", "a * c - b * s", "a * c + b * s", WRONG),
    ("rope_and_cache", "neighbours paired", "at = head * head_dim + pair;", "at = head * head_dim + 2 * pair - pair % 2;", "out of bounds"),
    ("rope_and_cache", "position for slot", "slot = p.slots[token]", "slot = p.positions[token]", WRONG),
    ("copy_blocks", "a word short", "i < words;", "i + 1 < words;", WRONG),
    ("copy_blocks", "the wrong way round", "p.cache) + p.source[pair]", "p.cache) + p.destination[pair]", WRONG),
    ("copy_blocks", "half of the rounds", "i += gridDim.y * kThreads", "i += 2 * gridDim.y * kThreads", WRONG),
    ("copy_blocks", "rounds overlap", "i += gridDim.y * kThreads", "i += kThreads", "race"),
    ("linear_l2", "order of the sum by the number of rows", "k < depth; k++) sum = fmaf(x_tile[local_row][k], w_tile[local_col][k], sum)", "k < depth; k++) { int j = p.rows > 16 ? depth - 1 - k : k; sum = fmaf(x_tile[local_row][j], w_tile[local_col][j], sum); }", WRONG),
    ("attention_v1", "mask a key short", "key <= row.keys.last) {", "key < row.keys.last) {", WRONG),
    ("attention_v1", "mask a key long", "key <= row.keys.last) {", "key <= row.keys.last + 1) {", WRONG),
    ("attention_v1", "a key too many", "if (key >= p.sequences.kv_len", "if (key > p.sequences.kv_len", "out of bounds"),
    ("attention_v1", "sequence of the row before", "query_start[sequence + 1] <= token", "query_start[sequence + 1] < token", WRONG),
    ("attention_v1", "sums transposed", "out /= scratch.sums[head * p.sequences.num_tokens + token]", "out /= scratch.sums[token * p.num_heads + head]", WRONG),
    ("attention_v1", "half of a warp", "int step = 16; step > 0; step /= 2) sum +=", "int step = 8; step > 0; step /= 2) sum +=", WRONG),
    ("attention_v1", "masked keys read", "int key = row.keys.first; key <=", "int key = 0; key <=", BYTES),
    ("attention_v1", "a column too many", "if (column >= p.head_dim) return;", "if (column > p.head_dim) return;", "out of bounds"),
    ("decode_d1", "a key past the end is read", "key <= keys.last;\n      float mine", "key <= keys.last + 1;\n      float mine", BYTES),
    ("decode_d1", "wrong kv head", "kv_head = head / (p.num_heads / p.num_kv_heads)", "kv_head = head % p.num_kv_heads", WRONG),
    ("decode_d1", "rounds overlap", "start <= keys.last; start += kThreads", "start <= keys.last; start += kKeyTile", WRONG),
    ("norm", "weight backwards", "to_float(weight[i])", "to_float(weight[p.size - 1 - i])", WRONG),
    ("norm", "row of the neighbour", "static_cast<int64_t>(blockIdx.x / p.parts)", "static_cast<int64_t>(blockIdx.x / p.parts ^ 1)", "out of bounds"),
    ("norm", "heads overlap", "(blockIdx.x % p.parts) * p.size", "(blockIdx.x % p.parts) * (p.size - 1)", WRONG),
    ("norm", "rows without gaps", "if (!p.stride) p.stride", "p.stride", WRONG),
    ("gather", "row of the next token", "p.ids[row] * p.size", "p.ids[row + 1] * p.size", "out of bounds"),
    ("gather", "a number too few", "i < p.size;", "i + 1 < p.size;", WRONG),
    ("gather", "scaled after the sum", "to_float(value) + to_float(added[i])", "to_float(value) + p.scale * to_float(added[i])", WRONG),
    ("gather", "position of the token", "p.position_ids[row] * p.size", "p.ids[row] % 5 * p.size", WRONG),
    ("map", "a number too many", "if (i >= p.count) return;", "if (i > p.count) return;", "out of bounds"),
    ("map", "a block too few", "ceil_div<int64_t>(p.count, kThreads)", "p.count / kThreads", WRONG),
    ("map", "times instead of divided", "x /= p.number;", "x *= p.number;", WRONG),
    ("map", "not added", "x += to_float(static_cast<const T*>(p.other)[i]);", "", WRONG),
    ("attention_v2", "NaN for a row without keys", "paging.h: keys.last < keys.first ? 0.0f : out / s.sum", "out / s.sum", WRONG),
    ("decode_d1", "NaN for a row without keys", "paging.h: keys.last < keys.first ? 0.0f : out / s.sum", "out / s.sum", WRONG),
    ("attention_v1", "NaN for a row without keys", "if (row.keys.first <= row.keys.last) out /=", "out /=", WRONG),
    ("attention_v3", "NaN for a row without keys", "paging.h: keys.last < keys.first ? 0.0f : 1.0f / s.sum", "1.0f / s.sum", WRONG),
    ("decode_d3", "NaN for a row without keys", "paging.h: keys.last < keys.first ? 0.0f : 1.0f / s.sum", "1.0f / s.sum", WRONG),
    ("decode_d3", "a row without keys reads a split", "last = keys.last < 0 ? -1 : keys.last / kSplitKeys", "last = keys.last / kSplitKeys", BYTES),
    ("rope_and_cache", "a negative slot is written", "if (slot < 0) return;", "", "out of bounds"),
    ("linear_l2", "a column too many", "column + k < columns", "column + k <= columns", "out of bounds"),
    ("linear_l2", "a depth too many", "min(kDepth, p.in - column)", "min(kDepth, p.in - column + 1)", WAVEFRONTS),
    ("linear_l2", "bias of the row", "(p.bias)[col]", "(p.bias)[row]", WRONG),
    ("activation", "rows overlap", "row * (kGated ? 2 : 1) * p.size", "row * p.size", WRONG),
    ("activation", "a block too many", "ceil_div(p.size, kThreads)", "ceil_div(p.size, kThreads) - 1", WRONG),
    ("rope_and_cache", "a pair too many", "i < heads * half;", "i <= heads * half;", "out of bounds"),
    ("rope_and_cache", "the next position", "p.cos + p.positions[token] * half", "p.cos + (p.positions[token] + 1) * half", WRONG),
    ("rope_and_cache", "a number of v short", "i < kv_size; i +=", "i + 1 < kv_size; i +=", WRONG),
    ("rope_and_cache", "k where v belongs", "static_cast<T*>(p.v_cache) + slot", "static_cast<T*>(p.k_cache) + slot", WRONG),
    ("copy_blocks", "a word too many", "i < words;", "i <= words;", "out of bounds"),
    ("copy_blocks", "all to one place", "p.destination[pair] * words", "p.destination[0] * words", WRONG),
    ("verify", "last sibling instead of first", "min(value, __shfl", "max(value, __shfl", WRONG),
    ("verify", "siblings beyond 32 nodes forgotten", "first < end && found == end; first += 32", "first == at + 1; first += 32", WRONG),
    ("verify", "the search does not stop", "first < end && found == end; first += 32", "first < end; first += 32", WRONG),
    ("verify", "any child fits", "&& p.drafted[node] == drawn", "", WRONG),
    ("verify", "a child of any node fits", "p.parents[node] == at - begin && ", "", WRONG),
    ("verify", "parents counted from the batch's start", "p.parents[node] == at - begin", "p.parents[node] == at", WRONG),
    ("verify", "a node of the next request", "node < end && p.parents", "node <= end && p.parents", "out of bounds"),
    ("verify", "the rest not padded", "int rest = to + threadIdx.x", "int rest = to + 1 + threadIdx.x", WRONG),
    ("verify", "every lane writes the path", "if (threadIdx.x != 0) continue;", "", "race"),
    ("verify", "<= in the acceptance", "* drafted < target", "* drafted <= target", WRONG),
    ("verify", "no probability in the acceptance", "p.uniforms[request * (p.k + 1) + i] * drafted <", "p.uniforms[request * (p.k + 1) + i] <", WRONG),
    ("verify", "padding looked at", "if (id < 0) return false;", "", BYTES),
    ("verify", "uniform of the next draft", "p.uniforms[request * (p.k + 1) + i]", "p.uniforms[request * (p.k + 1) + i + 1]", WRONG),
    ("verify", "draft's row off by one", "p.draft_probs + (request * p.k + standing)", "p.draft_probs + (request * p.k + standing + 1)", WRONG),
    ("verify", "target's row off by one", "p.target_probs + (request * (p.k + 1) + standing)", "p.target_probs + (request * (p.k + 1) + standing + 1)", WRONG),
    ("verify", "rows of the target counted as the draft's", "p.target_probs[(request * (p.k + 1) + i)", "p.target_probs[(request * p.k + i)", WRONG),
    ("verify", "rest not clamped", "max(static_cast<double>(target[id]) - q, 0.0)", "static_cast<double>(target[id]) - q", WRONG),
    ("verify", "drawn from p, not from the rest", "bool fell = standing < p.k && draft[standing] >= 0;", "bool fell = false;", WRONG),
    ("verify", "a draft without probabilities kept", "if (fell && !p.draft_probs) weights.certain", "if (false) weights.certain", WRONG),
    ("verify", "p is q: drawn from max(p - q, 0)", "if (!(total > 0)) {", "if (false) {", WRONG),
    ("verify", "a part too short", "(vocab_size + warps - 1) / warps;", "vocab_size / warps;", WRONG),
    ("verify", "parts overlap", "to = min(from + part_size, end)", "to = min(from + part_size + 1, end)", WRONG),
    ("verify", "ids beyond the vocabulary", "to = min(from + part_size, end)", "to = from + part_size", WRONG),
    ("verify", "half of a warp", "step = 16; step > 0; step /= 2) sum", "step = 8; step > 0; step /= 2) sum", WRONG),
    ("verify", "no barrier before the sums", f"{BARRIER}  // the previous sums have been read", "", "deadlock"),
    ("verify", "no barrier after the sums", f"sums[warp] = sum;\n  {BARRIER}", "sums[warp] = sum;", "deadlock"),
    ("verify", "border belongs to the part before", "if (before > threshold) break;", "if (before >= threshold) break;", WRONG),
    ("verify", "a part of weight 0 taken", "if (!(sums[part] > 0)) continue;", "", WRONG),
    ("verify", "running sum starts anew in each round", "passed_part(sums, warps, uniform * total, running)", "passed_part(sums, warps, uniform * total, running = 0)", WRONG),
    ("verify", "the last draft's uniform draws", "p.uniforms[request * (p.k + 1) + p.k])", "p.uniforms[request * (p.k + 1) + p.k - 1])", WRONG),
    ("verify", "one token too few written", "i <= p.k; i += blockDim.x", "i < p.k; i += blockDim.x", WRONG),
    ("verify", "the whole row once more", "if (part_size == 1) return begin;", "if (part_size == 1) return weigh_all() > 0 ? begin : 0;", BYTES),
    ("linear_l1", "no barrier before loading", f"{BARRIER}  // the previous tiles have been read", "", WRONG),
    ("linear_l1", "no barrier after loading", f"{BARRIER}\n    int depth", "int depth", WRONG),
    ("linear_l1", "a row too many", "first + row < rows", "first + row <= rows", "out of bounds"),
    ("linear_l1", "a column too many", "column + k < columns", "column + k <= columns", "out of bounds"),
    ("linear_l1", "weights transposed", "w_tile[local_col][k]", "w_tile[local_row][k]", WRONG),
    ("linear_l1", "no padding", "kPitch = kDepth + 1", "kPitch = kDepth", WAVEFRONTS),
    ("linear_l1", "bias of the row", "(p.bias)[col]", "(p.bias)[row]", WRONG),
    ("linear_l3", "no barrier before storing", f"{BARRIER}  // the previous tiles have been read", "", WRONG),
    ("linear_l3", "no barrier after storing", f"{BARRIER}\n    load_next(", "load_next(", WRONG),
    ("linear_l3", "a row too many", "first + row < rows", "first + row <= rows", "out of bounds"),
    ("linear_l3", "a column too many", "column + k < columns", "column + k <= columns", "out of bounds"),
    ("linear_l3", "the other half of a row", "row + half * kHalf + first", "row + (1 - half) * kHalf + first", WRONG),
    ("linear_l3", "rows and outputs exchanged", "fmaf(x[i], w[j],", "fmaf(x[j], w[i],", WRONG),
    ("linear_l3", "no padding", "kPitch = kTile + kFour", "kPitch = kTile", WAVEFRONTS),
    ("linear_l3", "rows past the last written", "if (row >= p.rows) return;", "", "out of bounds"),
    ("linear_l3", "outputs past the last written", "if (col >= p.out) continue;", "", "out of bounds"),
    ("linear_l3", "order of the sum by the number of rows", "read_eight(x, x_tile[k], local_row);\n      read_eight(w, w_tile[k], local_col);", "int at = p.rows > 16 ? depth - 1 - k : k;\n      read_eight(x, x_tile[at], local_row);\n      read_eight(w, w_tile[at], local_col);", WRONG),
    ("linear_l3", "bias of the row", "(p.bias)[col]", "(p.bias)[row]", WRONG),
    ("linear_l4", "no barrier", f"{BARRIER}  // everybody's copies", "// everybody's copies", WRONG),
    ("linear_l4", "the stage not waited for", "wait_copies<kStages - 2>();", "wait_copies<kStages - 1>();", WRONG),
    ("linear_l4", "copies in no group", "commit_copies();", "", WRONG),
    ("linear_l4", "copied over what is being read", "copy(stage + kStages - 1);", "copy(stage + kStages - 1), copy(stage + kStages);", WRONG),
    ("linear_l4", "a row too many", "first + row < rows", "first + row <= rows", "out of bounds"),
    ("linear_l4", "columns past the end", "&& column + k < columns", "", "out of bounds"),
    ("linear_l4", "quarters of W exchanged", "row + j % 2 * 8][column + j / 2 * 8]", "row + j / 2 * 8][column + j % 2 * 8]", WRONG),
    ("linear_l4", "halves of x exchanged", "[column + 8 * j])", "[column + 8 * (1 - j)])", WRONG),
    ("linear_l4", "no padding", "kPitch = kDepth + kWide", "kPitch = kDepth", WAVEFRONTS),
    ("linear_l4", "tokens past the last written", "if (to < p.rows)", "", "out of bounds"),
    ("linear_l4", "bias of the token", "(p.bias)[row]", "(p.bias)[min(first_token, p.out - 1)]", WRONG),
    ("decode_d2", "no barrier before the tile", f"tensor_tile.h: {BARRIER}  // everybody's copies", "// everybody's copies", WRONG),
    ("decode_d2", "no barrier before the next rows", f"{BARRIER}  // the rows before", "// the rows before", "race"),
    ("decode_d2", "rows of one group", "first_row < rows.count(); first_row", "first_row < min(16, rows.count()); first_row", WRONG),
    ("decode_d2", "the last split forgotten", "ends_split(tile) || tile == last", "ends_split(tile)", WRONG),
    ("decode_d2", "all tiles from the first", "int first = rows", "int first = 0 * rows", BYTES),
    ("decode_d2", "the last tile forgotten", "ring.walk(first, last,", "ring.walk(first, last - 1,", WRONG),
    ("decode_d2", "keys of the first row", "last = rows.keys(count - 1)", "last = rows.keys(first_row)", WRONG),
]  # fmt: skip


# ---- one run per kernel, and its exact result -----------------------------------------------------

ATTENTION = Case([(1, 40), (35, 67), (2, 2), (3, 150)], heads=4, kv_heads=2, dim=32, block_size=4, window=50)


def attention(run) -> tuple[Tensor, Tensor]:
    q, k_cache, v_cache, meta, tables = ATTENTION.build(torch.float32)
    out = torch.zeros(q.shape)
    lens = [n for n, _ in ATTENTION.seqs], [n for _, n in ATTENTION.seqs]
    without = torch.full(q.shape, 7.0)  # rows that fill up a batch see no key
    for result, kv_len in ((out, meta.kv_len), (without, torch.zeros_like(meta.kv_len))):
        run(
            q=q, k_cache=k_cache, v_cache=v_cache, out=result, block_table=meta.block_table,
            query_start=meta.query_start, kv_len=kv_len, num_seqs=4, max_blocks=meta.block_table.shape[1],
            num_tokens=len(q), q_stride=q.stride(0), num_heads=4, num_kv_heads=2, head_dim=32, block_size=4, scale=0.2,
            window=50,
        )  # fmt: skip
    exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, 0.2, 50)
    return torch.cat([out, without]), torch.cat([exact, torch.zeros_like(exact)])


def both_attentions(run) -> tuple[Tensor, Tensor]:
    """Plain, then with capped scores and sinks."""
    sinks = random(4, seed=8)
    out, exact = attention(lambda **arguments: run(**arguments, softcap=0.0, sinks=sinks))
    capped, _ = attention(lambda **arguments: run(**arguments, softcap=0.7, sinks=sinks))
    q, k_cache, v_cache, _, tables = ATTENTION.build(torch.float32)
    variant = family_oracle.variant_attention(ATTENTION, q, k_cache, v_cache, tables, 0.2, 0.7, sinks)
    return torch.cat([out, capped]), torch.cat([exact, variant, torch.zeros_like(variant)])


TENSOR = Case(
    [(1, 40), (70, 130), (0, 5), (2, 2), (1, 700), (9, 600)],
    heads=6, kv_heads=2, dim=64, block_size=4, window=100,
)  # fmt: skip


def tensor_attention(run) -> tuple[Tensor, Tensor]:
    """In bfloat16; two tiles of rows, two splits of keys."""
    q, k_cache, v_cache, meta, tables = TENSOR.build(torch.bfloat16)
    out, splits = torch.zeros(q.shape, dtype=q.dtype), 2
    lens = [n for n, _ in TENSOR.seqs], [n for _, n in TENSOR.seqs]
    without = torch.full(q.shape, 7.0, dtype=q.dtype)  # rows that fill up a batch see no key
    for result, kv_len in ((out, meta.kv_len), (without, torch.zeros_like(meta.kv_len))):
        run(
            q=q, k_cache=k_cache, v_cache=v_cache, out=result, block_table=meta.block_table,
            query_start=meta.query_start, kv_len=kv_len, softmax=torch.zeros(splits, *q.shape[:2], 2),
            parts=torch.zeros(splits, *q.shape), num_seqs=6, max_blocks=meta.block_table.shape[1], num_tokens=len(q),
            q_stride=q.stride(0), splits=splits,
        )  # fmt: skip
    exact = oracle.paged_attention(q, k_cache, v_cache, tables, *lens, 0.2, 100)
    return torch.cat([out, without]), torch.cat([exact, torch.zeros_like(exact)])


def norm(run):
    x, residual, weight = random(3, 130), random(3, 130, seed=1), random(130, seed=2)
    bias, ys, total = random(130, seed=3), torch.zeros(3, 3, 130), torch.zeros(3, 130)
    names = zip(("y", "moved", "layer"), ys, strict=True)
    heads = random(3, 2 * 130 + 5, seed=4)  # two heads in each row, and five numbers that are not theirs
    normed = heads.double()
    for part in (slice(0, 130), slice(130, 260)):
        normed[:, part] = oracle.rms_norm(heads[:, part], weight, 1e-5)
    sizes = {"rows": 3, "size": 130, "stride": heads.shape[1]}
    run(x=x, residual=residual, weight=weight, bias=bias, **dict(names), sum=total, heads=heads, **sizes)
    right = oracle.rms_norm(x + residual, weight, 1e-5), oracle.rms_norm(x, weight.double() + 1, 1e-5)
    exact = torch.stack([*right, family_oracle.layer_norm(x, weight, bias, 1e-5)])
    return torch.cat([ys.flatten(), heads.flatten()]), torch.cat([exact.flatten(), normed.flatten()])


def gather(run):
    """Plain rows, then scaled rows with learned positions."""
    table, positions, ids = random(7, 130), random(5, 130, seed=1), torch.tensor([6, 0, 6, 3])
    at, found = torch.tensor([4, 0, 1, 1]), torch.zeros(2, 4, 130)
    names = {"table": table, "ids": ids, "positions": positions, "position_ids": at}
    run(**names, y=found[0], rows=4, size=130, scale=1.0, is_learned=0)
    run(**names, y=found[1], rows=4, size=130, scale=1.5, is_learned=1)
    return found, torch.stack([table[ids].double(), table[ids].double() * 1.5 + positions[at]])


def maps(run):
    x, other, found = random(517), random(517, seed=1), torch.zeros(3, 517)
    names = dict(zip(("sum", "product", "quotient"), found, strict=True))
    run(x=x, other=other, **names, rows=1, size=517, number=3.0)
    return found, torch.stack([x.double() + other, x.double() * 3, x.double() / 3])


def linear(run):
    x, weight, bias = random(17, 70), random(33, 70, seed=1), random(33, seed=2)
    y, alone = torch.zeros(17, 33), torch.zeros(1, 33)
    run(x=x, weight=weight, bias=bias, y=y, rows=17, **{"in": 70}, out=33)
    run(x=x, weight=weight, bias=bias, y=alone, rows=1, **{"in": 70}, out=33)
    is_same = torch.tensor([torch.equal(y[:1], alone)])  # contract C2: to the bit
    exact = oracle.linear(x, weight, bias)
    return torch.cat([y.flatten(), is_same]), torch.cat([exact.flatten(), torch.ones(1, dtype=torch.float64)])


def linear_l4(run):
    """Three stages in columns, two tiles in rows and in outputs; the results are bfloat16."""
    x, weight, bias = (random(*s, dtype=torch.bfloat16, seed=len(s)) for s in ((70, 136), (66, 136), (66,)))
    y = torch.zeros(70, 66, dtype=torch.bfloat16)
    run(x=x, weight=weight, bias=bias, y=y, rows=70, **{"in": 136}, out=66)
    return y, oracle.linear(x, weight, bias)


def linear_l5(run):
    """Each shape of tile: their rings and fragments differ."""
    found, exact = [], []
    for shape, rows in enumerate((3, 16, 20, 70, 131)):
        x, weight, bias = (
            random(*s, dtype=torch.bfloat16, seed=rows) for s in ((rows, 136), (33, 136), (33,))
        )
        y = torch.zeros(rows, 33)
        run(x=x, weight=weight, bias=bias, y=y, rows=rows, **{"in": 136}, out=33, shape=shape)
        found.append(y), exact.append(oracle.linear(x, weight, bias))
    return torch.cat(found), torch.cat(exact)


def activation(run):
    """All gates, then all functions of one number; softcap, the last, with a cap of 3."""
    x, found, exact = random(2, 2 * 130, scale=4), [], []
    single = [*family_oracle.ACTIVATIONS.values(), lambda x: 3 * torch.tanh(x / 3)]
    for function, name in enumerate([*family_oracle.ACTIVATIONS, "swiglu_clamped"]):
        found.append(torch.zeros(2, 130))
        exact.append(family_oracle.act_and_mul(x, name))
        run(x=x, y=found[-1], rows=2, size=130, function=function, gated=1)
    for function, apply in zip((0, 1, 2, 3, 5), single, strict=True):
        found.append(torch.zeros(2, 260))
        exact.append(apply(x.double()))
        run(x=x, y=found[-1], rows=2, size=260, function=function, gated=0)
    return torch.cat(found, 1), torch.cat(exact, 1)


def route(run):
    """Ties, NaN, and weights over all experts and over the chosen."""
    logits, found, exact = random(4, 140, scale=2).round(), [], []
    logits[3, [1, 138]] = torch.nan
    for renormalize in (0, 1):
        chosen, weights = torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3)
        sizes = {"rows": 4, "num_experts": 140, "per_token": 3, "renormalize": renormalize}
        run(logits=logits, chosen=chosen, weights=weights, **sizes)
        right = family_oracle.route(logits, 3, bool(renormalize))
        found += [chosen.float(), weights.nan_to_num(9)]
        exact += [torch.tensor(right[0]).double(), right[1].nan_to_num(9)]
    return torch.cat(found), torch.cat(exact)


def combine(run):
    outputs, weights, y = random(6, 130), random(2, 3, seed=1), torch.zeros(2, 130)
    place = torch.tensor([[4, 0, 3], [1, 5, 2]])
    run(outputs=outputs, weights=weights, place=place, y=y, rows=2, size=130, per_token=3)
    return y, (outputs[place].double() * weights.double().unsqueeze(-1)).sum(1)


def rope_and_cache(run):
    q, k, v = random(3, 2, 32), random(3, 1, 32, seed=1), random(3, 1, 32, seed=2)
    positions, slots = torch.tensor([2, 0, 7]), torch.tensor([5, -1, 3])
    filled = slots[slots >= 0]
    found, right = [], []
    for rotary_dim in (32, 24):
        angles, q_out, caches = random(9, rotary_dim // 2), torch.zeros(3, 2, 32), torch.zeros(2, 9, 1, 32)
        run(
            q=q, k=k, v=v, cos=angles.cos(), sin=angles.sin(), positions=positions, slots=slots, q_out=q_out,
            k_cache=caches[0], v_cache=caches[1], num_tokens=3, num_heads=2, num_kv_heads=1, head_dim=32,
            rotary_dim=rotary_dim,
        )  # fmt: skip
        exact = torch.zeros(2, 9, 1, 32, dtype=torch.float64)
        turned = [
            torch.cat(
                [
                    oracle.rope(x[..., :rotary_dim], angles.cos()[positions], angles.sin()[positions]),
                    x[..., rotary_dim:],
                ],
                -1,
            )
            for x in (q, k)
        ]
        exact[0, filled], exact[1, filled] = turned[1][slots >= 0], v[slots >= 0].double()
        found += [q_out.flatten(), caches.flatten()]
        right += [turned[0].flatten(), exact.flatten()]
    return torch.cat(found), torch.cat(right)


def copy_blocks(run):
    """Small blocks, and blocks that take each thread several rounds."""
    source, destination, caches, exact = torch.tensor([4, 0]), torch.tensor([1, 3]), [], []
    for size in (40, 4 * 2500):
        caches.append(random(5, size))
        exact.append(caches[-1].double())
        exact[-1][destination] = exact[-1][source]
        run(cache=caches[-1], source=source, destination=destination, block_bytes=4 * size, count=2)
    return torch.cat([c.flatten() for c in caches]), torch.cat([e.flatten() for e in exact])


def naive(run):
    scores, sums = torch.zeros(4, 41, 150), torch.zeros(4, 41)
    return attention(lambda **arguments: run(**arguments, scores=scores, sums=sums, max_kv_len=150))


VERIFY_VOCAB = 301  # ten warps: parts of 31, 4 and 1


def verify_requests(k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random requests; then a draft with u q = p, one with p = q, uniforms on a border and at both ends.

    The last six rows end in zeros. With the largest uniform rounding can keep the running sum below the
    threshold; then none of these ids may be drawn. (Sums of float32 numbers above 2^-29 are exact in
    float64; these are smaller.)
    """
    drafts = make_drafts(24, k, VERIFY_VOCAB, True, seed=7)
    draft, q, p, uniforms = (
        t.clone() for t in (drafts.draft, drafts.draft_probs, drafts.target_probs, drafts.uniforms)
    )
    p[12:], q[12:], uniforms[12:] = 0.0, 0.0, 0.5
    draft[12:], draft[12:18, 0] = -1, torch.tensor([4, 0, 4, 4, 7, 7])
    p[12:18, :, [4, 130, 290]] = torch.tensor([0.5, 0.25, 0.25])
    q[12:16, :, 4] = q[16:18, :, 7] = 1.0
    q[13] = p[13, :k]
    uniforms[14:18, k] = torch.tensor([1e-300, 1 - 1e-16, 1e-300, 1 - 1e-16], dtype=torch.float64)
    rng = random_numbers.Random(
        5
    )  # not from torch: its last bits differ between processors, and with them rounding
    small = [rng.random() * 2.0 ** -rng.randrange(30) for _ in range(6 * (k + 1) * (VERIFY_VOCAB - 2))]
    p[18:, :, :-2] = torch.tensor(small).view(6, k + 1, -1)
    p[18:, :, -3] = 0.1
    uniforms[18:, k] = 1 - 1e-16
    return draft, q, p, uniforms


def verify(run):
    rng = random_numbers.Random(3)
    trees = [random_tree(rng, size, 2, depth) for size, depth in [(9, 3), (0, 1), (1, 1), (70, 70), (40, 2)]]
    trees.append(([5] * 80, [0] * 40 + [5] * 40, [-1] + [0] * 79))
    starts = [0, *accumulate(len(tree[0]) for tree in trees)]
    columns = [list(chain.from_iterable(tree[i] for tree in trees)) for i in range(3)]
    found, exact = [], [torch.tensor(walk_trees(*columns, starts)).flatten()]
    draft, q, p, uniforms = verify_requests(3)
    for certain in (0, 1):
        walked = torch.zeros(2, starts[-1], dtype=torch.int64)
        tokens, accepted = torch.zeros(24, 4, dtype=torch.int64), torch.zeros(24, dtype=torch.int64)
        names = zip(("sampled", "drafted", "parents", "node_start"), (*columns, starts), strict=True)
        run(
            **{name: torch.tensor(values) for name, values in names}, walked=walked[0], nodes=walked[1],
            trees=len(trees), draft=draft, draft_probs=q, target_probs=p, uniforms=uniforms, tokens=tokens,
            accepted=accepted, requests=24, k=3, vocab=VERIFY_VOCAB, certain=certain,
        )  # fmt: skip
        right = ReferenceOps().verify_draft(draft, None if certain else q, p, uniforms)
        found += [walked.flatten(), tokens.flatten(), accepted]
        exact += [t.flatten() for t in right] if certain else [*(t.flatten() for t in right), exact[0]]
    return torch.cat(found).float(), torch.cat(exact).double()


RUNS = {
    "attention_v1": (naive, ["-DIS_NAIVE"]),
    "attention_v2": (both_attentions, ["-DIS_ATTENTION", "-DLAUNCHER=attention_v2"]),
    "decode_d1": (both_attentions, ["-DIS_ATTENTION", "-DLAUNCHER=decode_d1"]),
    "attention_v3": (tensor_attention, ["-DIS_TENSOR", "-DIS_V3"]),
    "decode_d2": (tensor_attention, ["-DIS_TENSOR", "-DIS_D2"]),
    "decode_d3": (tensor_attention, ["-DIS_TENSOR"]),
    "norm": (norm, ["-DIS_NORM"]),
    "gather": (gather, ["-DIS_GATHER"]),
    "map": (maps, ["-DIS_MAP"]),
    "linear_l1": (linear, ["-DIS_LINEAR", "-DLAUNCHER=linear_l1"]),
    "linear_l2": (linear, ["-DIS_LINEAR", "-DLAUNCHER=linear_l2"]),
    "linear_l3": (linear, ["-DIS_LINEAR", "-DLAUNCHER=linear_l3"]),
    "linear_l4": (linear_l4, ["-DIS_LINEAR", "-DLAUNCHER=linear_l4", "-DNUMBER=bfloat16", "-DDTYPE=bf16"]),
    "linear_l5": (linear_l5, ["-DIS_LINEAR_MMA"]),
    "activation": (activation, ["-DIS_ACTIVATION"]),
    "route": (route, ["-DIS_ROUTE"]),
    "combine": (combine, ["-DIS_COMBINE"]),
    "rope_and_cache": (rope_and_cache, ["-DIS_ROPE"]),
    "copy_blocks": (copy_blocks, ["-DIS_COPY"]),
    "verify": (verify, ["-DIS_VERIFY"]),
}


HEADERS = ("paging.h", "tensor_tile.h", "query_tiles.h", "splits.h", "row_tiles.h")


def build(
    kernel: str,
    folder: Path,
    old: str = "",
    new: str = "",
    edits: Sequence[tuple[str, str]] = (),
    number: str = "",
) -> KernelLibrary:
    """The kernel with `old` replaced; only float32 and head_dim 32, so that it compiles in a quarter of a second.

    `edits` are made first, everywhere in the kernel's file. `number` is bfloat16 or nothing.
    """
    file = f"{kernel}.cu"
    copy_sources(folder, (file, *HEADERS, "dispatch.h"))
    source = (folder / file).read_text()
    for before, after in edits:
        assert before in source, f"{file} has no {before!r} any more"
        source = source.replace(before, after)
    if kernel == "linear_l5":  # the same kernels for float16 would take as long again to compile
        source = source.replace("launch_shape<float16>", "launch_shape<bfloat16>")
    (folder / file).write_text(source)
    in_header = old.startswith(tuple(f"{name}: " for name in HEADERS))
    changed, _, text = old.partition(": ") if in_header else (file, "", old)
    make_edits(folder, [(changed, text, new)] if old else [])
    tile = (folder / "tensor_tile.h").read_text()
    (folder / "tensor_tile.h").write_text(
        "\n".join(line for line in tile.splitlines() if "(float16{})" not in line and "int, 128" not in line)
    )
    others = ("case DType::f32", "case DType::f16") if number else FLOAT32_ONLY
    drop_lines(folder / "dispatch.h", ("case 64:", "case 96:", "case 128:", "case 256:", *others))
    in_number = [f"-DNUMBER={number}", "-DDTYPE=bf16"] if number else []
    return compile_here(folder, "harness.cu", [f'-DKERNEL="{file}"', *RUNS[kernel][1], *in_number])


def run_library(case, library: KernelLibrary) -> tuple[Tensor, Tensor]:
    return case(lambda **arguments: library.run("run", **arguments))


CASES = {kernel: partial(run_library, case) for kernel, (case, _) in RUNS.items()}


def is_right(found: Tensor, exact: Tensor) -> bool:
    return oracle.error(found, exact) <= (2e-6 if found.dtype == torch.float32 else 4e-3)


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """The unchanged kernels."""
    made = {}

    def get(kernel: str) -> KernelLibrary:
        if kernel not in made:
            made[kernel] = build(kernel, tmp_path_factory.mktemp(kernel))
        return made[kernel]

    return get


def test_every_kernel_has_mutants_and_every_barrier_one_of_its_own():
    for path in find_sources("cuda", ".cu"):
        if path.stem in ("sample", "finite", "group", "attention_v4", "linear_q1", "gather_codes"):
            continue  # test_sample_, test_expert_, test_hopper_ and test_quantized_mutants.py
        if path.stem in ("attention_q1", "rope_and_codes"):
            continue  # test_kv8_mutants.py
        changes = [(old, new) for kernel, _, old, new, _ in MUTANTS if kernel == path.stem]
        assert len(changes) >= 3, f"{path.name} has {len(changes)} mutants"
        dropped = {old for old, new in changes if BARRIER in old and BARRIER not in new}
        text = path.read_text()
        if "splits.h" in text:
            text += path.parents[1].joinpath("attention", "tensor_tile.h").read_text()
        assert len(dropped) == text.count(BARRIER), f"{path.name}: {dropped}"


@pytest.mark.parametrize("kernel", RUNS)
def test_the_right_kernel_survives(kernel, right):
    assert verdict(CASES[kernel], right(kernel), right(kernel), is_right) == "survived"


@pytest.mark.parametrize(
    ("kernel", "old", "new", "caught_by"),
    [pytest.param(k, old, new, by, id=f"{k}: {what}") for k, what, old, new, by in MUTANTS],
)
def test_each_mutant_is_caught(kernel, old, new, caught_by, right, tmp_path):
    mutant = build(kernel, tmp_path, old, new)
    assert verdict(CASES[kernel], mutant, right(kernel), is_right) == caught_by
