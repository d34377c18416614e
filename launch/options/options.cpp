#include "launch/options/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>

#include "kernels/base/error.h"
#include "launch/options/file_options.h"

#ifndef PTRT_VERSION
#error "PTRT_VERSION comes from CMake"
#endif

namespace ptrt {
namespace {

const char* const kExamples = R"(Examples:
  ptrt inspect model.h5
  ptrt generate model.h5 requests.jsonl -o results.jsonl
  mpirun -n 8 ptrt generate model.h5 requests.jsonl -o results.jsonl
  mpirun -n 8 ptrt score model.h5 texts.jsonl -o scores.jsonl --resume
  mpirun -n 8 ptrt bench model.h5 --input-len 512 --output-len 128 --requests 32 --json bench.json
`ptrt COMMAND --help` tells the options of a command.

Exit status: 0 done (single bad requests are error lines in the results), 1 failure while running,
2 bad usage, model or input file.)";

const char* const kRequestsHelp =
    "One JSON object a line: {\"id\", \"prompt\" or \"tokens\", \"max_tokens\", \"temperature\", \"top_k\",\n"
    "\"top_p\", \"seed\", \"stop\", \"logprobs\"}, or an OpenAI batch line (custom_id, method, url, body)";

const char* const kGenerateExamples = R"(Examples:
  echo '{"id": "a", "prompt": "What is 23 + 45?\n", "max_tokens": 16}' > requests.jsonl
  ptrt generate model.h5 requests.jsonl -o results.jsonl
  mpirun -n 8 ptrt generate model.h5 requests.jsonl -o results.jsonl      (one track a rank, if T = 8)
  mpirun -n 8 ptrt generate model.h5 requests.jsonl -o results.jsonl --replicas 2   (four ranks serve each replica)
  ptrt generate model.h5 requests.jsonl -o results.jsonl --resume         (goes on where a run ended)

Results appear under their name when all are there; until then results.jsonl.partial keeps what is finished.
On SIGTERM, SIGINT or SIGUSR1 the run ends after the step it is in; --resume goes on from there.)";

const char* const kBenchExamples = R"(Examples:
  ptrt bench model.h5 --input-len 128 --output-len 64 --requests 16
  mpirun -n 8 ptrt bench model.h5 --input-len 512 --output-len 128 --requests 64 --max-batch 32 --json bench.json
  ptrt bench --random-weights config.json --input-len 512 --output-len 32     (no model file needed)
  ptrt bench model.h5 --emulate-ranks 8 --link-latency-us 10 --link-gb-per-s 50   (one rank of eight, EMULATED))";

