// How a backend runs steps: the inputs of a step, recorded steps, and sampling that the host takes
// late. The defaults are those of a backend whose ops run at once in the host's memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace ptrt {

// How a device spent its time on recorded steps that directly followed one another. A step's time
// includes what was queued after it, up to the next step.
struct ReplayTimes {
  double busy_s = 0;  // from the first work of a step to its last
  double idle_s = 0;  // before the first
};

class StepExecution {
 public:
  explicit StepExecution(OpSet& ops) : ops_(ops) {}
  StepExecution(const StepExecution&) = delete;
  StepExecution& operator=(const StepExecution&) = delete;
  virtual ~StepExecution() = default;

  // Gives the inputs of the following embed(), rope_angles(), rope_append() and attention() calls
  // in advance: a device copies them to buffers of fixed address, so that those ops only launch
  // work. The spans may change when this returns. With BackendTraits::steps_ahead, a token may be a
  // token_of_sample().
  virtual void set_step_inputs(std::span<const std::int32_t> /*tokens*/, const StepRows& /*rows*/) {}

  // Runs `ops`: calls of this backend's ops that depend on `key` and on set_step_inputs() alone,
  // for a step of StepRows::decodes. A backend may record the work they queue,
  // and queue it again for an equal key without calling `ops`. Returns whether they were called.
  virtual bool run_recorded(std::int64_t /*key*/, const std::function<void()>& ops) {
    ops();
    return true;
  }
  // Drops all recorded steps. Collectives they use must outlive them.
  virtual void drop_recorded() noexcept {}
  // Times of the replays since the last call, by the device's clock; waits for them. None where
  // nothing is recorded.
  virtual std::optional<ReplayTimes> take_replay_times() { return std::nullopt; }
  // Marks the device idle for lack of requests: the time until the next step is not counted.
  virtual void mark_idle() {}

  // sample() in two halves, with top_log_probs() of the rows whose count is above 0; `top_counts` is empty
  // where there are none, else those rows want their log-probability too. What is queued is taken in the
  // same order, with `out` as long as the params were, and `top` as long as the counts. At most
  // BackendTraits::steps_ahead + 1 may be queued. What `params` point to may change when queue_sample()
  // returns. Only take_sampled() waits.
  virtual void queue_sample(Tensor logits, std::span<const SampleParams> params,
                            std::span<const std::int32_t> top_counts) {
    Queued& queued = queued_.emplace_back();
    queued.sampled.resize(params.size());
    queued.top.resize(top_counts.size());
    ops_.sample(logits, params, queued.sampled);
    if (!top_counts.empty()) ops_.top_log_probs(logits, top_counts, queued.top);
  }
  virtual void take_sampled(std::span<Sampled> out, std::span<TopLogprobs> top) {
    std::ranges::copy(queued_.at(0).sampled, out.begin());
    std::ranges::copy(queued_.at(0).top, top.begin());
    queued_.erase(queued_.begin());
  }

 private:
  struct Queued {
    std::vector<Sampled> sampled;
    std::vector<TopLogprobs> top;
  };
  OpSet& ops_;
  std::vector<Queued> queued_;  // by the queue_sample() above
};

}  // namespace ptrt
