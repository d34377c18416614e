// Sampling of the next token and log-probabilities on the device, by the rules of
// kernels/cpu/ops/sampling.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/ops/edited_rows.h"
#include "kernels/cuda/ops/vocab_part.h"
#include "kernels/jobs.h"
#include "kernels/step_rows.h"

namespace ptrt::cuda {

// The tokens that top_k and top_p of one row can keep, if there are not too many. Zeroed before
// use.
inline constexpr int kCandidateBins = 2048, kMaxCandidates = 4096;
struct Candidates {
  unsigned long long bins[kCandidateBins];  // counts or masses, by distance from the largest logit
  std::int32_t count;                       // above kMaxCandidates: `ids` is incomplete
  std::int32_t ids[kMaxCandidates];         // in any order
};

// The counts[r] likeliest tokens of row r, whose statistics are known, with their sums if it is finite; NaN if it
// is not.
void fill_top_logprobs(const Tensor& logits, VocabPart* parts, const std::int32_t* counts, TopLogprobs* out,
                       const Stream& stream);

class Sampler {
 public:
  Sampler(const WorkLimits& limits, const Stream& stream);

  static constexpr std::uint64_t kMaxInFlight = 2;
  std::uint64_t in_flight() const { return queued_ - taken_; }  // calls queued and not taken

  // Backend::queue_sample() and Backend::take_sampled() of float32 logits; at most kMaxInFlight
  // calls in flight.
  void queue(const Tensor& logits, std::span<const SampleParams> params,
             std::span<const std::int32_t> top_counts);
  void take(std::span<Sampled> out, std::span<TopLogprobs> top);
  // Backend::log_probs() and Backend::top_log_probs(); they wait for the results. No call may be in flight.
  void log_probs(const Tensor& logits, std::span<const std::int32_t> targets, std::span<Scored> out);
  void top_log_probs(const Tensor& logits, std::span<const std::int32_t> counts, std::span<TopLogprobs> out);

  // Device memory at a fixed address: the results of the last queue(), for later work in the
  // stream.
  const Sampled* sampled() const { return sampled_.get(); }
  std::int64_t rows() const { return rows_; }  // of the last queue()

 private:
  // What the stream uses of the host's memory for one call in flight, until `done` has passed; the first four
  // are pinned.
  struct Call {
    std::shared_ptr<std::byte[]> params, targets, sampled, top;
    std::vector<SampleParams> plain;
    StagedEdits edits;
    Event done;
  };
  Call& call(std::uint64_t number) { return calls_[number % kMaxInFlight]; }
  template <typename T>
  void upload(std::span<const T> values, std::byte* pinned, T* device);
  template <typename T>
  void download(const T* device, std::size_t count, std::byte* pinned);
  void choose(const Tensor& logits, float least, VocabPart* memory, std::span<const SampleParams> params,
              const SampleParams* on_device, Sampled* out);
  void choose_edited(const Tensor& logits, std::span<const SampleParams> params, StagedEdits& staged);
  void find_stats(const Tensor& logits);

  const Stream& stream_;
  std::int64_t max_rows_, rows_ = 0;
  EditedRows edited_;
  // All [logit_rows].
  DevicePointer<SampleParams> params_;
  DevicePointer<std::int32_t> targets_;  // or counts
  DevicePointer<Sampled> sampled_;
  DevicePointer<TopLogprobs> top_;
  DevicePointer<VocabPart> parts_;  // [logit_rows, kMaxVocabParts]
  DevicePointer<Candidates> candidates_;
  Call calls_[kMaxInFlight];
  std::uint64_t queued_ = 0, taken_ = 0;  // calls so far
};

}  // namespace ptrt::cuda
