#include "launch/session/model_session.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "kernels/cpu/make_cpu_backend.h"
#include "kernels/cuda/plugin.h"
#include "launch/job/process.h"
#include "launch/session/instruction_set.h"
#include "runtime/comm/emulated_comm.h"
#include "runtime/comm/fault.h"

namespace ptrt {
namespace {

// Bytes of the head that a rank need not read each step: about as long as an exchange takes on one host.
constexpr std::int64_t kWorthSplitting = std::int64_t{4} << 20;
constexpr auto kEndOfJob = std::chrono::seconds(3);  // that a launcher may take to kill what ignores it

// Whether the matrices are stored as CPU ranks keep them; the head tells.
bool has_panels(const ModelFile& file) {
  for (const TensorSpec& spec : shared_tensors(file.config()))
    if (is_multiplied(spec.role)) return file.stat(spec).layout == WeightLayout::panels;
  return false;
}

}  // namespace

ModelSession::ModelSession(const ModelRunOptions& options, JobComm& job, const std::string& random_config)
    : options_(options), job_(job) {
  agree_on_instruction_set(job);
  all_or_none(job, [&] {
    if (random_config.empty()) {
      file_.emplace(options.model);
      config_ = file_->config();
      tokenizer_ = make_tokenizer(file_->tokenizer(), config_);
    } else {
      config_ = parse_config(read_text_file(random_config, "the configuration"), random_config);
      tokenizer_.why_none = "random weights have no tokenizer";
    }
    placement_ = place();
    mine_ = config_of_rank(config_, split());
    device_ = choose_device();
  });
  for (const std::string& other : job.all_gather(device_))
    if (other != device_) device_ = "cpu";
  bind_device();
  all_or_none(job, [&] { compute_ = choose_compute(), inner_ = choose_inner(); });
  choose_backend();
  plan_kv_pages();
}

Placement ModelSession::place() const {
  const PlacementOptions options{options_.replicas, options_.tensor_parallel};
  if (!options_.emulated) return make_placement(job_.size(), job_.rank(), config_.tracks, options);
  if (job_.size() > 1)
    throw_bad_input("--emulate-ranks: one process stands for all ranks, here are {}", job_.size());
  const Placement placement = make_placement(options_.emulated->ranks, 0, config_.tracks, options);
  if (placement.replicas > 1)
    throw_bad_input("--emulate-ranks {}: more than the {} ranks of one replica", placement.world_size,
                    placement.replica_ranks);
  return placement;
}

// Why this run cannot be on a GPU; empty when it can.
std::string ModelSession::cuda_obstacle() const {
  if (options_.compute == "float32" || options_.compute == "int8")
    return fmt::format("products take bfloat16 or float16 there, not --compute {}", options_.compute);
  if (options_.weights == "int8" || stored_type({WeightRole::matrix}) == DType::int8)
    return "it takes no int8 weights";
  if (config_.head_dim > kCudaMaxHeadDim || config_.tracks > kCudaMaxTracks)
    return fmt::format("it takes up to {} tracks and a head_dim of up to {}, the model has {} and {}",
                       kCudaMaxTracks, kCudaMaxHeadDim, config_.tracks, config_.head_dim);
  if (placement_.tensor_parallel > kCudaMaxTracks)
    return fmt::format("a track is shared by up to {} ranks there, not {}", kCudaMaxTracks,
                       placement_.tensor_parallel);
  if (options_.kv_dtype == "float32") return "keys and values have 16 bits there, not --kv-dtype float32";
  return cuda_missing();
}

// cpu or cuda; `auto` takes a GPU where there is one and the options go with it.
std::string ModelSession::choose_device() const {
  if (options_.backend == "cpu") return "cpu";
  const std::string obstacle = cuda_obstacle();
  if (obstacle.empty()) return "cuda";
  if (options_.backend == "cuda") throw_bad_input("--backend cuda: {}", obstacle);
  return "cpu";
}

// The GPU of this rank. Where ranks would have to share one, `auto` goes back to the CPU.
void ModelSession::bind_device() {
  if (device_ != "cuda") return;
  HostGpus mine{job_.rank(), {}};
  all_or_none(job_, [&] { mine.uuids = cuda_devices(); });
  std::vector<HostGpus> ranks;
  for (const std::string& text : job_.all_gather_on_host(to_text(mine)))
    ranks.push_back(parse_host_gpus(text));
  std::string obstacle;
  try {
    gpu_ = choose_gpu(ranks, static_cast<std::size_t>(job_.host_rank()), options_.share_gpu);
  } catch (const Error& error) {
    obstacle = error.what();
  }
  all_or_none(job_, [&] {
    if (!obstacle.empty() && options_.backend == "cuda") throw_bad_input("--backend cuda: {}", obstacle);
  });
  for (const std::string& other : job_.all_gather(obstacle))
    if (!other.empty()) device_ = "cpu", gpu_obstacle_ = other;
}

// How ranks on GPUs meet; the same on every rank. NCCL cannot have two ranks on one GPU.
void ModelSession::settle_fusion() {
  const std::string& asked = options_.fusion;
  std::string obstacle;
  if (device_ == "cuda" && placement_.replica_ranks > 1 && !options_.emulated) {
    if (gpu_.sharers > 1) obstacle = fmt::format("{} ranks share a GPU", gpu_.sharers);
    if (obstacle.empty()) obstacle = backend_->device_groups()->missing();
  }
  all_or_none(job_, [&] {
    if (device_ != "cuda" && asked != "auto")
      throw_bad_input("--fusion {} is for ranks on GPUs, this run is on the CPU", asked);
    if (!obstacle.empty() && (asked == "tree" || asked == "nccl"))
      throw_bad_input("--fusion {}: {}", asked, obstacle);
  });
  if (asked == "tree") fusion_ = DeviceFusion::tree;
  if (asked == "nccl") fusion_ = DeviceFusion::nccl;
  if (asked == "staged") fusion_ = DeviceFusion::staged;
  for (const std::string& other : job_.all_gather(obstacle))
    if (!other.empty()) fusion_ = DeviceFusion::staged;
}

// What `auto` means for this rank's weights on the instruction set that was agreed on. Matrices of several
// types take float32: none of them is to be rounded without being asked for.
Compute ModelSession::choose_compute() const {
  if (options_.compute == "float32") return Compute::float32;
  if (options_.compute == "int8") return Compute::int8;
  if (options_.compute == "bfloat16") return Compute::bfloat16;
  const std::optional<DType> type =
      options_.weights == "int8" ? DType::int8 : stored_type({WeightRole::matrix});
  if (type == DType::int8 && cpu_computes(Compute::int8)) return Compute::int8;
  if (type == DType::bfloat16 && cpu_computes(Compute::bfloat16)) return Compute::bfloat16;
  return Compute::float32;
}

// Of a GPU: what is asked to be bfloat16 makes everything so.
DType ModelSession::choose_inner() const {
  if (options_.compute == "bfloat16" || options_.kv_dtype == "bfloat16") return DType::bfloat16;
  return inner_type_on_device(stored_type({WeightRole::matrix, WeightRole::tied_embedding}));
}

std::optional<DType> ModelSession::stored_type(std::initializer_list<WeightRole> roles) const {
  if (!file_) return DType::bfloat16;  // random weights
  std::optional<DType> type;
  bool same = true;
  const auto look_at = [&](const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& spec : tensors) {
      if (std::ranges::find(roles, spec.role) == roles.end()) continue;
      const DType found = file_->stat(spec).dtype;
      same &= type.value_or(found) == found;
      type = found;
    }
  };
  look_at(shared_tensors(config_));
  for (std::int64_t t = 0; t < placement_.tracks; t++)
    look_at(track_tensors(config_, placement_.first_track + t));
  return same ? type : std::nullopt;
}

