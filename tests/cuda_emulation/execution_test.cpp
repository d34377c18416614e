// The emulation behaves as CUDA defines, and finds the errors that execution.h lists.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/base/dtypes.cuh"
#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/cp_async.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace ptrt {
namespace {

void run(dim3 grid, dim3 block, const std::function<void()>& kernel, std::size_t shared_bytes = 0,
         unsigned cluster = 1) {
  emulation::run_grid("tested", grid, block, shared_bytes, cluster, [&] {
    pdl_trigger_and_wait();
    kernel();
  });
}

std::string error_of(dim3 block, const std::function<void()>& kernel, unsigned cluster = 1) {
  try {
    run(dim3(cluster), block, kernel, 128, cluster);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(Emulation, RunsEveryThreadOfEveryBlock) {
  std::vector<int> runs(2 * 3 * 4 * 5 * 6 * 2);
  run(dim3(2, 3, 4), dim3(5, 6, 2), [&] {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    ++runs[block * 60 + thread];
  });
  for (const int count : runs) EXPECT_EQ(count, 1);
}

TEST(Emulation, BarriersOrderSharedMemory) {
  constexpr int kThreads = 100;
  std::vector<int> seen(kThreads);
  run(
      dim3(1), dim3(kThreads),
      [&] {
        auto* values = static_cast<int*>(shared_memory());
        const int i = thread_id();
        for (int round = 0; round < 3; ++round) {
          values[i] = i + round;
          __syncthreads();
          seen[static_cast<std::size_t>(i)] = values[(i + 1) % kThreads];
          __syncthreads();
        }
      },
      kThreads * sizeof(int));
  for (int i = 0; i < kThreads; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], (i + 1) % kThreads + 2);
}

TEST(Emulation, ShufflesOfAllKindsAndTypes) {
  run(dim3(1), dim3(64), [] {
    const int lane = lane_id();
    const int first = thread_id() / 32 * 32;
    EXPECT_EQ(__shfl_sync(kAllLanes, lane + first, 5), 5 + first);
    EXPECT_EQ(__shfl_sync(kAllLanes, 1.5 * lane, 3, 8), 1.5 * (lane / 8 * 8 + 3));
    EXPECT_EQ(__shfl_xor_sync(kAllLanes, static_cast<float>(lane), 16), static_cast<float>(lane ^ 16));
    EXPECT_EQ(__shfl_up_sync(kAllLanes, static_cast<unsigned long long>(lane), 3u),
              static_cast<unsigned long long>(lane < 3 ? lane : lane - 3));
    EXPECT_EQ(__shfl_down_sync(kAllLanes, lane, 4u, 16), lane % 16 + 4 < 16 ? lane + 4 : lane);
    EXPECT_EQ(__ballot_sync(kAllLanes, lane % 2), 0xAAAAAAAAu);
    EXPECT_TRUE(__any_sync(kAllLanes, lane == 7));
    EXPECT_FALSE(__all_sync(kAllLanes, lane == 7));
    EXPECT_EQ(warp_sum(1.0f), 32.0f);
    EXPECT_EQ(warp_max<8>(static_cast<float>(lane)), static_cast<float>(lane / 8 * 8 + 7));
    // Half a warp by itself.
    if (lane < 16) {
      EXPECT_EQ(__shfl_sync(0xFFFFu, lane, 15), 15);
      __syncwarp(0xFFFFu);
    }
  });
}

TEST(Emulation, Atomics) {
  int sum = 0, largest = -1;
  unsigned long long wide = 0;
  run(dim3(3), dim3(40), [&] {
    atomicAdd(&sum, 2);
    atomicAdd(&wide, 1ull << 33);
    atomicMax(&largest, thread_id());
  });
  EXPECT_EQ(sum, 240);
  EXPECT_EQ(wide, 120ull << 33);
  EXPECT_EQ(largest, 39);
}

TEST(Emulation, FindsABarrierThatSomeThreadsDoNotReach) {
  const std::string early = error_of(dim3(64), [] {
    if (threadIdx.x != 40) __syncthreads();
  });
  EXPECT_NE(early.find("kernel tested"), std::string::npos) << early;
  EXPECT_NE(early.find("thread (40, 0, 0) returned"), std::string::npos) << early;
  EXPECT_NE(early.find("execution_test.cpp"), std::string::npos) << early;
  const std::string apart = error_of(dim3(64), [] {
    if (threadIdx.x < 32)
      __syncthreads();
    else
      __shfl_sync(0xFFFFFFFFu, 1, threadIdx.x == 50 ? 0 : 1);
    if (threadIdx.x == 50) __syncwarp();
  });
  EXPECT_NE(apart.find("__syncwarp"), std::string::npos) << apart;
  EXPECT_NE(apart.find("__syncthreads"), std::string::npos) << apart;
}

TEST(Emulation, FindsShufflesWithoutTheirLanes) {
  const std::string missing = error_of(dim3(32), [] {
    if (threadIdx.x < 31) __shfl_xor_sync(kAllLanes, 1, 1);
  });
  EXPECT_NE(missing.find("__shfl_xor_sync (mask 0xffffffff)"), std::string::npos) << missing;
  const std::string short_warp = error_of(dim3(20), [] { __syncwarp(); });
  EXPECT_NE(short_warp.find("__syncwarp"), std::string::npos) << short_warp;
  const std::string outside = error_of(dim3(32), [] {
    if (threadIdx.x < 8) __shfl_sync(0xFFu, 1, 20);
  });
  EXPECT_NE(outside.find("lane 20"), std::string::npos) << outside;
  const std::string uninvited = error_of(dim3(32), [] { __shfl_sync(0xFFu, 1, 0); });
  EXPECT_NE(uninvited.find("leaves its caller out"), std::string::npos) << uninvited;
  const std::string mixed = error_of(dim3(32), [] {
    if (threadIdx.x % 2 == 0)
      __shfl_sync(kAllLanes, 1, 0);
    else
      __shfl_xor_sync(kAllLanes, 1, 1);
  });
  EXPECT_NE(mixed.find("wait for each other"), std::string::npos) << mixed;
}

// After an error the next grid runs normally.
TEST(Emulation, ContinuesAfterAnError) {
  EXPECT_NE(error_of(dim3(64),
                     [] {
                       if (threadIdx.x == 0) __syncthreads();
                     }),
            "");
  EXPECT_EQ(error_of(dim3(64), [] { __syncthreads(); }), "");
}

TEST(Emulation, SharedMemoryStartsAsNan) {
  run(
      dim3(2), dim3(1),
      [] {
        auto* values = static_cast<float*>(shared_memory());
        EXPECT_TRUE(std::isnan(values[3]));
        values[3] = 1;
      },
      16);
}

// One copy of four floats and one of zeros, in two groups; `seen`: the destination before the first
// wait, after it, and after the second.
void copy_and_wait(const float* from, std::vector<std::array<float, 2>>& seen) {
  auto* to = static_cast<float*>(shared_memory());
  const auto look = [&] { seen.push_back({to[3], to[4]}); };
  cp_async_zfill(to, from, true);
  cp_async_commit();
  cp_async_zfill(to + 4, from + 4, false);
  cp_async_commit();
  look();
  cp_async_wait<1>();
  look();
  cp_async_wait<0>();
  look();
}

TEST(Emulation, AsynchronousCopiesLandEarlyOrLate) {
  alignas(16) static const float from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<std::array<float, 2>> early, late, both;
  const auto copy_into = [&](std::vector<std::array<float, 2>>& seen, unsigned blocks) {
    run(
        dim3(blocks), dim3(1), [&] { copy_and_wait(from, seen); }, 32);
  };
  emulation::set_copy_timing(emulation::CopyTiming::at_once);
  copy_into(early, 1);
  emulation::set_copy_timing(emulation::CopyTiming::when_waited_for);
  copy_into(late, 1);
  EXPECT_NE(error_of(dim3(1),
                     [] {
                       alignas(16) static float to[4];
                       cp_async_zfill(to, from, true);
                       cp_async_commit();
                     })
                .find("asynchronous copies"),
            std::string::npos);
  emulation::set_copy_timing(emulation::CopyTiming::alternating);
  copy_into(both, 2);
  EXPECT_EQ(early, (std::vector<std::array<float, 2>>{{4, 0}, {4, 0}, {4, 0}}));
  ASSERT_EQ(late.size(), 3u);
  EXPECT_TRUE(std::isnan(late[0][0]) && std::isnan(late[1][1]));
  EXPECT_EQ(late[1][0], 4);
  EXPECT_EQ(late[2], (std::array<float, 2>{4, 0}));
  EXPECT_NE(std::isnan(both[0][0]), std::isnan(both[3][0]));
}

// mma.sync with fragments from ldmatrix, as in the attention kernel, against a plain matrix
// product.
template <typename T>
void check_tensor_core_product() {
  constexpr int kRows = 16, kColumns = 16, kDepth = 16;
  std::vector<float> a(kRows * kDepth), b(kColumns * kDepth), d(kRows * kColumns);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i % 7) - 3;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i % 5) - 2;
  const auto product = [&](bool b_by_depth) {
    run(
        dim3(1), dim3(32),
        [&] {
          auto* left = static_cast<T*>(shared_memory());
          T* right = left + kRows * kDepth;  // [column][depth], or [depth][column]
          const int lane = thread_id();
          for (int i = lane; i < kRows * kDepth; i += kWarpSize)
            store(left + i, a[static_cast<std::size_t>(i)]);
          for (int i = lane; i < kColumns * kDepth; i += kWarpSize)
            store(right + (b_by_depth ? i % kDepth * kColumns + i / kDepth : i),
                  b[static_cast<std::size_t>(i)]);
          __syncthreads();
          std::uint32_t left_part[4], right_part[4];
          ldmatrix_x4(left_part, left + lane % 16 * kDepth + lane / 16 * 8);
          if (b_by_depth)
            ldmatrix_x4_trans(right_part, right + lane % 16 * kColumns + lane / 16 * 8);
          else
            ldmatrix_x4(right_part, right + (lane % 8 + lane / 16 * 8) * kDepth + lane / 8 % 2 * 8);
          for (int n = 0; n < 2; ++n) {
            float sum[4] = {};
            mma_m16n8k16<T>(sum, left_part, {right_part[2 * n], right_part[2 * n + 1]});
            for (int i = 0; i < 4; ++i)
              d[static_cast<std::size_t>((lane / 4 + i / 2 * 8) * kColumns + 8 * n + lane % 4 * 2 + i % 2)] =
                  sum[i];
          }
        },
        sizeof(T) * (kRows + kColumns) * kDepth);
  };
  for (const bool b_by_depth : {false, true}) {
    product(b_by_depth);
    for (std::size_t row = 0; row < kRows; ++row)
      for (std::size_t column = 0; column < kColumns; ++column) {
        float expected = 0;
        for (std::size_t k = 0; k < kDepth; ++k) expected += a[row * kDepth + k] * b[column * kDepth + k];
        ASSERT_EQ(d[row * kColumns + column], expected) << row << " " << column;
      }
  }
}

