// The program's side of NCCL over a library that only has its functions, on the emulated device: what is loaded, on which
// thread it is called, and what does not wait for ranks that are gone.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <optional>
#include <thread>
#include <tuple>

#include "cuda_emulation/fake_nccl.h"
#include "cuda_emulation/stream.h"
#include "kernels/base/error.h"
#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/cuda_check.h"
#include "kernels/cuda/host/nccl_collectives.h"
#include "kernels/cuda/host/nccl_library.h"
#include "kernels/cuda/host/step_graph.h"

#if !defined(PTRT_FAKE_NCCL) || !defined(PTRT_FAKE_NCCL_OLD) || !defined(PTRT_FAKE_NCCL_BROKEN)
#error "the paths of the libraries come from CMake"
#endif

namespace ptrt::cuda {
namespace {

FakeNccl& fake(const char* file = "libnccl.so.2") {
  void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw_failure("{}", dlerror());
  void* state = dlsym(library, kFakeNcclState);
  if (state == nullptr) throw_failure("{} is not the one of these tests: {}", file, dlerror());
  return *reinterpret_cast<FakeNccl* (*)()>(state)();
}

// Runs `test` in a process of its own, since NCCL is loaded once, and memory that was left is left.
void apart(const std::function<void()>& test) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto run = [&] {
    fake().copy = [](void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
    };
    test();
    std::fflush(stdout);
    std::_Exit(::testing::Test::HasFailure() ? 1 : 0);
  };
  EXPECT_EXIT(run(), ::testing::ExitedWithCode(0), "");
}

std::unique_ptr<DeviceCollectives> join(const Stream& stream, double limit_s = 30) {
  return join_nccl(make_nccl_id(), 0, 1, stream, limit_s);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

TEST(NcclLibrary, TellsWhatIsMissing) {
  const NcclLibrary none = load_nccl("libthere_is_no_such_nccl.so.2");
  EXPECT_NE(none.missing.find("no NCCL on this host (libthere_is_no_such_nccl.so.2"), std::string::npos)
      << none.missing;
  EXPECT_EQ(none.version, 0);
  const NcclLibrary broken = load_nccl(PTRT_FAKE_NCCL_BROKEN);
  EXPECT_NE(broken.missing.find("it has no ncclAllGather"), std::string::npos) << broken.missing;
}

TEST(NcclLibrary, AnOldOneIsUsedWithoutWindows) {
  fake(PTRT_FAKE_NCCL_OLD).version = 21803;
  const NcclLibrary old = load_nccl(PTRT_FAKE_NCCL_OLD);
  EXPECT_EQ(old.missing, "");
  EXPECT_EQ(old.version, 21803);
  EXPECT_EQ(old.mem_alloc, nullptr);
  EXPECT_FALSE(old.has_windows());
}

// Symmetric memory is left to versions whose kernels wait for the kernel before: in the others it is turned off in NCCL
// too, which since 2.29 may use it for buffers without windows.
TEST(NcclLibrary, WindowsOnlyWhereKernelsWait) {
  for (const int version : {22703, 22707, 23007, 23102}) {
    unsetenv("NCCL_WIN_ENABLE");
    fake(PTRT_FAKE_NCCL).version = version;
    EXPECT_TRUE(load_nccl(PTRT_FAKE_NCCL).has_windows()) << version;
    EXPECT_EQ(environment("NCCL_WIN_ENABLE"), "");
  }
  for (const int version : {22803, 22809, 22902, 22907, 23003, 23004}) {
    unsetenv("NCCL_WIN_ENABLE");
    fake(PTRT_FAKE_NCCL).version = version;
    EXPECT_FALSE(load_nccl(PTRT_FAKE_NCCL).has_windows()) << version;
    EXPECT_EQ(environment("NCCL_WIN_ENABLE"), "0") << version;
  }
  unsetenv("NCCL_WIN_ENABLE");
}

// NCCL takes this variable before what a communicator was asked for.
TEST(NcclLibrary, CommunicatorsBlockWhateverTheEnvironmentSays) {
  setenv("NCCL_COMM_BLOCKING", "0", 1);
  EXPECT_EQ(load_nccl(PTRT_FAKE_NCCL).missing, "");
  EXPECT_EQ(environment("NCCL_COMM_BLOCKING"), "1");
}

TEST(NcclLibrary, KnowsWhetherTheEnvironmentWantedWindows) {
  for (const auto& [version, asked, overruled] :
       {std::tuple{22809, "1", true}, {22809, "0", false}, {23007, "1", false}}) {
    setenv("NCCL_WIN_ENABLE", asked, 1);
    fake(PTRT_FAKE_NCCL).version = version;
    EXPECT_EQ(load_nccl(PTRT_FAKE_NCCL).windows_overruled, overruled) << version << " " << asked;
  }
  unsetenv("NCCL_WIN_ENABLE");
}

TEST(NcclDeathTest, TheLineOfARunSaysWhyThereAreNoWindows) {
  for (const char* asked : {"", "1"})
    apart([asked = std::string(asked)] {
      if (!asked.empty()) setenv("NCCL_WIN_ENABLE", asked.c_str(), 1);
      fake().version = 22809;
      const Stream stream;
      const auto group = join(stream);
      group->allocate(8, "a test");
      EXPECT_EQ(group->describe(), asked.empty() ? "NCCL 2.28.9, no windows with this version"
                                                 : "NCCL 2.28.9, no windows with this version in spite of "
                                                   "NCCL_WIN_ENABLE");
    });
}

TEST(NcclDeathTest, BuffersAreWindowsWhereTheVersionAllows) {
  for (const int version : {22707, 22809, 23007})
    apart([version] {
      fake().version = version;
      const Stream stream;
      const auto group = join(stream);
      const float* data = group->allocate(8, "a test");
      const bool windows = version != 22809;
      EXPECT_EQ(fake().windows, windows ? 1 : 0);
      EXPECT_EQ(group->describe().find(", windows registered") != std::string::npos, windows);
      EXPECT_TRUE(in_collective_memory(data + 7));
      EXPECT_FALSE(in_collective_memory(data + 8));
    });
}

TEST(NcclDeathTest, ARankCallsCollectivesOnItsOwnThread) {
  apart([] {
    const Stream stream;
    const auto group = join(stream);
    float* data = group->allocate(8, "a test");
    for (int i = 0; i < 3; i++) {
      fake().collective_thread = {};
      group->all_reduce(data, data + 4, 4);
      EXPECT_EQ(fake().collective_thread, std::this_thread::get_id());
    }
    stream.wait();  // a rank leaves when it has the results
    EXPECT_EQ(fake().joined, 1);
    EXPECT_EQ(fake().with_config, 0) << "no communicator whose calls continue after they have returned";
  });
}

TEST(NcclDeathTest, JoiningHasALimit) {
  apart([] {
    fake().init_waits = true;
    const Stream stream;
    try {
      join(stream, 0.2);
      ADD_FAILURE() << "it has joined";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("ncclCommInitRank of rank 0 of 1 is not done after 0.2 s"),
                std::string::npos)
          << error.what();
    }
  });
}

// Neither ncclCommAbort() nor cudaFree() is called while an error unwinds: both wait for collectives whose other ranks
// may be gone.
TEST(NcclDeathTest, AnErrorOnItsWayWaitsForNobody) {
  apart([] {
    const Stream stream;
    const std::size_t free_before = device_bytes().free;
    {
      const auto memory = allocate_device(1 << 20, "a test");
      const auto group = join(stream);
      group->allocate(8, "a test");
    }
    EXPECT_EQ(fake().aborted, 1) << "in order";
    EXPECT_EQ(device_bytes().free, free_before);
    try {
      const auto memory = allocate_device(1 << 20, "a test");
      const auto group = join(stream);
      group->allocate(8, "a test");
      throw_failure("a rank fails");
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "a rank fails");
    }
    EXPECT_EQ(fake().aborted, 1);
    EXPECT_LT(device_bytes().free, free_before);
  });
}