// Ranks that would choose differently all take float32, on GPUs bfloat16.
void ModelSession::choose_backend() {
  const std::string mine = compute();
  for (const std::string& other : job_.all_gather(mine))
    if (other != mine) compute_ = Compute::float32, inner_ = DType::bfloat16;
  const bool exact =
      options_.kv_dtype == "auto" ? compute_ == Compute::float32 : options_.kv_dtype == "float32";
  kv_dtype_ = exact ? DType::float32 : DType::bfloat16;
  if (device_ == "cuda") kv_dtype_ = inner_;
  share_ = take_core_share(job_, options_.threads, options_.bind == "auto");
  all_or_none(job_, [&] {
    if (device_ == "cuda") {
      backend_ = make_cuda_backend(
          {.device = gpu_.device, .graphs = options_.cuda_graphs == "on", .activation_dtype = inner_});
      return;
    }
    backend_ = make_cpu_backend({.threads = share_.threads,
                                 .worker_cores = share_.worker_cores(),
                                 .oversubscribed = share_.oversubscribed,
                                 .compute = compute_,
                                 .quantize_int8 = options_.weights == "int8"});
  });
  settle_fusion();
}

DeviceNeeds ModelSession::needs_on_device() const {
  DeviceTypes types{.inner = inner_};  // of random weights
  for (const TensorSpec& spec : shared_tensors(config_))
    if (file_ && spec.role == WeightRole::embedding) types.embedding = file_->stat(spec).dtype;
  return device_needs(mine_, placement_.first_track, placement_.tracks, types, options_.max_batch,
                      std::max(options_.max_step_tokens, options_.max_batch));
}

