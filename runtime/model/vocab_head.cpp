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
                     DeviceCollectives* group, std::int64_t max_rows)
    : backend_(backend),
      comm_(comm),
      group_(group),
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
  PTRT_CHECK(shard.head_rows.count == own_columns());
  own_best_.resize(rows);
  all_best_.resize(rows * static_cast<std::size_t>(comm.size()));
  make_parts(max_rows);
}

// What this rank sends, and what all ranks sent.
void VocabHead::make_parts(std::int64_t max_rows) {
  constexpr const char *kOwn = "this rank's logits", *kAll = "the ranks' logits";
  const std::int64_t part = max_rows * slice_;
  float* own = nullptr;
  if (group_ != nullptr) {
    PTRT_CHECK(group_->size() == comm_.size() && group_->rank() == comm_.rank());
    own = group_->allocate(static_cast<std::size_t>(part), kOwn);
    parts_ = group_->allocate(static_cast<std::size_t>(part * comm_.size()), kAll);
    timer_ = backend_.device_groups()->make_timer();
  } else {
    PTRT_CHECK(backend_.device_groups() == nullptr);
    own = memory_.make(1, 1, part, DType::float32, kOwn).row(0, 0);
    parts_ = memory_.make(1, comm_.size(), part, DType::float32, kAll).row(0, 0);
  }
  own_ = {own, 1, max_rows, own_columns(), part};
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
  count_exchange(bytes);
  stats_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void VocabHead::count_exchange(std::size_t bytes) {
  stats_.exchanges++;
  stats_.bytes_sent += bytes * static_cast<std::size_t>(comm_.size() - 1);
}

// parts_ = `count` values of each rank's own_.
void VocabHead::gather_parts(std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  if (group_ == nullptr) return all_gather(own_.row(0, 0), parts_, bytes);
  group_->all_gather(own_.row(0, 0), parts_, count);
  count_exchange(bytes);
}

void VocabHead::start_step() {
  if (timer_ != nullptr) stats_.seconds += timer_->take_seconds(false);
}

Tensor VocabHead::logits(Tensor input) {
  const Tensor own = own_logits(input);
  if (!split_) return own;
  const Tensor all = all_.first_rows(input.rows);
  const std::int64_t part = input.rows * slice_;
  if (timer_ != nullptr) timer_->begin();
  gather_parts(part);
  backend_.join_columns(parts_, part, slice_, all);
  if (timer_ != nullptr) timer_->end();
  return all;
}

void VocabHead::count_replay(std::int64_t rows) {
  if (split_) count_exchange(static_cast<std::size_t>(rows * slice_) * sizeof(float));
}

void VocabHead::settle() {
  if (timer_ != nullptr) stats_.seconds += timer_->take_seconds(true);
}

void VocabHead::greedy(Tensor input, std::span<Sampled> out) {
  const std::span<const SampleParams> params = std::span(greedy_params_).first(out.size());
  if (!split_ || group_ != nullptr) return backend_.sample(logits(input), params, out);
  const Tensor own = own_logits(input);
  backend_.sample(own, params, out);
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
