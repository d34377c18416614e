// The vocabulary head: logits of rows, by this rank alone or with every rank of the replica
// multiplying its own rows of the matrix. A split head reads 1/N of the matrix a step and costs one
// exchange, which is counted separately from the fusions. A logit is one rank's whole sum, so its
// bits do not depend on the split, as long as the product of a row's bits does not depend on the number of outputs (on GPUs
// that is so for up to 16 rows: docs/CUDA.md). On devices the parts of all ranks are gathered there, and a step with a split
// head can be recorded.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "model_io/shard/track_shard.h"
#include "runtime/comm/track_comm.h"
#include "runtime/model/tensor_memory.h"

namespace ptrt {

// The rows of the head that rank `rank` of `ranks` multiplies; none where the vocabulary is too
// small for every rank to have some.
HeadRows head_rows_of(std::int64_t vocab_size, std::int64_t ranks, std::int64_t rank);

struct HeadStats {
  std::uint64_t exchanges = 0;
  std::uint64_t bytes_sent = 0;  // by this rank
  double seconds = 0;            // in exchanges: waiting and moving
};

class VocabHead {
 public:
  // max_rows bounds the rows of a call. The head is split where the shard has a part of it; on devices their `group` then
  // has the ranks of `comm`, in that order, and outlives this object. Null: the ranks meet on the hosts.
  VocabHead(const ModelConfig& config, const TrackShard& shard, Backend& backend, TrackComm& comm,
            DeviceCollectives* group, std::int64_t max_rows);

  // Before the ops of a step: takes the times of exchanges that have passed, which a step that is being recorded must not ask for.
  void start_step();
  // Logits [1, rows, vocab] of normed rows [1, rows, d]; valid until the next call.
  Tensor logits(Tensor input);
  // The logits of the last logits(), for `rows` rows.
  Tensor logits_of_last_call(std::int64_t rows) const { return (split_ ? all_ : own_).first_rows(rows); }
  // out[r].token = the row's likeliest token, ties to the lower id; Sampled::not_finite() on every
  // rank where a logit of the row is not finite. A head that is split among hosts exchanges 8 bytes a row.
  void greedy(Tensor input, std::span<Sampled> out);

  // Whether logits() only queues work on the device, so that a step which is recorded once may contain it.
  bool recordable() const { return !split_ || group_ != nullptr; }
  // A replay ran logits() of so many rows.
  void count_replay(std::int64_t rows);
  // At the end of a run: makes stats() include the time of all exchanges. May wait for the device.
  void settle();

  const HeadStats& stats() const { return stats_; }
  void reset_stats() { stats_ = {}; }

 private:
  struct Candidate {
    float logit;  // NaN: this rank's part of the row is not finite
    std::int32_t token;
  };
  Tensor own_logits(Tensor input);
  std::int64_t own_columns() const { return matrix_[0].out; }
  void make_parts(std::int64_t max_rows);
  void gather_parts(std::int64_t count);
  void all_gather(const void* send, void* recv, std::size_t bytes);
  void count_exchange(std::size_t bytes);

  Backend& backend_;
  TrackComm& comm_;
  DeviceCollectives* group_;
  TrackWeights matrix_;  // one entry: this rank's rows
  bool split_;
  std::int64_t vocab_size_, first_, slice_;  // slice: rows of every rank but the last, which may have fewer
  TensorMemory memory_;
  Tensor own_;              // [1, max_rows, this rank's rows], in memory for max_rows · slice_: what is sent
  Tensor all_;              // [1, max_rows, vocab]
  float* parts_ = nullptr;  // received: [ranks][max_rows · slice_]
  std::unique_ptr<DeviceTimer> timer_;
  std::vector<SampleParams> greedy_params_;
  std::vector<Candidate> own_best_, all_best_;
  HeadStats stats_;
};

}  // namespace ptrt
