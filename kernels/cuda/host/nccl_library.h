// NCCL, loaded when it is first asked for: a rank alone needs none, and an older one does what it can.
#pragma once

#include <nccl.h>

#include <string>

namespace ptrt::cuda {

// Since NCCL 2.27 buffers can be registered as symmetric windows; collectives on them have the lowest latency.
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
#define PTRT_NCCL_WINDOWS 1
#endif

struct NcclLibrary {
  std::string missing;  // why it cannot be used; empty: it can
  int version = 0;      // of the library that runs, 22809 for 2.28.9; 0: there is none
  bool windows_overruled =
      false;  // the environment asked for them (NCCL_WIN_ENABLE), which this version cannot have

  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRank) comm_init_rank = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  // Null in older versions: before 2.13, 2.19 and 2.27.
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclMemAlloc) mem_alloc = nullptr;
  decltype(&ncclMemFree) mem_free = nullptr;
#ifdef PTRT_NCCL_WINDOWS
  decltype(&ncclCommWindowRegister) comm_window_register = nullptr;
#endif

  bool has_windows() const;  // that may be used: nccl_waits_for_kernels()
};

// The library `file`, never unloaded. Sets what NCCL reads of this process's environment:
// * NCCL_COMM_BLOCKING=1, which goes before a communicator's configuration: with 0, calls would return before their end.
// * NCCL_WIN_ENABLE=0 if its kernels do not wait for those before them: some versions can be told to use symmetric memory
//   without windows too. Whoever wants to know what the user set reads it before.
NcclLibrary load_nccl(const char* file);
// libnccl.so.2 as the system finds it, by LD_LIBRARY_PATH or where it was at the build; loaded once.
const NcclLibrary& nccl();

}  // namespace ptrt::cuda
