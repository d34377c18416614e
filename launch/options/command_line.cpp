#include "launch/options/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "launch/options/parsers.h"

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
  mpirun -n 8 ptrt doctor model.h5 -o results.jsonl
  mpirun -n 8 ptrt bench model.h5 --input-len 512 --output-len 128 --requests 32 --json bench.json
`ptrt COMMAND --help` lists the options of a command.

Exit status: 0 done (single bad requests are error lines in the results), 1 failure while running,
2 bad usage, model or input file, 75 stopped by a signal (--resume continues).)";

// One blank line between groups; the library leaves two.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    return CLI::detail::find_and_replace(CLI::Formatter::make_help(app, name, mode), "\n\n\n", "\n\n");
  }
};

std::vector<CLI::App*> subcommands(CLI::App& app) {
  return app.get_subcommands([](CLI::App*) { return true; });
}

void add_commands(CLI::App& app, Command& chosen) {
  app.formatter(std::make_shared<HelpFormatter>());
  app.option_defaults()->group(kCommonGroup);
  app.get_help_ptr()->group(kCommonGroup);
  app.set_version_flag("--version", "ptrt " PTRT_VERSION);
  app.require_subcommand(1);
  app.footer(kExamples);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("ptrt: error: {} (`ptrt --help`, `ptrt COMMAND --help`)\n", error.what());
  });
  add_generate_and_score(app, chosen);
  add_merge(app, chosen);
  add_bench(app, chosen);
  add_init(app, chosen);
  add_quantize(app, chosen);
  add_pack(app, chosen);
  add_inspect(app, chosen);
  add_doctor(app, chosen);
  add_plan(app, chosen);
  for (CLI::App* command : subcommands(app)) command->get_help_ptr()->group(kCommonGroup);
}

bool is_command(CLI::App& app, const std::string& name) {
  return std::ranges::any_of(subcommands(app),
                             [&](const CLI::App* command) { return command->get_name() == name; });
}

// Any other option counts: a new one belongs here only where ranks may have it differently.
constexpr std::string_view kOwnOptions[] = {"help",      "output",    "dataset",        "text",
                                            "json",      "csv",       "quiet",          "trust-links",
                                            "threads",   "bind",      "kv-cache-bytes", "gpu-memory-fraction",
                                            "share-gpu", "log-every", "no-progress"};

std::map<std::string, std::string> common_options(const CLI::App& command) {
  std::map<std::string, std::string> common{{"command", command.get_name()}};
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_lnames().empty()) continue;  // a file
    const std::string& name = option->get_lnames().front();
    if (std::ranges::find(kOwnOptions, name) != std::end(kOwnOptions)) continue;
    const bool given = option->count() > 0;
    common["--" + name] = given ? CLI::detail::join(option->results(), ",") : option->get_default_str();
    if (common["--" + name].empty()) common["--" + name] = "its default";
  }
  return common;
}

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv) {
  CLI::App app(
      "ptrt runs Parallel Track transformers: T tracks that meet only at sync layers, one track a rank.",
      "ptrt");
  CommandLine line;
  add_commands(app, line.command);
  try {
    // Else the library would say that a command is missing, not that this one is unknown.
    if (argc > 1 && argv[1][0] != '-' && !is_command(app, argv[1]))
      throw CLI::ExtrasError(std::vector<std::string>{argv[1]});
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::ostringstream out, err;
    const int code = app.exit(e, out, err);
    return {{},
            code == 0 ? 0 : static_cast<int>(ExitCode::bad_input),
            out.str(),
            err.str(),
            {{"command", code == 0 ? "help" : e.what()}}};
  }
  PTRT_CHECK(!std::holds_alternative<std::monostate>(line.command));
  line.common = common_options(*app.get_subcommands().front());
  return line;
}

}  // namespace ptrt
