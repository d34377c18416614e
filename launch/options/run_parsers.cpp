// Options of the commands that run a model, and those of generate, score and doctor.
#include <chrono>
#include <cstdio>

#include "launch/options/parsers.h"
#include "runtime/job/shard.h"

namespace ptrt {
namespace {

const char* const kRequestsHelp =
    "Files of requests, which count as one; - is standard input, .gz and .zst are decompressed.\n"
    "One JSON object a line: {\"id\", \"prompt\" or \"tokens\", \"max_tokens\", \"temperature\", \"top_k\",\n"
    "\"top_p\", \"seed\", \"stop\", \"logprobs\"}, or \"messages\" for a chat, or an OpenAI batch line\n"
    "(custom_id, method, url, body)";

const char* const kScoreRequestsHelp =
    "Files of requests, which count as one; - is standard input, .gz and .zst are decompressed.\n"
    "One JSON object a line: {\"id\", \"prompt\" or \"tokens\"} is scored whole; {\"id\", \"context\",\n"
    "\"continuation\"}, both text or both token ids, from the continuation on; or an OpenAI batch line";

const char* const kBatchExamples = R"(Examples:
  echo '{"id": "a", "prompt": "What is 23 + 45?\n", "max_tokens": 16}' > requests.jsonl
  ptrt generate model.h5 requests.jsonl -o results.jsonl
  mpirun -n 8 ptrt generate model.h5 requests.jsonl -o results.jsonl      (one track a rank, if T = 8)
  mpirun -n 8 ptrt generate model.h5 requests.jsonl -o results.jsonl --replicas 2   (four ranks serve each replica)
  ptrt generate model.h5 requests.jsonl -o results.jsonl --resume         (continues where a run ended)
  ptrt generate model.h5 requests.jsonl -o results-0.jsonl --shard 0/4    (one of four jobs; then `ptrt merge`)
  some-program | ptrt generate model.h5 - -o - | another-program          (as lines come; no journal)

The results file appears when it is complete. Until then results.jsonl.partial holds the finished results.
On SIGTERM, SIGINT or SIGUSR1 the run ends after the current step with exit status 75; --resume continues.)";

const char* const kScoreExamples = R"(Examples:
  echo '{"context": "What is 23 + 45?\n", "continuation": "68"}' > texts.jsonl
  ptrt score model.h5 texts.jsonl -o scores.jsonl
  mpirun -n 8 ptrt score model.h5 texts.jsonl -o scores.jsonl --resume      (continues where a run ended)
  ptrt score model.h5 --text book.txt --window 1024 --stride 512            (perplexity, to standard output)

Results of requests appear when they are complete, as those of `ptrt generate`.)";

void add_rank_options(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, "Ranks");
  command
      .add_option("--replicas", run.replicas,
                  "Replicas that share the requests (default: ranks / (tracks x --tensor-parallel))")
      ->transform(in_range(1, 1 << 20));
  command
      .add_option(
          "--tensor-parallel", run.tensor_parallel,
          "Ranks that share each track: they divide its heads and FFN columns, and add up twice a layer")
      ->transform(in_range(1, 1 << 20))
      ->capture_default_str();
  add_choice<std::optional<VocabHeadMode>>(
      command, "--vocab-head", run.vocab_head,
      {{"auto", {}}, {"whole", VocabHeadMode::whole}, {"split", VocabHeadMode::split}},
      "whole: every rank multiplies the whole vocabulary head; split: each rank multiplies its share of the\n"
      "rows, with one more exchange a step; auto: split where it saves a rank several MiB a step");
  command.add_flag("--allow-singleton", run.allow_singleton,
                   "Run alone although a launcher started several processes that MPI does not join");
  command
      .add_option(
          "--step-timeout", run.step_timeout_s,
          "Seconds a rank may be stuck, stopped or cut off, from its start to its end, before a job of\n"
          "several ranks ends with an error; 0: no limit")
      ->transform(in_range(0.0, 1e6))
      ->capture_default_str();
}

