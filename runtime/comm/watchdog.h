// Ends a job in which a rank is stuck, stopped or cut off: a thread beside the one that runs the rank. It checks
// for progress, exchanges signs of life with the other ranks, and asks the device groups for failures.
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
#include "runtime/job/heartbeat.h"

namespace ptrt {

struct WatchdogOptions {
  // Without a step, a message or other work, and without a sign of life from a rank; 0: only failures of device
  // groups are detected.
  double step_timeout_s = 0;
  // A rank that waits for others reports later than one that is stuck, and each rank later than the
  // rank before it: so that one rank reports, and the right one.
  int rank = 0;
  // Whether a signal asked for the end. A rank that had been silent for 3 seconds then ends the job at once, one
  // that fell silent later after 10.
  std::function<bool()> stop_requested = {};
  // Whether no other process of this host has begun to report; asked once (runtime/job/reporter.h).
  std::function<bool()> first_to_report = {};
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

  // What the rank does from here on: the engine's steps, or a phase that messages name. In each there must be
  // progress, of a kind: steps, messages, note_progress(). stop(): none is expected until the next of them.
  enum class Phase : std::uint8_t { working, waiting };  // waiting: maybe for other ranks, without a Wait
  void start();
  void enter(const char* phase, Phase kind = Phase::working, double at_least_s = 0);
  void stop();

  // Between these calls signs of life are exchanged.
  void begin_heartbeat(std::unique_ptr<PulseComm> comm, std::vector<std::string> hosts);
  void end_heartbeat();

  // A call that waits for messages.
  struct Wait {
    const char* others = "";    // waited for: "the ranks with the other tracks"
    TrackComm* comm = nullptr;  // null: all ranks of the job, which may work for long meanwhile
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
  void beat();
  bool another_reports(std::unique_lock<std::mutex>& lock);
  std::string detect_failure();
  std::string detect_silence();
  std::string detect_stall() const;
  std::string where() const;
  double turn() const;
  bool stopping() const { return options_.stop_requested && options_.stop_requested(); }
  void abort_groups();

  WatchdogOptions options_;
  OnFailure on_failure_;
  std::atomic<std::int64_t> last_progress_ns_{0};
  std::atomic<std::uint64_t> steps_{0};
  std::atomic<const Wait*> wait_{nullptr};  // null: the rank computes
  std::mutex mutex_;
  std::condition_variable changed_;
  bool running_ = false, ended_ = false;
  const char* phase_ = nullptr;  // null: the engine's steps
  Phase phase_kind_ = Phase::working;
  double limit_s_ = 0;  // in this phase
  std::unique_ptr<Heartbeat> heartbeat_;
  std::uint64_t work_ = 0, progress_seen_ = 0;
  std::int64_t progress_seen_ns_ = 0;
  std::int64_t stop_seen_ns_ = 0;  // 0: no signal yet
  double silent_at_stop_ = 0;      // seconds
  bool ends_a_stop_ = false;       // what was detected ends a job that was to stop anyway
  std::vector<DeviceCollectives*> groups_;
  std::thread thread_;
};

}  // namespace ptrt
