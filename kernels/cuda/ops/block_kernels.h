// The ops around a sync in one launch each (Backend::end_block(), Backend::begin_block()).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/block_edges.h"

namespace ptrt::cuda {

// Whether one launch does it: as many tracks as its arguments hold.
bool fits_one_launch(const BlockEnd& end);
bool fits_one_launch(const BlockBegin& begin);

// a: of an inner type (numbers.cuh) or float32. normed: of an inner type.
void end_block(const BlockEnd& end, cudaStream_t stream);
void begin_block(const BlockBegin& begin, cudaStream_t stream);

}  // namespace ptrt::cuda