void add_run_options(CLI::App& command, ModelRunOptions& run, std::string& kv_size) {
  command
      .add_option(
          "--backend", run.backend,
          "Device that runs the model; auto: a GPU where there is one (and its plug-in), else the CPU")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command
      .add_option(
          "--threads", run.threads,
          "CPU threads a rank (default: the cores that launcher, taskset and cgroups allow, divided by the\n"
          "ranks of the host that share them; hyper-threads are not counted)")
      ->check(CLI::Range(1, 1024));
  command
      .add_option(
          "--bind", run.bind,
          "auto: in a job of several ranks each thread runs on a core of its own, if there are enough;\n"
          "none: anywhere it is allowed")
      ->check(CLI::IsMember({"auto", "none"}))
      ->capture_default_str();
  command
      .add_option(
          "--compute", run.compute,
          "Type in which matrix products take their inputs; auto: bfloat16 for bfloat16 weights and "
          "int8 for\n"
          "int8 weights where every rank's processor has such products, else float32; on a GPU float16 for\n"
          "float16 weights, else bfloat16")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "int8"}))
      ->capture_default_str();
  command
      .add_option("--weights", run.weights,
                  "auto: matrices as stored; int8: quantised on load, in groups of 32 with a float16 scale\n"
                  "(`ptrt quantize` does that once and for all)")
      ->check(CLI::IsMember({"auto", "int8"}))
      ->capture_default_str();
  command
      .add_option("--kv-dtype", run.kv_dtype,
                  "Type of the cached keys and values (auto: float32 with --compute float32, else bfloat16; "
                  "on a GPU\n"
                  "that of the products)")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  command
      .add_option(
          "--vocab-head", run.vocab_head,
          "whole: every rank multiplies the whole vocabulary head; split: each its share of the rows, and\n"
          "one exchange a step; auto: split where that saves a rank several MiB a step")
      ->check(CLI::IsMember({"auto", "whole", "split"}))
      ->capture_default_str();
  command
      .add_option(
          "--cuda-graphs", run.cuda_graphs,
          "on: a GPU's decode steps are recorded, one a batch size, and replayed; off: every kernel is\n"
          "launched by itself, to look for faults")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  command.add_option("--max-batch", run.max_batch, "Sequences decoded together")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command.add_option("--max-step-tokens", run.max_step_tokens, "Tokens of one step, prompt chunks included")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option(
      "--kv-cache-bytes", kv_size,
      "KV cache of a rank, e.g. 512M or 4G (default: what --max-batch sequences of max_context need,\n"
      "at most a quarter of the host's memory over its ranks, or what a GPU has left)");
  command
      .add_option("--gpu-memory-fraction", run.gpu_memory_fraction,
                  "Share of a GPU's free memory that weights, scratch and KV cache may take together")
      ->check(CLI::Range(0.05, 1.0))
      ->capture_default_str();
  command
      .add_option("--replicas", run.replicas,
                  "Replicas that share the requests (default: ranks / (tracks x --tensor-parallel))")
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--tensor-parallel", run.tensor_parallel,
                  "Ranks that share each track: heads and FFN columns, two sums a layer between them")
      ->capture_default_str();
  command
      .add_option(
          "--fusion", run.fusion,
          "How ranks on GPUs add up at sync points. tree: gathered over NCCL, added in a fixed order;\n"
          "nccl: NCCL's all-reduce; staged: through the hosts' memory; auto: tree for small sums, nccl\n"
          "for large ones, staged where NCCL cannot be used")
      ->check(CLI::IsMember({"auto", "tree", "nccl", "staged"}))
      ->capture_default_str();
  command.add_flag("--share-gpu", run.share_gpu,
                   "Several ranks may run on one GPU (their sums go through the host)");
  command
      .add_option(
          "--step-timeout", run.step_timeout_s,
          "Seconds after which a job of several ranks ends with an error when a rank is stuck in a step;\n"
          "0: never")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command.add_flag("--quiet", run.quiet, "No progress and no summary");
}

CLI::App* add_batch(CLI::App& app, const char* name, const char* what, BatchOptions& options,
                    std::string& kv_size) {
  CLI::App* command = app.add_subcommand(name, what);
  command->add_option("MODEL", options.run.model, "Model file (HDF5)")->required();
  command->add_option("REQUESTS", options.requests, kRequestsHelp)->required();
  command
      ->add_option("-o,--output", options.output,
                   "Results, one JSON object a line in the order of the requests")
      ->required();
  command->add_flag("--resume", options.resume, "Go on from the journal RESULTS.partial of an earlier run");
  add_run_options(*command, options.run, kv_size);
  command->footer(kGenerateExamples);
  return command;
}

void add_emulation(CLI::App& command, EmulatedRanks& emulated) {
  auto* ranks =
      command
          .add_option("--emulate-ranks", emulated.ranks,
                      "Run the first rank's share of a replica of so many ranks in this one process; each\n"
                      "exchange with the others is a wait. Results mean nothing, every figure says EMULATED")
          ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--link-latency-us", emulated.link.latency_us, "Of an emulated exchange, in microseconds")
      ->check(CLI::Range(0.0, 1e9))
      ->needs(ranks);
  auto* rate =
      command
          .add_option("--link-gb-per-s", emulated.link.gb_per_s, "10^9 bytes a second into an emulated rank")
          ->check(CLI::Range(1e-6, 1e9))
          ->needs(ranks);
  ranks->needs(rate);
}

