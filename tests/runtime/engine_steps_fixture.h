// The engine on the scalar reference, whose rows are independent: with tokens taken at once, or a step late.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "engine_fixture.h"
#include "kernels/base/error.h"
#include "kernels/cpu/reference_backend.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt::testing {

// What a model whose embedding has a NaN in the row of token `poison` gives.
inline void poison_rows(std::span<const std::int32_t> tokens, std::int32_t poison, Tensor x) {
  for (std::size_t r = 0; r < tokens.size(); ++r)
    if (tokens[r] == poison) x.row(0, static_cast<std::int64_t>(r))[3] = NAN;
}

// A backend on which tokens are known to the device a step before the host learns them.
class RunAheadBackend final : public ReferenceBackend {
 public:
  explicit RunAheadBackend(bool records, std::int32_t poison = -1)
      : traits_{.name = "run ahead", .records_steps = records, .steps_ahead = 1}, poison_(poison) {}
  const BackendTraits& traits() const override { return traits_; }
  bool run_recorded(std::int64_t key, const std::function<void()>& ops) override {
    recorded_rows_.push_back(key);
    return ReferenceBackend::run_recorded(key, ops);
  }
  void embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) override {
    std::vector<std::int32_t> known(tokens.begin(), tokens.end());
    for (std::int32_t& token : known)
      if (token < 0) {
        token = last_.at(static_cast<std::size_t>(token_of_sample(token))).token;
        ++placeholders_;
      }
    ReferenceBackend::embed(table, known, scale, x);
    poison_rows(known, poison_, x);
  }
  void queue_sample(Tensor logits, std::span<const SampleParams> params,
                    std::span<const std::int32_t> top_counts) override {
    last_.resize(params.size());
    sample(logits, params, last_);
    most_queued_ = std::max(most_queued_, ++queued_);
    ReferenceBackend::queue_sample(logits, params, top_counts);
  }
  void take_sampled(std::span<Sampled> out, std::span<TopLogprobs> top) override {
    PTRT_CHECK(queued_ > 0);
    --queued_;
    ReferenceBackend::take_sampled(out, top);
  }

  std::vector<std::int64_t> recorded_rows_;
  std::size_t most_queued_ = 0, placeholders_ = 0;
  bool drained() const { return queued_ == 0; }

 private:
  BackendTraits traits_;
  std::int32_t poison_;
  std::vector<Sampled> last_;
  std::size_t queued_ = 0;
};

class EngineSteps : public ::testing::Test {
 protected:
  EngineRunner make(std::unique_ptr<Backend> backend, std::int64_t pages) {
    TrackShard shard = random_shard(config_, 7, DType::float32, 0, config_.tracks, *backend);
    return {config_,
            std::move(backend),
            std::move(shard),
            tokenizer_.tokenizer.get(),
            {.max_batch = 5, .max_rows = 24, .kv_pages = pages}};
  }

  ModelConfig config_ = parse_config(kSmallBytesModel, "the test's configuration");
  TokenizerChoice tokenizer_ = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config_);
  std::vector<Request> requests_ = mixed_requests(36, 45, 40, 256);
};

}  // namespace ptrt::testing
