#include "cuda_emulation/fake_nccl.h"

#include <chrono>
#include <cstdlib>

namespace {

FakeNccl state;

void wait_while(const std::atomic<bool>& flag) {
  state.waiting++;
  while (flag) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  state.waiting--;
}
ncclResult_t collective(const void* send, void* recv, std::size_t count, cudaStream_t stream) {
  state.collective_thread = std::this_thread::get_id();
  wait_while(state.collectives_wait);
  state.collectives++;
  state.copy(recv, send, count * sizeof(float), stream);
  return ncclSuccess;
}

}  // namespace

extern "C" {

FakeNccl* fake_nccl_state() {
  return &state;
}

ncclResult_t ncclGetVersion(int* version) {
  const char* first = std::getenv("FAKE_NCCL_VERSION");
  *version = first != nullptr ? std::atoi(first) : state.version.load();
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = {};
  return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int, ncclUniqueId, int) {
  wait_while(state.init_waits);
  state.joined++;
  *comm = reinterpret_cast<ncclComm_t>(&state);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId commId, int rank,
                                    ncclConfig_t*) {
  state.with_config++;
  return ncclCommInitRank(comm, nranks, commId, rank);
}
ncclResult_t ncclCommAbort(ncclComm_t) {
  state.aborted++;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = state.async_error;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t) {
  return "an error";
}
ncclResult_t ncclAllReduce(const void* send, void* recv, std::size_t count, ncclDataType_t, ncclRedOp_t,
                           ncclComm_t, cudaStream_t stream) {
  return collective(send, recv, count, stream);
}
#ifndef FAKE_NCCL_BROKEN
ncclResult_t ncclAllGather(const void* send, void* recv, std::size_t count, ncclDataType_t, ncclComm_t,
                           cudaStream_t stream) {
  return collective(send, recv, count, stream);
}
#endif
#ifndef FAKE_NCCL_OLD
const char* ncclGetLastError(ncclComm_t) {
  return "";
}
ncclResult_t ncclMemAlloc(void** ptr, std::size_t size) {
  *ptr = std::malloc(size);
  return *ptr != nullptr ? ncclSuccess : ncclSystemError;
}
ncclResult_t ncclMemFree(void* ptr) {
  std::free(ptr);
  return ncclSuccess;
}
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
ncclResult_t ncclCommWindowRegister(ncclComm_t, void*, std::size_t, ncclWindow_t* window, int) {
  state.windows++;
  *window = reinterpret_cast<ncclWindow_t>(&state);
  return ncclSuccess;
}
#endif
#endif

}  // extern "C"
