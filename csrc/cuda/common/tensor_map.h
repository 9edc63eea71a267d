// How a launcher makes a tensor map on a GPU: the driver encodes it. Only dialect_hopper.h includes this.
//
// The driver's function is looked up when it is first needed, so the library loads where there is no driver.
// Without one, or if the driver refuses the shape, the map is all zeros: a copy with it is an error of the launch.
// Source: CUDA driver API, cuTensorMapEncodeTiled; runtime API, cudaGetDriverEntryPoint.

#pragma once

#include <cuda.h>

#include "tiles.h"

struct TensorMap {
  CUtensorMap map;
};

namespace tensor_maps {

using Encode = decltype(&cuTensorMapEncodeTiled);

inline Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
#else
  cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status);
#endif
  return reinterpret_cast<Encode>(status == cudaDriverEntryPointSuccess ? found : nullptr);
}

inline CUtensorMapDataType type_of(int element_bytes) {
  return element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                            : element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT32;
}

}  // namespace tensor_maps

inline TensorMap make_tensor_map(const TensorShape& shape) {
  static const tensor_maps::Encode encode = tensor_maps::find_encode();
  TensorMap made = {};
  cuuint32_t steps[4] = {1, 1, 1, 1};
  if (encode)
    encode(&made.map, tensor_maps::type_of(shape.element_bytes), shape.rank, const_cast<void*>(shape.base),
           reinterpret_cast<const cuuint64_t*>(shape.dims), reinterpret_cast<const cuuint64_t*>(shape.strides + 1), shape.box,
           steps, CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(shape.swizzle),
           CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return made;
}
