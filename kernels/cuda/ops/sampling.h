// Sampling of the next token and log-probabilities on the device, by the rules of
// kernels/cpu/ops/sampling.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/jobs.h"
#include "kernels/step_rows.h"

namespace ptrt::cuda {

// A row's vocabulary is divided into at most kMaxVocabParts parts of at least kVocabPartTokens
// tokens.
inline constexpr int kVocabPartTokens = 2048, kMaxVocabParts = 32;

// The statistics of one part of one row.
struct VocabPart {
  unsigned long long best = 0;  // the key of its token with the largest logit, or with one not finite
  unsigned long long mass = 0;  // its tokens' probability mass, if the row is sampled
  float sum = 0;                // Σ e^(logit − the part's largest), if a log-probability is wanted
};

// The tokens that top_k and top_p of one row can keep, if there are not too many. Zeroed before
// use.
inline constexpr int kCandidateBins = 2048, kMaxCandidates = 4096;
struct Candidates {
  unsigned long long bins[kCandidateBins];  // counts or masses, by distance from the largest logit
  std::int32_t count;                       // above kMaxCandidates: `ids` is incomplete
  std::int32_t ids[kMaxCandidates];         // in any order
};

class Sampler {
 public:
  Sampler(const WorkLimits& limits, const Stream& stream);

  static constexpr std::uint64_t kMaxInFlight = 2;
  std::uint64_t in_flight() const { return queued_ - taken_; }  // calls queued and not taken

  // Backend::queue_sample() and Backend::take_sampled() of float32 logits; at most kMaxInFlight
  // calls in flight.
  void queue(const Tensor& logits, std::span<const SampleParams> params);
  void take(std::span<Sampled> out);
  // Backend::log_probs(); waits for the results. No call may be in flight.
  void log_probs(const Tensor& logits, std::span<const std::int32_t> targets, std::span<Scored> out);

  // Device memory at a fixed address: the results of the last queue(), for later work in the
  // stream.
  const Sampled* sampled() const { return sampled_.get(); }
  std::int64_t rows() const { return rows_; }  // of the last queue()

 private:
  // Pinned memory of one call in flight. The stream no longer uses it once `done` has passed.
  struct Call {
    std::shared_ptr<std::byte[]> in, out;
    Event done;
  };
  Call& call(std::uint64_t number) { return calls_[number % kMaxInFlight]; }
  template <typename T>
  void upload(std::span<const T> values, const Call& call, T* device);
  void download(std::size_t rows, Call& call);
  void prepare_draws(const Tensor& logits, std::span<const SampleParams> params);

  const Stream& stream_;
  std::int64_t max_rows_, rows_ = 0;
  // All [logit_rows].
  DevicePointer<SampleParams> params_;
  DevicePointer<std::int32_t> targets_;
  DevicePointer<Sampled> sampled_;
  DevicePointer<VocabPart> parts_;  // [logit_rows, kMaxVocabParts]
  DevicePointer<Candidates> candidates_;
  Call calls_[kMaxInFlight];
  std::uint64_t queued_ = 0, taken_ = 0;  // calls so far
};

}  // namespace ptrt::cuda