CLI::App* add_bench(CLI::App& app, BenchOptions& options, EmulatedRanks& emulated, std::string& kv_size) {
  CLI::App* command = app.add_subcommand("bench", "Measure TTFT, TPOT, throughput and time in sync layers");
  auto* model = command->add_option("MODEL", options.run.model, "Model file (HDF5)");
  command
      ->add_option("--random-weights", options.random_weights,
                   "CONFIG.json: random weights in place of MODEL")
      ->excludes(model);
  const auto at_least = [](std::int64_t low) { return CLI::Range(low, std::int64_t{1} << 31); };
  auto* input = command->add_option("--input-len", options.input_lens, "Prompt tokens; several: each is run")
                    ->check(at_least(1))
                    ->delimiter(',')
                    ->capture_default_str();
  auto* output = command
                     ->add_option("--output-len", options.output_lens,
                                  "Tokens to generate; several: each with each prompt length")
                     ->check(at_least(1))
                     ->delimiter(',')
                     ->capture_default_str();
  command
      ->add_option("--dataset", options.dataset,
                   "REQUESTS.jsonl: its prompts and max_tokens in place of random ones")
      ->excludes(input)
      ->excludes(output);
  command
      ->add_option("--requests", options.requests, "Requests a run (default 8; of a dataset, all its lines)")
      ->check(at_least(1));
  command
      ->add_option("--request-rate", options.request_rate,
                   "Requests a second that arrive, at random (Poisson, by --seed); inf: all at the start")
      ->capture_default_str();
  command->add_option("--warmup", options.warmup, "Requests run before, not counted")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_option("--seed", options.seed, "Of prompts, arrivals and random weights")
      ->capture_default_str();
  command->add_option("--json", options.json, "File for the figures as one JSON object");
  command->add_option("--csv", options.csv, "File for the figures as CSV, one row a run");
  add_emulation(*command, emulated);
  add_run_options(*command, options.run, kv_size);
  command->footer(kBenchExamples);
  return command;
}

CLI::App* add_plan(CLI::App& app, PlanOptions& options) {
  CLI::App* command =
      app.add_subcommand("plan", "Predict memory, TTFT, TPOT and throughput on so many processors");
  command->add_option("CONFIG", options.config, "Model configuration (JSON)")->required();
  const auto at_least_1 = CLI::Range(std::int64_t{1}, std::int64_t{1} << 31);
  command->add_option("--gpus", options.gpus, "Numbers of processors, 1 to 4096")
      ->check(CLI::Range(1, 4096))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--gpu", options.gpu, "a100, h100, h200, or a JSON file (docs/PLAN.md)")
      ->capture_default_str();
  command->add_option("--link", options.link, "nvlink, ib, or a JSON file")->capture_default_str();
  command->add_option("--input-len", options.input_len, "Prompt tokens")
      ->check(at_least_1)
      ->capture_default_str();
  command->add_option("--output-len", options.output_len, "Tokens to generate")
      ->check(at_least_1)
      ->capture_default_str();
  command->add_option("--batch", options.batch, "Requests that a replica serves together")
      ->check(at_least_1)
      ->capture_default_str();
  command->add_option("--max-step-tokens", options.step_tokens, "Prompt tokens of a step")
      ->check(at_least_1)
      ->capture_default_str();
  command->add_option("--json", options.json, "File for the table as JSON");
  command->footer(R"(Examples:
  ptrt plan config.json --gpus 8 --gpu h100 --link nvlink --input-len 4096 --output-len 128 --batch 64
  ptrt plan config.json --gpus 8,16,64 --gpu my-gpu.json --link ib
Beside the model's layouts stands its dense twin under tensor parallelism: as deep, as many parameters.)");
  return command;
}

bool is_command(CLI::App& app, const std::string& name) {
  const auto commands = app.get_subcommands([](CLI::App*) { return true; });
  return std::ranges::any_of(commands, [&](const CLI::App* command) { return command->get_name() == name; });
}

}  // namespace