// What the KV cache may take: what was asked for, else a quarter of this rank's share of the host, or what a
// device has left. Plans the device's memory.
std::int64_t ModelSession::kv_budget() {
  if (const auto free = backend_->free_bytes()) {
    device_plan_ = plan_device_memory(needs_on_device(), static_cast<std::int64_t>(*free) / gpu_.sharers,
                                      options_.gpu_memory_fraction, options_.kv_cache_bytes);
    return device_plan_->kv;
  }
  return options_.kv_cache_bytes.value_or(host_memory_share(job_) / 4);
}

// As many pages as the batch can use, within kv_budget(). The smallest of all ranks counts, so that
// every rank schedules alike.
void ModelSession::plan_kv_pages() {
  all_or_none(job_, [&] {
    const std::int64_t page_bytes = kv_page_bytes(mine_, placement_.tracks, kv_dtype_);
    const std::int64_t useful = options_.max_batch * pages_for(config_.max_context);
    const std::int64_t budget = kv_budget();
    kv_pages_ = std::min(useful, budget / page_bytes);
    if (kv_pages_ < 1)
      throw_bad_input("--kv-cache-bytes {}: a page of {} tokens takes {} bytes on this rank", budget,
                      kPageTokens, page_bytes);
  });
  for (const std::string& pages : job_.all_gather(std::to_string(kv_pages_)))
    kv_pages_ = std::min<std::int64_t>(kv_pages_, std::stoll(pages));
}

// A split head saves each rank most of the matrix a step and costs it one more exchange.
HeadRows ModelSession::choose_head_rows() const {
  const HeadRows rows = head_rows_of(config_.vocab_size, placement_.replica_ranks, placement_.replica_rank);
  if (rows.count == 0 || device_ != "cpu" || options_.vocab_head == "whole") return {};
  if (file_ && !can_split_head(*file_)) return {};
  const std::int64_t saved =
      (config_.vocab_size - rows.count) * config_.hidden_size * 2;  // about two bytes each
  return options_.vocab_head == "split" || saved >= kWorthSplitting ? rows : HeadRows{};
}

// One message for the whole job, and an end to it on every rank.
std::unique_ptr<Watchdog> ModelSession::make_watchdog() {
  const auto end_job = [this](const std::string& what, const std::function<void()>& abort_groups) {
    constexpr auto kAbortLimit = std::chrono::seconds(2);  // an abort that hangs must not keep the job
    // A launcher that ends the job sends a signal first; then another rank has told.
    if (stop_signal_received()) std::this_thread::sleep_for(kEndOfJob);
    std::fputs(error_line(&job_, what).c_str(), stderr);
    std::fflush(stderr);
    std::thread(abort_groups).detach();
    std::this_thread::sleep_for(device_ == "cuda" ? kAbortLimit : std::chrono::seconds(0));
    job_.abort(static_cast<int>(ExitCode::failure));
  };
  return std::make_unique<Watchdog>(
      WatchdogOptions{.step_timeout_s = options_.step_timeout_s, .rank = job_.rank()}, end_job);
}

std::unique_ptr<TrackComm> ModelSession::join_group(std::int64_t colour, std::int64_t size,
                                                    const char* others) {
  const Waiting waiting = share_.oversubscribed ? Waiting::yielding : Waiting::spinning;
  auto comm = options_.emulated ? make_emulated_comm(static_cast<int>(size), options_.emulated->link)
                                : job_.split(static_cast<int>(colour), waiting);
  return make_watched_comm(std::move(comm), *watchdog_, others);
}

EngineComms ModelSession::join_groups() {
  const Placement& p = placement_;
  watchdog_ = make_watchdog();
  AllReduceOptions all_reduce{.device_fusion = fusion_, .watchdog = &*watchdog_};
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
  const bool watched = placement_.replica_ranks > 1 || device_ == "cuda";
  if (watched) watchdog_->start();
  const bool done = engine_->run(task, requests, order, hooks);
  watchdog_->stop();
  return done;
}

