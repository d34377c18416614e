#include "runtime/model/vocab_head.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

std::int64_t slice_of(std::int64_t vocab_size, std::int64_t ranks) {
  return (vocab_size + ranks - 1) / ranks;
}

// NaN stands for a part of the row that is not finite: it goes before everything.
bool goes_before(float logit, float best) {
  return logit > best || std::isnan(logit);
}

}  // namespace

HeadRows head_rows_of(std::int64_t vocab_size, std::int64_t ranks, std::int64_t rank) {
  const std::int64_t slice = slice_of(vocab_size, ranks);
  if (ranks == 1 || (ranks - 1) * slice >= vocab_size) return {};
  return {rank * slice, std::min(slice, vocab_size - rank * slice)};
}

VocabHead::VocabHead(const ModelConfig& config, const TrackShard& shard, Backend& backend, TrackComm& comm,
                     std::int64_t max_rows)
    : backend_(backend),
      comm_(comm),
      matrix_{shard.lm_head},
      split_(shard.head_rows.count > 0),
      vocab_size_(config.vocab_size),
      first_(shard.head_rows.first),
      slice_(slice_of(config.vocab_size, comm.size())),
      memory_(backend) {
  all_ = memory_.make(1, max_rows, vocab_size_, DType::float32, "logits");
  own_ = all_;
  const auto rows = static_cast<std::size_t>(max_rows);
  greedy_params_.resize(rows);
  if (!split_) return;
  PTRT_CHECK(shard.head_rows.count == head_rows_of(vocab_size_, comm.size(), comm.rank()).count);
  own_ = memory_.make(1, max_rows, shard.head_rows.count, DType::float32, "this rank's logits");
  const auto ranks = static_cast<std::size_t>(comm.size());
  own_best_.resize(rows);
  all_best_.resize(rows * ranks);
  send_.resize(rows * static_cast<std::size_t>(slice_));
  recv_.resize(send_.size() * ranks);
}

Tensor VocabHead::own_logits(Tensor input) {
  const Tensor out = own_.first_rows(input.rows);
  const LinearJob job[] = {{&matrix_, input, out}};
  backend_.linear(job);
  return out;
}

void VocabHead::all_gather(const void* send, void* recv, std::size_t bytes) {
  const auto start = std::chrono::steady_clock::now();
  comm_.all_gather(send, recv, bytes);
  stats_.exchanges++;
  stats_.bytes_sent += bytes * static_cast<std::size_t>(comm_.size() - 1);
  stats_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Tensor VocabHead::logits(Tensor input) {
  const Tensor own = own_logits(input);
  if (!split_) return own;
  for (std::int64_t r = 0; r < own.rows; r++)
    std::copy_n(own.row(0, r), own.width, send_.data() + r * slice_);
  const std::int64_t part = own.rows * slice_;
  all_gather(send_.data(), recv_.data(), static_cast<std::size_t>(part) * sizeof(float));
  const Tensor all = all_.first_rows(input.rows);
  for (std::int64_t rank = 0; rank < comm_.size(); rank++)
    for (std::int64_t r = 0; r < all.rows; r++)
      std::copy_n(recv_.data() + rank * part + r * slice_, std::min(slice_, vocab_size_ - rank * slice_),
                  all.row(0, r) + rank * slice_);
  return all;
}

void VocabHead::greedy(Tensor input, std::span<Sampled> out) {
  const Tensor own = own_logits(input);
  backend_.sample(own, std::span(greedy_params_).first(out.size()), out);
  if (!split_) return;
  for (std::size_t r = 0; r < out.size(); r++)
    own_best_[r] = {out[r].finite() ? own.row(0, static_cast<std::int64_t>(r))[out[r].token] : NAN,
                    static_cast<std::int32_t>(first_) + out[r].token};
  all_gather(own_best_.data(), all_best_.data(), out.size() * sizeof(Candidate));
  for (std::size_t r = 0; r < out.size(); r++) {
    Candidate best = all_best_[r];
    for (std::size_t rank = 1; rank < static_cast<std::size_t>(comm_.size()); rank++)
      if (const Candidate& other = all_best_[rank * out.size() + r]; goes_before(other.logit, best.logit))
        best = other;
    out[r] = std::isnan(best.logit) ? Sampled::not_finite() : Sampled{best.token, 0};
  }
}

}  // namespace ptrt