TEST(Emulation, TensorCoreProductOfBfloat16) {
  check_tensor_core_product<bf16>();
}
TEST(Emulation, TensorCoreProductOfFloat16) {
  check_tensor_core_product<f16>();
}

#ifdef __SANITIZE_ADDRESS__
TEST(EmulationDeathTest, AddressSanitizerSeesSharedMemory) {
  EXPECT_DEATH(run(
                   dim3(1), dim3(32), [] { static_cast<volatile float*>(shared_memory())[threadIdx.x] = 1; },
                   31 * sizeof(float)),
               "heap-buffer-overflow");
}
#endif

void kernel_of_sync(bool triggers_early) {
  pdl_trigger_and_wait(triggers_early);
}

// NCCL 2.28 to 2.30.4 do not wait for a kernel that triggered.
TEST(Emulation, FindsCollectivesThatMayOvertakeAKernel) {
  const auto run = [](bool triggers_early) {
    launch({"before_sync", dim3(2), dim3(32)}, kernel_of_sync, triggers_early);
  };
  run(false);
  EXPECT_NO_THROW(emulation::check_not_overtaking("a collective"));
  run(true);
  try {
    emulation::check_not_overtaking("a collective");
    FAIL() << "nothing was reported";
  } catch (const std::exception& error) {
    EXPECT_EQ(std::string(error.what()).find("a collective may start before kernel before_sync has ended"),
              0u)
        << error.what();
  }
  run(false);
  EXPECT_NO_THROW(emulation::check_not_overtaking("a collective")) << "which waited for the one before";
  run(true);
  emulation::note_full_edge();
  EXPECT_NO_THROW(emulation::check_not_overtaking("a collective"));
}

