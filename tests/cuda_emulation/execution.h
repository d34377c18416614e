// The CUDA execution model on the CPU, so that tests without a GPU run the sources that nvcc
// compiles. The threads of a block are fibers; blocks, or clusters of them, run one after the other. A thread that
// waits at a barrier or for its warp yields to the others. It verifies logic, not speed or memory
// order: threads are never preempted, and writes are visible to the others at once.
//
// Errors that it finds and reports as std::runtime_error, with kernel, block, threads and source
// lines:
//  * a barrier that some thread of the block never reaches (it waits elsewhere or has returned);
//  * a shuffle, vote or __syncwarp whose mask names lanes that never call it, or call another operation;
//  * a shuffle that reads a lane outside its mask;
//  * a thread that returns without grid_dependency_wait() (launch.h);
//  * an access to the shared memory of a block of the cluster that has returned, or beyond that memory;
//  * a collective behind a kernel that triggered its successor early: NCCL may not wait for it.
// Dynamic shared memory is a heap block of exactly the requested size, filled with NaN before every
// block, so that AddressSanitizer finds accesses beyond the end of shared and global memory. Warps
// and lanes run in ascending order up to one barrier and in descending order up to the next, so
// that a missing barrier changes results.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace ptrt::emulation {

using Location = std::source_location;

// The emulated device: an sm_90 with few multiprocessors, so that persistent blocks have several
// tiles each. With PTRT_EMULATED_DEVICE=sm_89 in the environment: a GPU with less shared memory and
// without the features of sm_90.
struct EmulatedDevice {
  int major = 9, minor = 0, multiprocessors = 2;
  std::size_t shared_bytes = 228 << 10, block_shared_bytes = 227 << 10;
};
const EmulatedDevice& emulated_device();

inline constexpr int kWarpLanes = 32;
inline constexpr std::size_t kSlotBytes = 64;

// Runs `body` once for every thread of the grid. One grid runs at a time, whichever host thread
// launches it. The `cluster` blocks of a cluster, along x, run together; they have whole warps.
void run_grid(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, unsigned cluster,
              const std::function<void()>& body);

// The indices of the running thread.
struct Place {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern const Place* current_place;

void* dynamic_shared_memory();

// __syncthreads()
void barrier(const Location& where);
// bar.sync and, without waiting, bar.arrive.
void named_barrier(int number, int threads, bool waits, const Location& where = Location::current());

// barrier.cluster, and mapa: memory of block `rank` that lies where `mine` lies in this block's dynamic shared memory.
int cluster_rank();
void cluster_barrier(const Location& where = Location::current());
const void* in_block_of_cluster(const void* mine, int rank, const Location& where = Location::current());

// The values that the lanes of a warp pass to one operation.
class WarpValues {
 public:
  explicit WarpValues(unsigned mask) : mask_(mask) {}
  // The value of `lane`; fails if the mask does not name it.
  const void* of(int lane) const;

 private:
  unsigned mask_;
};

// Waits until every lane in `mask` has called an `operation` of the same name, mask and size. Every
// lane then sees the values of the others until its own next operation.
WarpValues exchange(unsigned mask, const void* value, std::size_t bytes, const char* operation,
                    const Location& where);

void grid_dependency_wait();      // griddepcontrol.wait
void trigger_dependent_launch();  // griddepcontrol.launch_dependents

int lane();  // of the running thread in its warp

std::int64_t global_timer_ns();

// Ends the grid with a message that names kernel, block and thread.
[[noreturn]] void fail(const char* what, const Location& where);

// cp.async: `bytes` are copied and the rest of 16 filled with zeros.
void cp_async(void* to, const void* from, std::size_t bytes);
void cp_async_commit();
void cp_async_wait(int groups_left);  // until at most so many of this thread's groups are in flight

// When a copy lands, which CUDA leaves open: at once, or only when its group is waited for. By
// default blocks alternate between the two, so that code which depends on either is found.
enum class CopyTiming : std::uint8_t { alternating, at_once, when_waited_for };
void set_copy_timing(CopyTiming timing);

}  // namespace ptrt::emulation
