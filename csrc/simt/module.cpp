// The simulator's interface for Python: the memory that kernels may access, the order of threads, errors, counters.

#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "machine.h"

namespace py = pybind11;
using namespace simt;

namespace {

py::tuple triple(uint3 v) { return py::make_tuple(v.x, v.y, v.z); }

// (file, line), or (library, offset in it) of the access before the return address, or None.
py::object where(const Place& place) {
  if (place.file) return py::make_tuple(place.file, place.line);
  Dl_info info;
  if (!place.pc || !dladdr(place.pc, &info)) return py::none();
  uintptr_t offset = reinterpret_cast<uintptr_t>(place.pc) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  return py::make_tuple(info.dli_fname, -static_cast<int64_t>(offset));
}

// The error since the last call as a dict, or None. Launches work again afterwards.
py::object take_error() {
  Machine& m = machine();
  if (!m.failed) return py::none();
  m.failed = false;
  py::dict d;
  const Error& e = m.error;
  d["kind"] = e.kind;
  d["kernel"] = e.kernel;
  d["message"] = e.message;
  d["block"] = triple(e.block);
  d["thread"] = triple(e.thread);
  d["where"] = where(e.at);
  d["other"] = e.other;
  d["other_where"] = where(e.other_at);
  return d;
}

py::dict as_dict(const Counters& c) {
  py::dict d;
#define FIELD(name) d[#name] = c.name
  FIELD(launches), FIELD(blocks), FIELD(threads);
  FIELD(global_read_bytes), FIELD(global_write_bytes);
  FIELD(global_read_sectors), FIELD(global_write_sectors);
  FIELD(shared_read_bytes), FIELD(shared_write_bytes);
  FIELD(shared_accesses), FIELD(shared_wavefronts);
  FIELD(barriers), FIELD(warp_operations), FIELD(async_copy_bytes), FIELD(mma), FIELD(wgmma);
#undef FIELD
  py::dict tensors;
  for (const auto& [name, moved] : c.tensors) tensors[py::str(name)] = py::make_tuple(moved.read_bytes, moved.write_bytes);
  d["tensors"] = tensors;
  return d;
}

// (the counters of each kernel, the calls of the host)
py::tuple finish_profile() {
  py::dict kernels, host;
  for (const auto& [name, counted] : stop_profile()) kernels[py::str(name)] = as_dict(counted);
  host["copies_to_device"] = host_calls().copies_to_device;
  host["copies_to_host"] = host_calls().copies_to_host;
  host["waits"] = host_calls().waits;
  return py::make_tuple(kernels, host);
}

}  // namespace

PYBIND11_MODULE(MINILLM_MODULE, m) {
  m.doc() = "Controls of the CUDA simulator (csrc/simt).";
  m.def("add_global", [](const std::string& name, uintptr_t base, size_t bytes) {
    add_global(name, reinterpret_cast<const void*>(base), bytes);
  });
  m.def("clear_globals", &clear_globals);
  m.def("take_error", &take_error);
  m.def("start_profile", &start_profile);
  m.def("stop_profile", &finish_profile);
  m.def("set_check", [](bool on) { return std::exchange(machine().check, on); });
  m.def("set_order", [](bool reversed, uint64_t seed, uint64_t last) {
    Order before = std::exchange(machine().order, {reversed, seed, last});
    return py::make_tuple(before.reversed, before.seed, before.last);
  });
  m.def("set_registers", [](std::map<std::string, unsigned> registers) {
    return std::exchange(machine().registers, std::move(registers));
  });
}
