// Choice of the next token and log-probabilities on the device; the rules are those of
// kernels/cpu/ops/sampling.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "kernels/cuda/host/device_memory.h"

namespace ptrt::cuda {

// A row's vocabulary is looked at in parts of at least so many tokens, as many parts at most.
inline constexpr int kVocabPartTokens = 2048, kMaxVocabParts = 32;

// What is known of one part of one row.
struct VocabPart {
  unsigned long long largest = 0;  // the key of its first token in the order of choice
  unsigned long long mass = 0;     // of its tokens' probabilities, where the row is drawn from
  float sum = 0;                   // Σ e^(logit − its largest), where a logarithm is wanted
};

// The tokens that top_k and top_p of one row can keep, where they are not too many. Zeroed before use.
inline constexpr int kCandidateBins = 2048, kMaxCandidates = 4096;
struct Candidates {
  unsigned long long bins[kCandidateBins];  // tokens or mass, by distance from the largest logit
  std::int32_t count;                       // above kMaxCandidates: they are not all there
  std::int32_t ids[kMaxCandidates];         // in any order
};

class Sampler {
 public:
  Sampler(const WorkLimits& limits, const Stream& stream);

  static constexpr std::uint64_t kTurns = 2;
  std::uint64_t under_way() const { return queued_ - taken_; }  // calls queued and not taken

  // Backend::queue_sample() and Backend::take_sampled() of float32 logits; at most kTurns are under way.
  void queue(const Tensor& logits, std::span<const SampleParams> params);
  void take(std::span<Sampled> out);
  // Backend::log_probs(); waits for the results. Nothing may be under way.
  void log_probs(const Tensor& logits, std::span<const std::int32_t> targets, std::span<float> out);

  // On the device, at a fixed address: the tokens of the last queue(), where the stream is past it.
  const Sampled* sampled() const { return sampled_.get(); }
  std::int64_t rows() const { return rows_; }  // of the last queue()

 private:
  // One call under way: pinned memory for what it takes and gives. The stream is past both when `done` is.
  struct Turn {
    std::shared_ptr<std::byte[]> in, out;
    Event done;
  };
  Turn& turn(std::uint64_t call) { return turns_[call % kTurns]; }
  template <typename T>
  void upload(std::span<const T> values, const Turn& turn, T* device);
  void download(std::size_t rows, Turn& turn);
  void prepare_draws(const Tensor& logits, std::span<const SampleParams> params);

  const Stream& stream_;
  std::int64_t max_rows_, rows_ = 0;
  // Each [logit_rows].
  DevicePointer<SampleParams> params_;
  DevicePointer<std::int32_t> targets_;
  DevicePointer<Sampled> sampled_;
  DevicePointer<VocabPart> parts_;  // [logit_rows, kMaxVocabParts]
  DevicePointer<Candidates> candidates_;
  Turn turns_[kTurns];
  std::uint64_t queued_ = 0, taken_ = 0;  // calls so far
};

}  // namespace ptrt::cuda
