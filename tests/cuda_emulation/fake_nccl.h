// A library with NCCL's functions for a group of one rank, in variants: complete, as before 2.19 (FAKE_NCCL_OLD), and
// without a function that is needed (FAKE_NCCL_BROKEN).
#pragma once

#include <nccl.h>

#include <atomic>
#include <cstddef>
#include <string>
#include <thread>

struct FakeNccl {
  std::atomic<int> version{23007};  // unless $FAKE_NCCL_VERSION is set
  std::atomic<ncclResult_t> async_error{ncclSuccess};
  // Sets how collectives move data: a copy queued in the stream.
  void (*copy)(void* to, const void* from, std::size_t bytes, cudaStream_t stream) = nullptr;
  std::atomic<bool> init_waits{false}, collectives_wait{false};  // for a rank that does not come

  std::atomic<int> joined{0}, with_config{0}, aborted{0}, windows{0}, collectives{0}, waiting{0};
  std::thread::id collective_thread;  // that called the last one
};

inline constexpr const char* kFakeNcclState = "fake_nccl_state";  // FakeNccl* fake_nccl_state()