void add_memory_options(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, "Batch and memory");
  command.add_option("--max-batch", run.max_batch, "Sequences decoded together")
      ->transform(in_range(1, 65536))
      ->capture_default_str();
  command.add_option("--max-step-tokens", run.max_step_tokens, "Tokens of one step, prompt chunks included")
      ->transform(in_range(1, 1 << 20))
      ->capture_default_str();
  command
      .add_option(
          "--kv-cache-bytes", run.kv_cache_bytes,
          "KV cache of a rank, e.g. 512M or 4G (default: what --max-batch sequences of max_context need,\n"
          "at most a quarter of this rank's share of the host's memory, cgroup and Slurm limits included, "
          "and\n"
          "what weights leave of it; on a GPU what it has left)")
      ->transform(as_size())
      ->type_name("SIZE");
  add_choice<bool>(
      command, "--prefix-cache", run.prefix_cache, {{"on", true}, {"off", false}},
      "on: requests whose prompts begin alike share keys and values of what they share, in whole\n"
      "pages of 16 tokens; off: each computes its own. Results are the same");
}

void add_type_options(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, "Number types");
  add_choice<std::optional<Compute>>(
      command, "--compute", run.compute,
      {{"auto", {}}, {"float32", Compute::float32}, {"bfloat16", Compute::bfloat16}, {"int8", Compute::int8}},
      "Input type of the matrix products. auto: on CPUs the type of bfloat16 and int8 weights where every\n"
      "rank's processor multiplies it at speed, else float32; on GPUs float16 for float16 weights, else "
      "bfloat16");
  add_choice<bool>(command, "--weights", run.int8_weights, {{"auto", false}, {"int8", true}},
                   "auto: matrices as stored; int8: quantised on load, in groups of 32 with a float16 scale\n"
                   "(`ptrt quantize` writes a file of them)");
  add_choice<std::optional<DType>>(
      command, "--kv-dtype", run.kv_dtype,
      {{"auto", {}}, {"float32", DType::float32}, {"bfloat16", DType::bfloat16}},
      "Type of the cached keys and values. auto: float32 with --compute float32, else bfloat16; on GPUs the\n"
      "input type of the products");
}

void add_cpu_options(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, "CPU");
  command
      .add_option(
          "--threads", run.threads,
          "CPU threads a rank (default: the cores that launcher, taskset and cgroups allow, divided by\n"
          "the ranks of the host that share them, in a Slurm job at most SLURM_CPUS_PER_TASK; hyper-threads "
          "are\n"
          "not counted)")
      ->transform(in_range(1, 1024));
  add_choice<std::optional<bool>>(command, "--share-weights", run.share_weights,
                                  {{"auto", {}}, {"on", true}, {"off", false}},
                                  "Replicas on one NUMA node of a host keep one copy of their weights. auto: "
                                  "where shared memory has huge\n"
                                  "pages; on: in any case, or the run is refused; off: a copy each");
  add_choice<bool>(
      command, "--bind", run.bind_threads, {{"auto", true}, {"none", false}},
      "auto: in a job of several ranks each thread runs on a core of its own, if there are enough;\n"
      "none: threads run wherever they are allowed to");
}

void add_gpu_options(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, "GPU");
  add_choice<DeviceFusion>(
      command, "--fusion", run.fusion,
      {{"auto", DeviceFusion::automatic},
       {"tree", DeviceFusion::tree},
       {"nccl", DeviceFusion::nccl},
       {"staged", DeviceFusion::staged}},
      "All-reduce between ranks on GPUs. tree: gather over NCCL, add in a fixed order; nccl: NCCL's\n"
      "all-reduce; staged: through the hosts' memory; auto: tree for small sums, nccl for large ones, "
      "staged\n"
      "where NCCL cannot be used");
  command
      .add_option("--gpu-memory-fraction", run.gpu_memory_fraction,
                  "Share of a GPU's free memory that weights, scratch and KV cache may take together")
      ->transform(in_range(0.05, 1.0))
      ->capture_default_str();
  command.add_flag("--share-gpu", run.share_gpu,
                   "Several ranks may use one GPU; their sums go through the hosts' memory");
  add_choice<bool>(
      command, "--cuda-graphs", run.cuda_graphs, {{"on", true}, {"off", false}},
      "on: decode steps are recorded, one for each batch size, and replayed; off: every kernel is\n"
      "launched on its own, to look for faults");
}