void ModelSession::load(std::uint64_t random_seed) {
  const auto start = std::chrono::steady_clock::now();
  all_or_none(job_, [&] {
    fault_point("load");
    const HeadRows head = choose_head_rows();
    shard_ = file_ ? load_shard(*file_, placement_.first_track, placement_.tracks, *backend_, head, split())
                   : random_shard(config_, random_seed, DType::bfloat16, placement_.first_track,
                                  placement_.tracks, *backend_, head, split());
  });
  const EngineComms comms = join_groups();
  all_or_none(job_, [&] {
    EngineOptions engine;
    engine.max_batch = options_.max_batch;
    engine.max_rows = std::max(options_.max_step_tokens, options_.max_batch);
    engine.kv_pages = kv_pages_;
    engine.kv_dtype = kv_dtype_;
    engine_ = std::make_unique<Engine>(config_, mine_, shard_, *backend_, comms, placement_,
                                       tokenizer_.tokenizer.get(), engine);
  });
  load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string ModelSession::digest() {
  std::string mine;
  for (const std::uint64_t track : shard_.track_digests) mine += fmt::format("{:016x} ", track);
  const auto ranks = job_.all_gather(mine);
  std::string all = fmt::format(
      "{}\n{}\n{} {} {} {}\n{:016x}\n", "1",
      to_json(config_) + options_.weights + (split().ranks > 1 ? fmt::format(" over {}", split().ranks) : ""),
      backend_->traits().name + (device_ == "cuda" ? " " + options_.fusion : ""), compute(),
      to_string(kv_dtype_), backend_->instruction_set(), shard_.shared_digest);
  for (std::int64_t r = 0; r < placement_.replica_ranks; r++) all += ranks[static_cast<std::size_t>(r)];
  if (file_) {
    const TokenizerBlob blob = file_->tokenizer();
    all += fmt::format("{} {:016x}", blob.kind, XXH3_64bits(blob.model.data(), blob.model.size()));
  }
  return fmt::format("{:016x}", XXH3_64bits(all.data(), all.size()));
}

std::string ModelSession::describe() const {
  const Placement& p = placement_;
  constexpr double kMiB = 1024.0 * 1024.0;
  std::string devices;
  if (device_ == "cuda" && p.replica_ranks > 1) devices = " | fusion over " + engine_->describe_syncs();
  if (!gpu_obstacle_.empty()) devices = " | not on GPUs: " + gpu_obstacle_;
  if (device_plan_)
    devices += fmt::format("\n{}; matrices, activations, keys and values are {}", device_plan_->describe(),
                           to_string(inner_));
  const std::string line = fmt::format(
      "{}: {} tracks x {} layers, {} sync points | {} rank{}, {} track{} a rank{}, {} replica{} | {} x {} "
      "thread{} ({}, {}, {} products) | "
      "a rank holds {:.1f} MiB weights{}, {:.1f} MiB KV ({}) for {} tokens",
      config_.name.empty() ? "model" : config_.name, config_.tracks, config_.layers,
      config_.tracks > 1 ? config_.blocks() : 0, p.world_size, p.world_size > 1 ? "s" : "", p.tracks,
      p.tracks > 1 ? "s" : "", p.tensor_parallel > 1 ? fmt::format(" (1/{} of each)", p.tensor_parallel) : "",
      p.replicas, p.replicas > 1 ? "s" : "", backend_->traits().name, threads(), threads() > 1 ? "s" : "",
      share_.describe(), backend_->instruction_set(), compute(),
      static_cast<double>(backend_->weight_bytes()) / kMiB, mapped_part(),
      static_cast<double>(engine_->kv_bytes()) / kMiB, to_string(kv_dtype_), kv_tokens());
  return emulation() + line + devices;
}

// Of the weights, where the file has some in panels: its head, or any that are mapped.
std::string ModelSession::mapped_part() const {
  if (!file_ || device_ == "cuda" || (backend_->mapped_bytes() == 0 && !has_panels(*file_))) return "";
  return fmt::format(" ({:.0f} % mapped)", 100.0 * static_cast<double>(backend_->mapped_bytes()) /
                                               static_cast<double>(backend_->weight_bytes()));
}

std::string ModelSession::emulation() const {
  if (!options_.emulated) return "";
  const auto& [ranks, link] = *options_.emulated;
  return fmt::format(
      "EMULATED: rank 0 of {}; an exchange takes {:g} us and its bytes at {:g} GB/s; results mean nothing\n",
      ranks, link.latency_us, link.gb_per_s);
}

}  // namespace ptrt
