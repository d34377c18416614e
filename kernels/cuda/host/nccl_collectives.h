// Groups of devices over NCCL, behind functions that tests implement on the host.
#pragma once

#include <memory>
#include <string>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/device_collectives.h"

namespace ptrt::cuda {

std::string nccl_missing();  // the reason why NCCL cannot be used; empty if it can
int nccl_version();          // of the library that runs, 22809 for 2.28.9; 0: it does not say
std::size_t nccl_id_bytes();
std::string make_nccl_id();
// Collective. The stream must outlive the group. Joining and allocate() throw failure when the other ranks have not come
// after join_limit_s seconds.
inline constexpr double kJoinLimit_s = 60;
std::unique_ptr<DeviceCollectives> join_nccl(const std::string& id, int rank, int size, const Stream& stream,
                                             double join_limit_s = kJoinLimit_s);

}  // namespace ptrt::cuda