void add_observation_options(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, "Observation");
  add_path(command, "--trace", run.trace,
           "Steps, ops and sync points of every rank, in Chrome's trace format for Perfetto; of a long job\n"
           "its beginning");
  add_path(command, "--metrics", run.metrics,
           "Figures of the job, written anew every 15 seconds in Prometheus' text format, for the node\n"
           "exporter's textfile collector");
  add_path(command, "--log-file", run.log_file,
           "Messages and phases of every rank with times, e.g. run.%j.%r.log (%r rank, %h host, %j Slurm's\n"
           "job)");
}

constexpr const char* kOutputHelp =
    "Results, one JSON object a line in the order of the requests; - is standard output, .gz and .zst are\n"
    "compressed";

void add_progress(CLI::App& command, ProgressStyle& progress) {
  auto* every =
      command
          .add_option(
              "--log-every", progress.log_every_s,
              "Seconds between lines of progress; 0: a line after every result (default: 60, and a bar\n"
              "instead of lines on a terminal)")
          ->transform(in_range(0.0, 1e6));
  command
      .add_flag_callback(
          "--no-progress", [&progress] { progress.shown = false; },
          "No progress, but the summary at the end (--quiet: neither)")
      ->excludes(every);
}

CLI::Option* add_resume(CLI::App& command, BatchOptions& options) {
  return command.add_flag(
      "--resume", options.resume,
      "Continue from the journal RESULTS.partial of an earlier run; end at once if RESULTS are complete");
}

CLI::Option* add_ignore_unknown_fields(CLI::App& command, BatchOptions& options) {
  return command.add_flag(
      "--ignore-unknown-fields", options.ignore_unknown_fields,
      "Run request lines without the fields that ptrt does not know, instead of making them\n"
      "error lines (unsupported_field); at the end, standard error lists what was ignored");
}

CLI::Option* add_timings(CLI::App& command, BatchOptions& options) {
  return command.add_flag(
      "--timings", options.timings,
      "In each result line: milliseconds in the queue, to the first token (TTFT) and between\n"
      "tokens (TPOT), and the prompt's cached tokens");
}

CLI::Option* add_unordered(CLI::App& command, BatchOptions& options) {
  return command.add_flag("--unordered", options.unordered,
                          "Results in the order in which they finish; they cannot be merged");
}

CLI::Option* add_shard(CLI::App& command, BatchOptions& options) {
  const auto check = [](const std::string& given) {
    if (given == "slurm" || parse_shard(given)) return std::string();
    return fmt::format("'{}': expected I/N, I from 0 to N - 1 and N at most {}, or slurm", given,
                       kMostShards);
  };
  return command
      .add_option(
          "--shard", options.shard,
          "Run only the request file's lines with number % N = I (lines from 0, I from 0); ids and seeds\n"
          "are those of the whole file, and `ptrt merge` puts the results of all N together. slurm: I and\n"
          "N from the task's place in its Slurm job array")
      ->type_name("I/N")
      ->check(CLI::Validator(check, ""));
}

void add_chat(CLI::App& command, BatchOptions& options) {
  begin_group(command, "Chat");
  add_path(command, "--chat-template", options.chat_template,
           "Jinja template that makes a prompt of \"messages\" (default: the model file's)");
  const auto check = [](const std::string& given) {
    int year = 0, month = 0, day = 0, read = 0;
    const bool whole = std::sscanf(given.c_str(), "%4d-%2d-%2d%n", &year, &month, &day, &read) == 3 &&
                       given.size() == 10 && read == 10;
    const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(unsigned(month)),
                                           std::chrono::day(unsigned(day))};
    return whole && date.ok() ? std::string() : fmt::format("'{}': expected a date YYYY-MM-DD", given);
  };
  command
      .add_option("--chat-date", options.chat_date,
                  "The date that a template's strftime_now gives (default: the day of the first start, also\n"
                  "with --resume)")
      ->type_name("YYYY-MM-DD")
      ->check(CLI::Validator(check, ""));
}

void add_generate(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<BatchOptions>();
  CLI::App* command = add_command(app, "generate", "Generate text for a file of requests", options, chosen);
  add_model(*command, options->run.model, options->run.trust_links)->required();
  add_path(*command, "REQUESTS", options->requests, kRequestsHelp)->required();
  add_path(*command, "-o,--output", options->output, kOutputHelp)->required();
  begin_group(*command, "Parts and progress");
  add_resume(*command, *options);
  add_ignore_unknown_fields(*command, *options);
  add_progress(*command, options->progress);
  add_unordered(*command, *options);
  add_timings(*command, *options);
  add_shard(*command, *options);
  add_chat(*command, *options);
  add_speculation(*command, options->run);
  add_run_options(*command, options->run);
  command->footer(kBatchExamples);
}

