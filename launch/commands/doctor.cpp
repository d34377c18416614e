// `ptrt doctor`: looks at a launch from every rank, and says what a job that is started like this would meet.
#include <fmt/format.h>

#include "kernels/base/error.h"
#include "kernels/base/output_file.h"
#include "launch/commands/commands.h"
#include "launch/doctor/doctor_table.h"
#include "launch/job/process.h"
#include "launch/job/standard_streams.h"
#include "launch/session/model_session.h"
#include "runtime/job/placement.h"

namespace ptrt {
namespace {

class Doctor {
 public:
  Doctor(const DoctorOptions& options, JobComm& job, ModelProbe* probe)
      : options_(options), job_(job), probe_(probe) {}

  void run() {
    remove_temporaries_on_signals();
    enter_phase(job_, "collecting what the ranks know");
    collect();
    enter_phase(job_, "measuring the exchange");
    launch_.measured.output = test_output(job_, options_.output);
    if (can_exchange(launch_.ranks)) test_exchange(job_, oversubscribed(), launch_.measured);
    launch_.device = options_.run.device;
    launch_.share_gpu = options_.run.share_gpu;
    launch_.replica_ranks = replica_ranks();
    std::vector<Finding> findings = judge(launch_);  // rank 0 knows all, and decides
    // What is wrong already would only be met again.
    const bool sound = findings.empty() || !findings.front().fails;
    const bool tries = !job_.broadcast(sound && !options_.run.model.empty() ? "yes" : "").empty();
    if (tries) try_model(findings);
    enter_phase(job_, "printing the verdict");
    all_or_none(job_, [&] {
      if (job_.rank() != 0) return;
      print_out("{}\n{}", doctor_table(launch_, trial_), doctor_verdict(findings, job_.size()));
      flush_output();
      if (!findings.empty() && findings.front().fails)
        throw_failure("a job that is started like this would fail");
    });
  }

 private:
  void collect() {
    LaunchFacts mine = collect_facts(job_, take_core_share(job_, options_.run.threads, false));
    if (probe_ != nullptr) try {
        known_ = probe_->finish();
        const ModelFile file(options_.run.model, options_.run.trust_links, &*known_);
        const ModelConfig& config = file.config();
        tracks_ = config.tracks;
        mine.model = fmt::format("{}: {} tracks x {} layers, {} sync points", options_.run.model,
                                 config.tracks, config.layers, config.tracks > 1 ? config.blocks() : 0);
      } catch (...) {
        mine.model_error = current_error().what();
      }
    for (const std::string& text : job_.all_gather(to_text(mine))) launch_.ranks.push_back(parse_facts(text));
    tell_hosts_apart();
  }

  // By whom they share memory with, as a job does; all ranks take part, so not where one runs another program.
  void tell_hosts_apart() {
    for (const LaunchFacts& facts : launch_.ranks)
      if (facts.program != launch_.ranks.front().program) return;
    const std::vector<std::string> on_host = job_.all_gather_on_host(std::to_string(job_.rank()));
    const std::vector<std::string> firsts = job_.all_gather(on_host.front());
    for (std::size_t r = 0; r < firsts.size(); r++) launch_.ranks[r].host_first = std::stoi(firsts[r]);
  }

  // That of a job with these options, as far as they say; of all ranks where it depends on a model, and there is none.
  std::int64_t replica_ranks() const {
    const std::int64_t ranks = job_.size(), replicas = options_.run.replicas;
    try {
      if (tracks_ > 0)
        return make_placement(ranks, job_.rank(), tracks_, {replicas, options_.run.tensor_parallel})
            .replica_ranks;
    } catch (const Error&) {  // the job's own refusal comes later
    }
    return replicas > 0 && ranks % replicas == 0 ? ranks / replicas : ranks;
  }

  bool oversubscribed() const {
    for (const LaunchFacts& facts : launch_.ranks)
      if (facts.oversubscribed) return true;
    return false;
  }

  // Plans the job as `generate` does, up to the point where it would load weights.
  void try_model(std::vector<Finding>& findings) {
    enter_phase(job_, "planning a job");
    std::string error;
    try {
      const ModelSession session(options_.run, job_, known_ ? &*known_ : nullptr);
      const RunPlan& plan = session.plan();
      const Placement& p = plan.placement;
      trial_ = fmt::format(
          "{} track{} a rank{}, {} replica{}, {} products on the {}; {}; a KV cache of {} tokens{}", p.tracks,
          p.tracks > 1 ? "s" : "",
          p.tensor_parallel > 1 ? fmt::format(" (1/{} of each)", p.tensor_parallel) : "", p.replicas,
          p.replicas > 1 ? "s" : "", plan.product_type(), plan.device == Device::cuda ? "GPU" : "CPU",
          plan.cores.describe(), session.kv_tokens(),
          plan.kv_limit.empty() ? "" : fmt::format(", limited by {}", plan.kv_limit));
    } catch (const OtherRankFailed&) {
    } catch (const AgreedError& agreed) {
      error = agreed.what();
    }
    if (error = first_nonempty(job_, error); !error.empty())
      findings.insert(findings.begin(), refusal(error));
  }

  const DoctorOptions& options_;
  JobComm& job_;
  ModelProbe* probe_;  // null without a model
  std::optional<ModelMetadata> known_;
  std::int64_t tracks_ = 0;  // of the model; 0: none could be read
  Launch launch_;
  std::string trial_;
};

}  // namespace

void run_doctor(const DoctorOptions& options, JobComm& job, ModelProbe* probe) {
  Doctor(options, job, probe).run();
}

}  // namespace ptrt
