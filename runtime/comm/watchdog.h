// Ends a job in which a rank is stuck: a thread beside the decode loop that asks the devices' groups for
// failures and looks whether steps go on.
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
  double step_timeout_s = 0;  // without a step or a message; 0: only the devices' failures are looked for
  // A rank that waits for others tells later than the one that is stuck, and each rank later than the one
  // before it: so that one tells, and the right one.
  int rank = 0;
};

class Watchdog {
 public:
  // `on_failure` is called at most once, by the watchdog's thread, and should end the process; the devices'
  // groups are aborted after it has told and before it has ended: it calls `abort_groups` in between.
  using OnFailure = std::function<void(const std::string& what, const std::function<void()>& abort_groups)>;
  Watchdog(const WatchdogOptions& options, OnFailure on_failure);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Around a run of the engine; outside of it nothing is expected to go on.
  void start();
  void stop();

  // A message under way.
  struct Wait {
    const char* others = "";  // that are waited for: "the ranks with the other tracks"
    TrackComm* comm = nullptr;
  };
  // By the rank's thread.
  void step_begins();
  void wait_begins(const Wait& wait);
  void wait_ends();
  void forget_waits();  // before a comm goes away

  void watch(DeviceCollectives& group);
  void forget(DeviceCollectives& group);

 private:
  void look_on();
  std::string trouble();
  std::string stuck() const;
  void abort_groups();

  WatchdogOptions options_;
  OnFailure on_failure_;
  std::atomic<std::int64_t> last_sign_ns_{0};
  std::atomic<std::uint64_t> steps_{0};
  std::atomic<const Wait*> wait_{nullptr};  // null: the rank is at work
  std::mutex mutex_;
  std::condition_variable changed_;
  bool running_ = false, ended_ = false;
  std::vector<DeviceCollectives*> groups_;
  std::thread thread_;
};

// `inner`, telling the watchdog of every message; `others` says who is waited for.
std::unique_ptr<TrackComm> make_watched_comm(std::unique_ptr<TrackComm> inner, Watchdog& watchdog,
                                             const char* others);

}  // namespace ptrt
