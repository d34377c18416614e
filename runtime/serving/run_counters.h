// What one rank counts during a run of the engine.
#pragma once

#include <cstdint>

namespace ptrt {

class AllReduce;
class Backend;
class Fusion;
class VocabHead;

struct RunCounters {
  std::uint64_t steps = 0;  // forward passes
  std::uint64_t prefill_tokens = 0, decode_tokens = 0;
  std::uint64_t drafted_tokens = 0, accepted_tokens = 0;  // by speculation, of decode_tokens
  std::uint64_t preemptions = 0;
  // Tokens of prompts whose keys and values were there already; requests that may not use such, because they want
  // log-probabilities of their tokens.
  std::uint64_t reused_tokens = 0, cannot_reuse = 0;
  // Sync points: fusions between tracks, and sums within tracks that ranks share (tensor
  // parallelism).
  std::uint64_t fusions = 0, track_sums = 0, sync_bytes = 0;
  double sync_s = 0;            // in sync points: adding, waiting and moving
  double sync_wait_s = 0;       // of it, waiting for the slowest rank
  bool sync_wait_known = true;  // devices that communicate directly do not measure it
  std::uint64_t head_exchanges = 0, head_bytes = 0;
  double head_s = 0;  // in exchanges of a split vocabulary head
  // Of a device that replays steps, by its own clock (ReplayTimes); zeros where nothing was
  // replayed.
  double replay_busy_s = 0, replay_idle_s = 0;
  double step_s = 0;                   // in all steps
  double prefill_s = 0, decode_s = 0;  // in steps that prefill, that decode; a mixed step counts in both
  double elapsed_s = 0;

  // A step of `seconds` that computed so many prompt tokens and gave so many tokens after a first
  // one.
  void count_step(double seconds, std::int64_t prefill_rows, bool decoded);
};

// The parts of a rank that count on their own during a run.
struct CounterSources {
  Fusion& fusion;
  AllReduce* tensor_parallel = nullptr;  // may be null
  VocabHead& head;
  Backend& backend;

  void reset() const;
  // Adds what they have counted on the host since reset(); waits for nothing.
  void peek(RunCounters& counters) const;
  // Adds their counts since reset() to `counters`. May wait for the device.
  void collect(RunCounters& counters) const;
};

}  // namespace ptrt
