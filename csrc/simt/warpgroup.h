// A warpgroup: four warps, from a multiple of 128 threads, that multiply together (wgmma.h) and share registers.
//
// A GPU gives each thread of a block equally many registers. setmaxnreg moves them: the warpgroup that only copies
// gives some up, those that multiply take them.
//
//     warpgroup 0, copies      168 -> lower_registers<24>()
//     warpgroup 1, multiplies  168 -> raise_registers<240>()     waits until so many are free
//     warpgroup 2, multiplies  168 -> raise_registers<240>()
//
// The kernel says with __launch_bounds__(threads, 1) how many it begins with; otherwise ptxas ignores the words.
// The simulator knows no registers: it checks the number, and that the whole warpgroup calls. PTX ISA: setmaxnreg.

#pragma once

#include "simt.h"

namespace simt {
void change_registers(Where where);
constexpr bool can_have_registers(int count) { return count >= 24 && count <= 256 && count % 8 == 0; }
}  // namespace simt

template <int kRegisters>
void raise_registers(simt::Where where = simt::Where::current()) {
  static_assert(simt::can_have_registers(kRegisters), "setmaxnreg takes 24 to 256, a multiple of 8");
  simt::change_registers(where);
}
template <int kRegisters>
void lower_registers(simt::Where where = simt::Where::current()) {
  static_assert(simt::can_have_registers(kRegisters), "setmaxnreg takes 24 to 256, a multiple of 8");
  simt::change_registers(where);
}