// Returns the option --text.
CLI::Option* add_text(CLI::App& command, BatchOptions& options, CLI::Option* requests) {
  begin_group(command, "Perplexity of a text");
  const auto tokens = [] { return in_range(std::int64_t{1}, std::int64_t{1} << 31); };
  auto* text =
      add_path(command, "--text", options.text,
               "A text file instead of REQUESTS: every token is scored once by a sliding window. The\n"
               "result {\"tokens\", \"sum_logprob\", \"perplexity\", \"window\", \"stride\"} goes to -o or\n"
               "to standard output")
          ->excludes(requests);
  command.add_option("--window", options.window, "Tokens of a window (default: the model's max_context)")
      ->transform(tokens())
      ->needs(text);
  command
      .add_option("--stride", options.stride,
                  "Tokens from a window to the next, below --window (default: half of it)")
      ->transform(tokens())
      ->needs(text);
  return text;
}

void add_score(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<BatchOptions>();
  options->task = Task::score;
  CLI::App* command = app.add_subcommand("score", "Log-probabilities of given texts");
  add_model(*command, options->run.model, options->run.trust_links)->required();
  auto* requests = add_path(*command, "REQUESTS", options->requests, kScoreRequestsHelp);
  add_path(*command, "-o,--output", options->output, kOutputHelp);
  begin_group(*command, "Parts and progress");
  add_resume(*command, *options);
  add_progress(*command, options->progress);
  auto* ignore = add_ignore_unknown_fields(*command, *options);
  auto* unordered = add_unordered(*command, *options);
  auto* timings = add_timings(*command, *options);
  auto* shard = add_shard(*command, *options);
  add_text(*command, *options, requests)
      ->excludes(shard)
      ->excludes(ignore)
      ->excludes(unordered)
      ->excludes(timings);
  add_chat(*command, *options);
  add_run_options(*command, options->run);
  command->callback([options, &chosen] {
    if (options->text.empty() && options->requests.empty()) throw CLI::RequiredError("REQUESTS or --text");
    if ((options->text.empty() || options->resume) && options->output.empty())
      throw CLI::RequiredError("--output");
    chosen = *options;
  });
  command->footer(kScoreExamples);
}

}  // namespace

void add_run_options(CLI::App& command, ModelRunOptions& run) {
  begin_group(command, kCommonGroup);
  add_choice<std::optional<Device>>(
      command, "--backend", run.device, {{"auto", {}}, {"cpu", Device::cpu}, {"cuda", Device::cuda}},
      "Device that runs the model. auto: a GPU where there is one (and its plug-in), else the CPU");
  command.add_flag("--quiet", run.quiet, "No progress and no summary");
  add_rank_options(command, run);
  add_memory_options(command, run);
  add_type_options(command, run);
  add_cpu_options(command, run);
  add_gpu_options(command, run);
  add_observation_options(command, run);
}

void add_doctor(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<DoctorOptions>();
  CLI::App* command = add_command(app, "doctor", "Look at a launch from all its ranks, and say what is wrong",
                                  options, chosen);
  add_model(*command, options->run.model, options->run.trust_links,
            "Model file (HDF5) of the job, if there is one");
  add_path(*command, "-o,--output", options->output,
           "A file or folder where results would go: is it writable, and does it keep locks?");
  add_run_options(*command, options->run);
  command->footer(R"(Examples:
  ptrt doctor
  mpirun -n 8 ptrt doctor model.h5 -o results.jsonl
  srun --mpi=pmix -N 2 -n 16 ptrt doctor model.h5 --backend cuda      (the job's own launcher and options)

Prints a table of what the ranks found, and a line "problem: ... / change: ..." for all that is wrong.
Exit status: 0 a job can run, 1 it would fail, 2 bad usage.)");
}

void add_generate_and_score(CLI::App& app, Command& chosen) {
  add_generate(app, chosen);
  add_score(app, chosen);
}

}  // namespace ptrt
