// Options of `ptrt bench`.
#include "launch/options/parsers.h"

namespace ptrt {
namespace {

const char* const kBenchExamples = R"(Examples:
  ptrt bench model.h5 --input-len 128 --output-len 64 --requests 16
  mpirun -n 8 ptrt bench model.h5 --input-len 512 --output-len 128 --requests 64 --max-batch 32 --json bench.json
  ptrt bench --random-weights config.json --input-len 512 --output-len 32     (no model file needed)
  ptrt bench model.h5 --emulate-ranks 8 --link-latency-us 10 --link-gb-per-s 50   (one rank of eight, EMULATED))";

void add_workload(CLI::App& command, BenchOptions& options) {
  begin_group(command, "Requests");
  const auto at_least = [](std::int64_t low) { return in_range(low, std::int64_t{1} << 31); };
  auto* input =
      command.add_option("--input-len", options.input_lens, "Prompt tokens; each of several is run")
          ->transform(at_least(1))
          ->delimiter(',')
          ->capture_default_str();
  auto* output = command
                     .add_option("--output-len", options.output_lens,
                                 "Tokens to generate; each of several is run with each prompt length")
                     ->transform(at_least(1))
                     ->delimiter(',')
                     ->capture_default_str();
  add_path(command, "--dataset", options.dataset,
           "REQUESTS.jsonl: its prompts and max_tokens instead of random prompts")
      ->excludes(input)
      ->excludes(output);
  command
      .add_option("--requests", options.requests,
                  "Requests of a run (default: 8; with --dataset all of its lines)")
      ->transform(at_least(1));
  command
      .add_option_function<std::string>(
          "--request-rate",
          [&options](const std::string& text) { options.request_rate = *parse_request_rate(text); },
          "Requests that arrive a second, at random times (Poisson, by --seed); inf: all at the start")
      ->check([](const std::string& text) {
        return parse_request_rate(text) ? std::string()
                                        : fmt::format("{}: expected requests a second above 0, or inf", text);
      })
      ->type_name("FLOAT")
      ->default_str("inf");
  command.add_option("--warmup", options.warmup, "Requests run first and not measured")
      ->transform(at_least(0))
      ->capture_default_str();
  add_seed(command, options.seed, "Seed of prompts, arrivals and random weights");
}

// Returns the option that turns the emulation on.
CLI::Option* add_emulation(CLI::App& command, EmulatedRanks& emulated) {
  begin_group(command, "Emulated ranks");
  auto* ranks =
      command
          .add_option(
              "--emulate-ranks", emulated.ranks,
              "Run the first rank's share of a replica of so many ranks in this one process; each\n"
              "exchange with the others is a wait. The results mean nothing; every figure says EMULATED")
          ->transform(in_range(1, 1 << 20));
  command
      .add_option("--link-latency-us", emulated.link.latency_us,
                  "Latency of an emulated exchange, in microseconds")
      ->transform(in_range(0.0, 1e9))
      ->needs(ranks);
  auto* rate = command
                   .add_option("--link-gb-per-s", emulated.link.gb_per_s,
                               "10^9 bytes a second that an emulated rank receives")
                   ->transform(in_range(1e-6, 1e9))
                   ->needs(ranks);
  ranks->needs(rate);
  return ranks;
}

}  // namespace

std::optional<double> parse_request_rate(const std::string& text) {
  if (text == "inf") return std::numeric_limits<double>::infinity();
  const std::optional<double> rate = parse_number<double>(text);
  return rate && *rate > 0 ? rate : std::nullopt;
}

void add_bench(CLI::App& app, Command& chosen) {
  const auto options = std::make_shared<BenchOptions>();
  const auto emulated = std::make_shared<EmulatedRanks>();
  CLI::App* command = app.add_subcommand("bench", "Measure TTFT, TPOT, throughput and time in sync layers");
  auto* model = add_model(*command, options->run.model, options->run.trust_links);
  add_path(*command, "--random-weights", options->random_weights,
           "CONFIG.json: random weights instead of MODEL")
      ->excludes(model);
  add_path(*command, "--json", options->json, "File for the figures as one JSON object");
  add_path(*command, "--csv", options->csv, "File for the figures as CSV, one row a run");
  add_workload(*command, *options);
  add_bench_speculation(*command, *options);
  add_run_options(*command, options->run);
  const auto* emulate = add_emulation(*command, *emulated);
  command->callback([options, emulated, emulate, &chosen] {
    if (options->run.model.empty() && options->random_weights.empty())
      throw CLI::RequiredError("MODEL or --random-weights");
    if (emulate->count() > 0) options->run.emulated = *emulated;
    chosen = *options;
  });
  command->footer(kBenchExamples);
}

}  // namespace ptrt
