// Which rungs the engine runs. A row has the same bits from all rungs of one column, so the choice inside a column
// affects only speed. The choice between the columns depends on nothing that changes from step to step (contract C2):
//
//                        plain                           on tensor cores
//     attention          attention_v2, decode_d1         attention_v3, decode_d3
//     linear             linear_l2, linear_l3            linear_l5
//     experts            linear_experts                  linear_l5_experts
//     quantised          linear_q1, linear_q1_experts    the same
//     a cache of codes   attention_q1                    the same
//     for                every model                     16-bit numbers; heads of 64 or 128 without cap or sinks;
//                                                        rows of a multiple of 8 numbers
//
// A caller that asks for tensor cores gets the plain column where the other cannot be. `tensor_cores` false: always.

#pragma once

#include "kernels.h"

namespace minillm::cuda {

bool can_use_tensor_cores(const LinearArgs& p);
bool can_use_tensor_cores(const AttentionArgs& p);

void look_up(const GatherArgs& p, Stream stream);
void rotate_and_write(const RopeArgs& p, Stream stream);
void linear(const LinearArgs& p, bool tensor_cores, Stream stream);
void experts(const ExpertLinearArgs& p, bool tensor_cores, Stream stream);

// The memory that `attention` needs for the parts of decode_d3, in bytes; 0 if another rung runs.
int64_t attention_bytes(const AttentionArgs& p, bool tensor_cores);
void attention(const AttentionArgs& p, void* memory, bool tensor_cores, Stream stream);

// decode_d3 in any case.
int64_t split_bytes(const AttentionArgs& p);
void attention_in_splits(const AttentionArgs& p, void* memory, Stream stream);

}  // namespace minillm::cuda