// Each block of a cluster adds what the others have in their shared memory.
TEST(Emulation, BlocksOfAClusterReadEachOthersSharedMemory) {
  constexpr int kBlocks = 4, kThreads = 64;
  std::vector<int> sums(2 * kBlocks * kThreads), ranks(2 * kBlocks);
  run(
      dim3(2 * kBlocks), dim3(kThreads),
      [&] {
        auto* values = static_cast<int*>(shared_memory());
        const int block = static_cast<int>(blockIdx.x), i = thread_id();
        ranks[static_cast<std::size_t>(block)] = cluster_rank();
        values[i] = 1000 * block + i;
        cluster_barrier();
        int sum = 0;
        for (int b = 0; b < kBlocks; ++b) sum += in_block_of_cluster(values, b)[(i + 1) % kThreads];
        sums[static_cast<std::size_t>(block * kThreads + i)] = sum;
        cluster_barrier();
      },
      kThreads * sizeof(int), kBlocks);
  EXPECT_EQ(ranks, (std::vector<int>{0, 1, 2, 3, 0, 1, 2, 3}));
  for (int i = 0; i < 2 * kBlocks * kThreads; ++i) {
    const int first = i / (kBlocks * kThreads) * kBlocks;
    EXPECT_EQ(sums[static_cast<std::size_t>(i)], 1000 * (4 * first + 6) + 4 * ((i + 1) % kThreads));
  }
}