std::int64_t parse_size(const std::string& option, const std::string& text) {
  std::size_t digits = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9') digits++;
  std::string unit = text.substr(digits);
  if (unit.size() == 2 && (unit[1] == 'B' || unit[1] == 'b')) unit.pop_back();
  const std::string units = "KMG";
  const auto place =
      unit.size() == 1 ? units.find(static_cast<char>(std::toupper(unit[0]))) : std::string::npos;
  if (digits == 0 || digits > 15 || (!unit.empty() && place == std::string::npos))
    throw_bad_input("{} '{}' is no size: expected bytes, or a number with K, M or G", option, text);
  const int shift = unit.empty() ? 0 : 10 * (static_cast<int>(place) + 1);
  const std::int64_t number = std::stoll(text.substr(0, digits));
  if (number > std::numeric_limits<std::int64_t>::max() >> shift)
    throw_bad_input("{} '{}' is too large a size", option, text);
  return number << shift;
}

CommandLine parse_command_line(int argc, char** argv, bool may_print) {
  CLI::App app(
      "ptrt runs Parallel Track transformers: T tracks that meet only at sync layers, one track a rank.",
      "ptrt");
  app.set_version_flag("--version", "ptrt " PTRT_VERSION);
  app.require_subcommand(1);
  app.footer(kExamples);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("ptrt: error: {} (`ptrt --help`, `ptrt COMMAND --help`)\n", error.what());
  });

  BatchOptions generate, score;
  generate.task = Task::generate;
  score.task = Task::score;
  BenchOptions bench;
  InitOptions init;
  QuantizeOptions quantize;
  PackOptions pack;
  InspectOptions inspect;
  PlanOptions plan;
  EmulatedRanks emulated;
  std::string kv_size;
  auto* generate_command =
      add_batch(app, "generate", "Generate text for a file of requests", generate, kv_size);
  auto* score_command = add_batch(app, "score", "Log-probability of given text", score, kv_size);
  auto* bench_command = add_bench(app, bench, emulated, kv_size);
  auto* init_command = add_init(app, init);
  auto* quantize_command = add_quantize(app, quantize);
  auto* pack_command = add_pack(app, pack);
  auto* inspect_command = add_inspect(app, inspect);
  auto* plan_command = add_plan(app, plan);

  try {
    // Else the library would say that a command is missing, not that this one is unknown.
    if (argc > 1 && argv[1][0] != '-' && !is_command(app, argv[1]))
      throw CLI::ExtrasError(std::vector<std::string>{argv[1]});
    app.parse(argc, argv);
    if (bench_command->parsed() && bench.run.model.empty() && bench.random_weights.empty())
      throw CLI::RequiredError("MODEL or --random-weights");
  } catch (const CLI::ParseError& e) {
    const int code = may_print ? app.exit(e, std::cout, std::cerr) : e.get_exit_code();
    return {{}, code == 0 ? 0 : static_cast<int>(ExitCode::bad_input)};
  }
  std::optional<std::int64_t> kv_bytes;
  if (!kv_size.empty()) kv_bytes = parse_size("--kv-cache-bytes", kv_size);
  generate.run.kv_cache_bytes = score.run.kv_cache_bytes = bench.run.kv_cache_bytes = kv_bytes;

  if (bench_command->count("--emulate-ranks") > 0) bench.run.emulated = emulated;

  if (generate_command->parsed()) return {generate, {}};
  if (score_command->parsed()) return {score, {}};
  if (bench_command->parsed()) return {bench, {}};
  if (init_command->parsed()) return {init, {}};
  if (quantize_command->parsed()) return {quantize, {}};
  if (pack_command->parsed()) return {pack, {}};
  if (plan_command->parsed()) return {plan, {}};
  PTRT_CHECK(inspect_command->parsed());
  return {inspect, {}};
}

}  // namespace ptrt
