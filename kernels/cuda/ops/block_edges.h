// The ops before and after a sync, one launch each (Backend::end_block(), Backend::begin_block()).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/block_edges.h"

namespace ptrt::cuda {

// Whether the arguments of one launch hold all tracks.
bool fits_one_launch(const BlockEnd& end);
bool fits_one_launch(const BlockBegin& begin);

// a: an activation dtype (dtypes.cuh) or float32. normed: an activation dtype.
void end_block(const BlockEnd& end, cudaStream_t stream);
void begin_block(const BlockBegin& begin, cudaStream_t stream);

}  // namespace ptrt::cuda
