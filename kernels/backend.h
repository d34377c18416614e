// A Backend is one device: its memory, its op set (ops.h) and how it runs steps (step_execution.h).
// runtime/ writes the forward pass once against this interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/device_collectives.h"
#include "kernels/ops.h"
#include "kernels/step_execution.h"
#include "kernels/tensor.h"
#include "kernels/weight_source.h"

namespace ptrt {

// What a backend is like, from its construction on. What may change later (bytes held, the
// instruction set) is a function of Backend.
struct BackendTraits {
  std::string name;  // "cpu"
  int threads = 1;   // of the host that compute
  // Type of the activations inside a sublayer: normed rows, q, k, v, gate, up and their outputs.
  DType activation_dtype = DType::float32;
  // Whether run_recorded() records steps.
  bool records_steps = false;
  // Whether attention() may be given fewer rows than set_step_inputs() was.
  bool attends_to_row_subsets = true;
  // Steps that may be queued before the tokens of the step before them are taken: 0 or 1.
  int steps_ahead = 0;
  // Tracks that parallel_over_tracks() runs at a time.
  int track_lanes = 1;

  // Whether parallel_over_tracks() is the better way to run that many tracks between two syncs:
  // where the lanes come out even, they wait for each other once a block instead of around every
  // product.
  bool prefers_track_parallel(std::int64_t tracks) const {
    return track_lanes > 1 && tracks % track_lanes == 0;
  }
};

class Backend : public OpSet, public StepExecution {
 public:
  Backend() : StepExecution(static_cast<OpSet&>(*this)) {}

  virtual const BackendTraits& traits() const = 0;
  // What the bits of results depend on, e.g. "AVX3+BF16". On the CPU it follows set_simd_target().
  virtual std::string instruction_set() const = 0;

  // --- Memory ---

  // Zeroed memory for activations and KV pages, 64-byte aligned, freed with the pointer. Throws
  // failure, with `what` in the message, when there is not enough.
  virtual std::shared_ptr<std::byte[]> allocate(std::size_t bytes, const std::string& what) = 0;
  // Copies between the host's memory and what allocate() gave. Both wait until the bytes have
  // moved; read_back() after all ops before it.
  virtual void write(std::span<const std::byte> from, std::byte* to) {
    std::memcpy(to, from.data(), from.size());
  }
  virtual void read_back(const std::byte* from, std::span<std::byte> to) {
    std::memcpy(to.data(), from, to.size());
  }
  // Free bytes of the device's own memory; none where memory is the host's.
  virtual std::optional<std::size_t> free_bytes() const { return std::nullopt; }
  // Sizes the scratch of ops. Called once, before the first op, by whoever runs steps. Throws
  // bad_input when the device's kernels do not reach the limits, failure when there is not enough
  // memory.
  virtual void reserve(const WorkLimits& /*limits*/) {}

  // --- Weights ---

  // Announces all weights that load_weight() will be asked for, in that order, so that their memory
  // can be taken at once. Throws failure when there is not enough.
  virtual void plan_weights(std::span<const WeightSpec> /*specs*/) {}
  // Loads a weight into the layout that the backend wants; reads the source once, piece by piece.
  // The backend owns the memory. Throws bad_input when it cannot multiply by the weight's type, and
  // what the source does.
  virtual Weight load_weight(const WeightSpec& spec, WeightSource& source) = 0;
  // The same for several weights, which a backend may read in parallel.
  virtual std::vector<Weight> load_weights(std::span<const WeightLoad> loads) {
    std::vector<Weight> weights;
    for (const WeightLoad& load : loads) weights.push_back(load_weight(load.spec, *load.source));
    return weights;
  }
  virtual std::size_t weight_bytes() const = 0;           // of the weights loaded so far
  virtual std::size_t mapped_bytes() const { return 0; }  // of these, what lies in mapped files

  // --- Groups of ranks, tracks in parallel ---

  // Collectives between the devices of several ranks; null where memory is the host's.
  virtual DeviceGroups* device_groups() { return nullptr; }
  // Calls body(track, lane) for every track below `tracks`, several at a time, and returns when all
  // are done. A lane computes a single track on one thread, with the same bits as this backend.
  // Rethrows what a body throws.
  virtual void parallel_over_tracks(std::int64_t tracks,
                                    const std::function<void(std::int64_t, Backend&)>& body) {
    for (std::int64_t track = 0; track < tracks; ++track) body(track, *this);
  }
};

}  // namespace ptrt