// Nor does the end of a stream, an event or a graph wait for work that may never end.
TEST(NcclDeathTest, NothingOfADeviceThatIsLeftIsWaitedFor) {
  apart([] {
    bool ran = false;
    const auto queue_and_end = [&ran] {
      const Stream stream;
      ReplayClock clock(stream);
      Event event;
      const StepGraph graph(stream, clock, [&] { emulation::submit(stream.get(), [] {}); });
      emulation::submit(stream.get(), [&ran] { ran = true; });
      event.record(stream);
    };
    queue_and_end();
    EXPECT_TRUE(ran) << "the emulated device waits";
    ran = false;
    leave_device_memory();
    queue_and_end();
    EXPECT_FALSE(ran);
  });
}

// The watchdog asks and aborts while the rank is in a call: it is not kept waiting, and nothing is freed under the call.
TEST(NcclDeathTest, AbortLeavesARankThatIsInACallItsCommunicator) {
  apart([] {
    const Stream stream;
    const auto group = join(stream);
    float* data = group->allocate(8, "a test");
    fake().collectives_wait = true;
    std::thread rank([&] { group->all_reduce(data, data + 4, 4); });
    while (fake().waiting == 0) std::this_thread::yield();
    EXPECT_EQ(group->failure(), "");
    fake().async_error = ncclRemoteError;
    EXPECT_EQ(group->failure(), "NCCL: an error") << "a rank that waits for one that is gone";
    group->abort();
    EXPECT_EQ(fake().aborted, 0);
    fake().collectives_wait = false;
    rank.join();
    EXPECT_THROW(group->all_reduce(data, data + 4, 4), Error);
    group->abort();
    EXPECT_EQ(fake().aborted, 1);
    EXPECT_EQ(group->failure(), "") << "there is no communicator to ask";
  });
}

}  // namespace
}  // namespace ptrt::cuda
