#include "launch/session/model_session.h"

#include <chrono>
#include <optional>
#include <utility>

#include "kernels/base/error.h"
#include "launch/job/process.h"
#include "launch/session/agreement.h"
#include "launch/session/instruction_set.h"
#include "launch/session/model_identity.h"
#include "runtime/comm/emulated_comm.h"
#include "runtime/comm/watched_comm.h"
#include "runtime/job/fault.h"

namespace ptrt {
namespace {

ModelSource open_on_every_rank(JobComm& job, const ModelRunOptions& options, const ModelMetadata* known,
                               const std::string& random_config) {
  agree_on_instruction_set(job);
  std::optional<ModelSource> model;
  all_or_none(job,
              [&] { model.emplace(open_model(options.model, options.trust_links, known, random_config)); });
  Facts facts = facts_of(model->config);
  facts["tokenizer"] = model->tokenizer_text;
  agree_on(job, "the model", facts);
  return std::move(*model);
}

}  // namespace

ModelSession::ModelSession(const ModelRunOptions& options, JobComm& job, const ModelMetadata* known,
                           const std::string& random_config)
    : options_(options),
      job_(job),
      model_(open_on_every_rank(job, options, known, random_config)),
      run_(agree_on_run(job, options, model_)),
      recorded_(model_.file ? agree_on_recorded(job, *model_.file, plan().placement) : std::nullopt) {}

void ModelSession::load(std::uint64_t random_seed) {
  const auto start = std::chrono::steady_clock::now();
  const Placement& placement = plan().placement;
  Backend& backend = *run_.backend;
  enter_phase(job_, "loading");
  all_or_none(job_, [&] {
    fault_point("load");
    shard_ = model_.file ? load_shard(*model_.file, placement.first_track, placement.tracks, backend,
                                      plan().head_rows, plan().split())
                         : random_shard(config(), random_seed, DType::bfloat16, placement.first_track,
                                        placement.tracks, backend, plan().head_rows, plan().split());
  });
  // Of ranks that are emulated nothing is read.
  if (model_.file && !options_.emulated)
    content_ = agree_on_content(job_, *model_.file, placement, shard_.contents);
  const EngineComms comms = join_groups();
  all_or_none(job_, [&] {
    EngineOptions engine;
    engine.max_batch = options_.max_batch;
    engine.max_rows = options_.max_step_rows();
    engine.kv_pages = plan().kv_pages;
    engine.kv_dtype = plan().kv_dtype;
    engine_ = std::make_unique<Engine>(config(), plan().rank_config, shard_, backend, comms, placement,
                                       tokenizer().tokenizer.get(), engine);
  });
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::unique_ptr<TrackComm> ModelSession::join_group(std::int64_t colour, std::int64_t size,
                                                    const char* others) {
  const Waiting waiting = plan().cores.oversubscribed ? Waiting::yielding : Waiting::spinning;
  auto comm = options_.emulated ? make_emulated_comm(static_cast<int>(size), options_.emulated->link)
                                : job_.split(static_cast<int>(colour), waiting);
  return make_watched_comm(std::move(comm), *watchdog_, others);
}

EngineComms ModelSession::join_groups() {
  const Placement& p = plan().placement;
  watchdog_ = job_.watchdog();
  if (watchdog_ == nullptr) {
    own_watchdog_ = make_watchdog(options_.step_timeout_s);
    watchdog_ = &*own_watchdog_;
  }
  AllReduceOptions all_reduce{.device_fusion = plan().fusion, .watchdog = watchdog_};
  if (options_.emulated) all_reduce.emulated = options_.emulated->link;
  comm_ = join_group(p.replica, p.replica_ranks, "the other ranks of the replica");
  if (p.tensor_parallel == 1) return {*comm_, *comm_, nullptr, all_reduce};
  fusion_comm_ = join_group(p.replica * p.tensor_parallel + p.tensor_rank, p.fusion_ranks(),
                            "the ranks with the other tracks");
  track_comm_ = join_group(p.replica * p.fusion_ranks() + p.fusion_rank(), p.tensor_parallel,
                           "the ranks that share a track");
  return {*comm_, *fusion_comm_, &*track_comm_, all_reduce};
}

bool ModelSession::run(Task task, std::span<const Request> requests, std::span<const std::int64_t> order,
                       const Engine::Hooks& hooks) {
  return run_watched([&] { return engine_->run(task, requests, order, hooks); });
}

bool ModelSession::run(Task task, RequestSource* source, const Engine::Hooks& hooks) {
  return run_watched([&] { return engine_->run(task, source, hooks); });
}

bool ModelSession::run_watched(const std::function<bool()>& run) {
  // A rank alone on its CPU ends when it is told to; there is no other that could wait for it.
  const bool watched = job_.size() > 1 || plan().placement.replica_ranks > 1 || plan().device == Device::cuda;
  if (watched) watchdog_->start();
  const bool done = run();
  watchdog_->stop();
  enter_phase(job_, "after the last step");
  return done;
}

std::string ModelSession::digest() const {
  return model_digest(options_, model_, plan(), backend(), content_);
}

std::optional<std::string> ModelSession::digest_before_load() const {
  if (!recorded_) return std::nullopt;
  return model_digest(options_, model_, plan(), backend(), *recorded_);
}

}  // namespace ptrt
