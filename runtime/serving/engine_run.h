// State of one call of Engine::run(), for the engine's own sources.
#pragma once

#include <chrono>
#include <cstdint>
#include <unordered_map>

#include "runtime/requests/request.h"
#include "runtime/requests/sample_gather.h"
#include "runtime/sampling/logit_rule_state.h"
#include "runtime/schedule/scheduler.h"
#include "runtime/schedule/step_pipeline.h"
#include "runtime/serving/engine.h"
#include "runtime/serving/output_text.h"
#include "runtime/serving/replica_signals.h"

namespace ptrt {

using EngineClock = std::chrono::steady_clock;

inline double seconds_since(EngineClock::time_point start) {
  return std::chrono::duration<double>(EngineClock::now() - start).count();
}

struct Engine::Run {
  Task task;
  const Hooks& hooks;
  Scheduler scheduler;
  EngineClock::time_point start;
  ReplicaSignals signals;
  StepPipeline pipeline;
  std::unordered_map<const Sequence*, OutputText> texts = {};
  std::unordered_map<std::int64_t, Request> drawn = {};         // by line; those that are not done
  std::unordered_map<std::int64_t, SampleGather> gathers = {};  // by request; of several samples, some done
  std::unordered_map<const Sequence*, LogitRuleState> rules = {};  // of those whose requests have any
  EngineClock::time_point reported = {};

  bool done() const { return scheduler.done() && !signals.may_draw_more(); }
};

}  // namespace ptrt
