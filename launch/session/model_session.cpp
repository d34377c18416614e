#include "launch/session/model_session.h"

#include <chrono>
#include <cstdlib>
#include <optional>
#include <utility>

#include "kernels/base/error.h"
#include "launch/job/process.h"
#include "launch/job/program_version.h"
#include "launch/observe/job_log.h"
#include "launch/session/agreement.h"
#include "launch/session/instruction_set.h"
#include "launch/session/model_identity.h"
#include "runtime/comm/emulated_comm.h"
#include "runtime/comm/watched_comm.h"
#include "runtime/job/fault.h"
#include "runtime/requests/byte_string.h"
#include "runtime/speculate/ngram_drafter.h"
#include "runtime/trace/traced_backend.h"

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
    if (!plan().weights.leads) return;
    shard_ = model_.file ? load_shard(*model_.file, placement.first_track, placement.tracks, backend,
                                      plan().head_rows, plan().split())
                         : random_shard(config(), random_seed, DType::bfloat16, placement.first_track,
                                        placement.tracks, backend, plan().head_rows, plan().split());
  });
  if (run_.plan.shares_weights) adopt_weights();
  // Of ranks that are emulated nothing is read.
  if (model_.file && !options_.emulated)
    content_ = agree_on_content(job_, *model_.file, placement, shard_.contents);
  start_observing();
  const EngineComms comms = join_groups();
  try {
    make_engine(comms);
  } catch (...) {
    abandon_device();  // the first collectives are part of it
    throw;
  }
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void ModelSession::make_engine(const EngineComms& comms) {
  all_or_none(job_, [&] {
    EngineOptions engine;
    engine.max_batch = options_.max_batch;
    engine.max_rows = options_.max_step_rows();
    engine.prefix_cache = options_.prefix_cache;
    engine.kv_pages = plan().kv_pages;
    engine.kv_dtype = plan().kv_dtype;
    if (options_.drafts > 0) engine.drafters = make_ngram_drafters(options_.drafts);
    Backend& used = traced_backend_ ? *traced_backend_ : *run_.backend;
    engine_ = std::make_unique<Engine>(config(), plan().rank_config, shard_, used, comms, plan().placement,
                                       tokenizer().tokenizer.get(), engine);
  });
}

void ModelSession::abandon_device() noexcept {
  if (job_.size() == 1 || plan().device != Device::cuda) return;
  static_cast<void>(engine_.release());
  static_cast<void>(run_.backend.release());
  [[maybe_unused]] static TrackShard* kept = nullptr;
  kept = new TrackShard(std::move(shard_));
  skip_exit_handlers();
}

// The weights that another rank of this host has loaded.
void ModelSession::adopt_weights() {
  const WeightGroup& group = plan().weights;
  std::string mine;
  if (group.leads && group.ranks > 1) {
    append_bytes(mine, plan().weight_memory->description());
    append_bytes(mine, shard_.contents);
  }
  const std::string all = take_from_leader(job_, group, mine);
  all_or_none(job_, [&] {
    if (group.leads) return;
    std::string memory;
    std::vector<DatasetContent> contents;
    ByteReader reader(all);
    reader.take(memory);
    reader.take(contents);
    plan().weight_memory->adopt(memory);
    shard_ = adopt_shard(*model_.file, plan().placement.first_track, plan().placement.tracks, *run_.backend,
                         plan().head_rows, plan().split(), std::move(contents));
  });
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
  if (trace_) all_reduce.tracer = &trace_->tracer();
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
  return run_watched(hooks,
                     [&](const Engine::Hooks& all) { return engine_->run(task, requests, order, all); });
}

bool ModelSession::run(Task task, RequestSource* source, const Engine::Hooks& hooks) {
  return run_watched(hooks, [&](const Engine::Hooks& all) { return engine_->run(task, source, all); });
}

bool ModelSession::run_watched(const Engine::Hooks& hooks,
                               const std::function<bool(const Engine::Hooks&)>& run) {
  Engine::Hooks all = hooks;
  if (metrics_) all.report = [this](const RunCounters& counters) { metrics_->set_run(counters); };
  // A rank alone on its CPU ends when it is told to; there is no other that could wait for it.
  const bool watched = job_.size() > 1 || plan().placement.replica_ranks > 1 || plan().device == Device::cuda;
  if (watched) watchdog_->start();
  bool done = false;
  try {
    done = run(all);
  } catch (...) {
    // Sums may be in flight: MPI reads and writes the engine's memory until the process ends, which is now.
    if (job_.size() > 1) static_cast<void>(engine_.release());
    abandon_device();
    throw;
  }
  watchdog_->stop();
  if (metrics_) metrics_->add_run(engine_->counters());
  enter_phase(job_, "after the last step");
  return done;
}

void ModelSession::start_observing() {
  if (!options_.trace.empty()) {
    trace_ = std::make_unique<TraceFile>(job_, options_.trace);
    traced_backend_ = make_traced_backend(*run_.backend, trace_->tracer());
  }
  if (options_.metrics.empty() || job_.rank() != 0) return;
  const Placement& placement = plan().placement;
  const char* slurm_job = std::getenv("SLURM_JOB_ID");
  metrics_ = std::make_unique<MetricsFile>(
      options_.metrics,
      MetricsInfo{
          .labels = {{"version", program_version()},
                     {"model", config().name.empty() ? options_.model : config().name},
                     {"backend", backend().traits().name},
                     {"instruction_set", backend().instruction_set()},
                     {"slurm_job", slurm_job == nullptr ? "" : slurm_job}},
          .ranks = placement.world_size,
          .replicas = placement.replicas,
          .tracks = config().tracks,
          .start_time_s =
              std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count()});
}

void ModelSession::note_requests(std::int64_t total, std::int64_t done) {
  if (metrics_) metrics_->set_requests(total, done);
}

void ModelSession::note_done(std::int64_t requests) {
  if (metrics_) metrics_->add_done(requests);
}

void ModelSession::write_observations(const RunSummary* summary) {
  if (metrics_ && summary != nullptr) metrics_->set_summary(*summary);
  metrics_.reset();  // writes them a last time
  if (!trace_) return;
  const Placement& p = plan().placement;
  const std::string tracks =
      p.tracks == 1 ? fmt::format("track {}", p.first_track)
                    : fmt::format("tracks {} to {}", p.first_track, p.first_track + p.tracks - 1);
  trace_->write(fmt::format("rank {} ({}), replica {}, {}", job_.rank(), job_.host(), p.replica, tracks));
}

std::vector<NamedFile> ModelSession::observed_files() const {
  std::vector<NamedFile> files = {{"--trace", options_.trace}, {"--metrics", options_.metrics}};
  if (!options_.log_file.empty())
    files.push_back({"--log-file", name_for_rank(options_.log_file, job_.rank(), job_.host())});
  return files;
}

void ModelSession::check_observed() const {
  for (const NamedFile& file : observed_files())
    if (!file.path.empty()) check_writable(file.path);
}

std::string ModelSession::digest() const {
  return model_digest(options_, model_, plan(), backend(), content_);
}

std::optional<std::string> ModelSession::digest_before_load() const {
  if (!recorded_) return std::nullopt;
  return model_digest(options_, model_, plan(), backend(), *recorded_);
}

}  // namespace ptrt