// A block's barriers are its own, and it may be ahead of another by several: up to the cluster's barrier, the first runs ahead,
// and then the last.
TEST(Emulation, BlocksOfAClusterRunAhead) {
  std::vector<int> order;
  run(
      dim3(2), dim3(32),
      [&] {
        for (int phase = 0; phase < 2; ++phase) {
          for (int i = 0; i < 3; ++i) {
            __syncthreads();
            if (thread_id() == 0) order.push_back(cluster_rank());
          }
          cluster_barrier();
        }
      },
      0, 2);
  EXPECT_EQ(order, (std::vector<int>{0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0}));
}

TEST(Emulation, ReportsFaultsOfClusters) {
  const auto finds = [](const std::string& error, const char* text) {
    EXPECT_NE(error.find(text), std::string::npos) << error;
  };
  const std::string waits = error_of(
      dim3(32),
      [] {
        if (cluster_rank() == 0) cluster_barrier();
      },
      2);
  finds(waits, "wait for each other forever");
  finds(waits, "barrier.cluster");
  finds(waits, "returned");
  finds(error_of(
            dim3(32),
            [] {
              if (cluster_rank() == 1) in_block_of_cluster(static_cast<int*>(shared_memory()), 0);
            },
            2),
        "the shared memory of a block that has returned is read at block (1, 0, 0)");
  finds(error_of(
            dim3(32), [] { in_block_of_cluster(static_cast<int*>(shared_memory()) + 32, 0); }, 2),
        "an address outside dynamic shared memory");
  finds(error_of(
            dim3(32), [] { in_block_of_cluster(static_cast<int*>(shared_memory()), 2); }, 2),
        "a block outside the cluster");
  EXPECT_THROW(run(
                   dim3(3), dim3(32), [] {}, 0, 2),
               std::runtime_error)
      << "no whole clusters";
  EXPECT_THROW(run(
                   dim3(2), dim3(33), [] {}, 0, 2),
               std::runtime_error)
      << "no whole warps";
}

TEST(Emulation, ReportsThreadsThatEndWithoutWaitingForThePreviousKernel) {
  const auto kernel = [] {
    if (threadIdx.x != 3) grid_dependency_wait();
  };
  try {
    emulation::run_grid("hasty", dim3(1), dim3(8), 0, 1, kernel);
    FAIL() << "nothing was reported";
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("kernel hasty: a thread returned before it waited"),
              std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("thread (3, 0, 0)"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace ptrt
