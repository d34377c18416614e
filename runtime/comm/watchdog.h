// Ends a job in which a rank is stuck: a thread beside the decode loop that asks the device groups
// for failures and checks that steps continue.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/device_collectives.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

struct WatchdogOptions {
  double step_timeout_s = 0;  // without a step or a message; 0: only failures of device groups are detected
  // A rank that waits for others reports later than one that is stuck, and each rank later than the
  // rank before it: so that one rank reports, and the right one.
  int rank = 0;
};

class Watchdog {
 public:
  // `on_failure` is called at most once, by the watchdog's thread. It should report `what`, call
  // `abort_groups`, which aborts the device groups, and end the process.
  using OnFailure = std::function<void(const std::string& what, const std::function<void()>& abort_groups)>;
  Watchdog(const WatchdogOptions& options, OnFailure on_failure);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Around a run of the engine; outside of it no progress is expected.
  void start();
  void stop();

  // A call that waits for messages.
  struct Wait {
    const char* others = "";  // waited for: "the ranks with the other tracks"
    TrackComm* comm = nullptr;
  };
  // Called by the rank's thread.
  void step_begins();
  void wait_begins(const Wait& wait);
  void wait_ends();
  void forget_waits();  // before a comm is destroyed

  void watch(DeviceCollectives& group);
  void forget(DeviceCollectives& group);

 private:
  void monitor();
  std::string detect_failure();
  std::string detect_stall() const;
  void abort_groups();

  WatchdogOptions options_;
  OnFailure on_failure_;
  std::atomic<std::int64_t> last_progress_ns_{0};
  std::atomic<std::uint64_t> steps_{0};
  std::atomic<const Wait*> wait_{nullptr};  // null: the rank computes
  std::mutex mutex_;
  std::condition_variable changed_;
  bool running_ = false, ended_ = false;
  std::vector<DeviceCollectives*> groups_;
  std::thread thread_;
};

// `inner`, reporting every wait to the watchdog; `others` names the ranks waited for.
std::unique_ptr<TrackComm> make_watched_comm(std::unique_ptr<TrackComm> inner, Watchdog& watchdog,
                                             const char* others);

}  // namespace ptrt
