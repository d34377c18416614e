// Workers that wait read what comes next, and no more. Seen in memory of which the system tells what was
// read.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/host/thread_pool.h"
#include "kernels/cpu/weights/packed.h"
#include "kernels/make_cpu_backend.h"

namespace ptrt {
namespace {

using namespace std::chrono_literals;

// A file without contents, in pages that come into being when they are read.
class WatchedMemory {
 public:
  explicit WatchedMemory(std::size_t bytes) : bytes_(bytes), file_(memfd_create("watched", 0)) {
    expect(file_ >= 0 && ftruncate(file_, static_cast<off_t>(bytes)) == 0);
    at_ = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file_, 0);
    expect(at_ != MAP_FAILED && madvise(at_, bytes, MADV_NOHUGEPAGE) == 0);
  }
  ~WatchedMemory() {
    munmap(at_, bytes_);
    close(file_);
  }
  WatchedMemory(const WatchedMemory&) = delete;
  WatchedMemory& operator=(const WatchedMemory&) = delete;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(at_), bytes_}; }
  // Whole pages.
  std::size_t bytes_read() const {
    std::vector<unsigned char> present((bytes_ + page() - 1) / page());
    expect(mincore(at_, bytes_, present.data()) == 0);
    const auto is_present = [](unsigned char p) { return (p & 1) != 0; };
    return static_cast<std::size_t>(std::ranges::count_if(present, is_present)) * page();
  }
  void forget() { expect(ftruncate(file_, 0) == 0 && ftruncate(file_, static_cast<off_t>(bytes_)) == 0); }
  // Waits until at least so much has been read, and a little longer for what should not be.
  std::size_t bytes_read_in_time(std::size_t wanted) const {
    const auto end = std::chrono::steady_clock::now() + 120s;
    while (bytes_read() < wanted && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(50ms);
    return bytes_read();
  }
  static std::size_t page() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

 private:
  static void expect(bool worked) {
    if (!worked) throw std::runtime_error("the system has no memory to watch");
  }

  std::size_t bytes_;
  int file_;
  void* at_ = nullptr;
};

// Cores for two workers that may burn them; none where there is but one core.
std::vector<CpuSet> two_cores() {
  std::vector<CpuSet> cores = allowed_cores();
  if (cores.size() < 2) return {};
  cores.resize(2);
  return cores;
}

// Tells each worker of a memory of its own, while all of them have a task.
void tell(ThreadPool& pool, const std::vector<std::span<const std::byte>>& memory) {
  std::atomic<int> inside = 0;
  pool.parallel_for(pool.threads(), [&](std::int64_t, int worker) {
    for (++inside; inside < pool.threads();) std::this_thread::yield();
    pool.read_ahead(worker, memory[static_cast<std::size_t>(worker)]);
  });
}

TEST(ReadAhead, AWaitingWorkerReadsSoMuch) {
  const std::vector<CpuSet> cores = two_cores();
  if (cores.empty()) GTEST_SKIP() << "one core: workers sleep when they wait";
  for (const std::size_t bytes : {4 * kAheadBytes, kAheadBytes / 4}) {
    const WatchedMemory first(bytes), second(bytes);
    ThreadPool pool(2, cores);
    ASSERT_TRUE(pool.spins());
    tell(pool, {first.bytes(), second.bytes()});
    const std::size_t wanted = std::min(bytes, kAheadBytes);
    EXPECT_EQ(second.bytes_read_in_time(wanted), wanted);
  }
}

// What it was told before does not matter any more.
TEST(ReadAhead, NothingIsReadOnceNothingIsWanted) {
  const std::vector<CpuSet> cores = two_cores();
  if (cores.empty()) GTEST_SKIP() << "one core: workers sleep when they wait";
  const WatchedMemory memory(kAheadBytes);
  ThreadPool pool(2, cores);
  std::atomic<int> inside = 0;
  pool.parallel_for(2, [&](std::int64_t, int worker) {
    for (++inside; inside < 2;) std::this_thread::yield();
    pool.read_ahead(worker, memory.bytes());
    pool.read_ahead(worker, {});
  });
  EXPECT_EQ(memory.bytes_read_in_time(0), 0u);
}

TEST(ReadAhead, NobodyReadsWhereWorkersSleep) {
  const WatchedMemory first(kAheadBytes), second(kAheadBytes);
  ThreadPool pool(2, {}, true);
  tell(pool, {first.bytes(), second.bytes()});
  EXPECT_EQ(second.bytes_read_in_time(0), 0u);
  EXPECT_EQ(first.bytes_read(), 0u);
}

// A weight as `ptrt pack` leaves it, in watched memory. All zeros.
class WatchedWeight final : public WeightSource {
 public:
  static constexpr std::int64_t kOut = 1024, kIn = 512;

  explicit WatchedWeight(Backend& backend)
      : memory_(std::make_shared<WatchedMemory>(
            static_cast<std::size_t>(PackedLayout{DType::float32, kOut, kIn}.matrix_bytes()))),
        weights_{backend.load_weight({"watched", WeightRole::matrix, DType::float32, 1, kOut, kIn}, *this)} {}

  void read(std::int64_t, std::span<std::byte>) override { throw std::runtime_error("read"); }
  void read_scales(std::int64_t, std::span<std::byte>) override { throw std::runtime_error("read"); }
  std::optional<MappedWeight> try_map(WeightLayout) override {
    return MappedWeight{{memory_, memory_->bytes().data()}, memory_->bytes().size()};
  }

  WatchedMemory& memory() { return *memory_; }
  void multiply(Backend& backend, Tensor x, Tensor y) {
    const LinearJob job{&weights_, x, y};
    backend.linear({&job, 1});
  }

 private:
  std::shared_ptr<WatchedMemory> memory_;
  TrackWeights weights_;
};

TEST(ReadAhead, ABackendReadsTheWeightsThatComeNext) {
  const std::vector<CpuSet> cores = two_cores();
  if (cores.empty()) GTEST_SKIP() << "one core: workers sleep when they wait";
  const auto backend = make_cpu_backend({.threads = 2, .worker_cores = cores});
  WatchedWeight first(*backend), second(*backend);
  std::vector<float> x(WatchedWeight::kIn), y(WatchedWeight::kOut);
  const Tensor in{x.data(), 1, 1, WatchedWeight::kIn, WatchedWeight::kIn};
  const Tensor out{y.data(), 1, 1, WatchedWeight::kOut, WatchedWeight::kOut};
  for (int step = 0; step < 2; ++step)
    for (WatchedWeight* weight : {&first, &second}) weight->multiply(*backend, in, out);
  const std::size_t whole = second.memory().bytes().size();
  ASSERT_GE(whole, 4 * kAheadBytes);
  ASSERT_EQ(second.memory().bytes_read(), whole);

  second.memory().forget();
  ASSERT_EQ(second.memory().bytes_read(), 0u);
  // Where the worker is still asleep in the first call, the calling thread does it all.
  for (int i = 0; i < 10000 && second.memory().bytes_read() == 0; ++i) first.multiply(*backend, in, out);
  // The worker that waits for the next call, and as far as it waited the calling thread; runs need not begin
  // with a page.
  const std::size_t read = second.memory().bytes_read_in_time(kAheadBytes);
  EXPECT_GE(read, kAheadBytes);
  EXPECT_LE(read, 2 * (kAheadBytes + WatchedMemory::page()));
}

}  // namespace
}  // namespace ptrt
