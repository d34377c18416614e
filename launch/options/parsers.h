// How the subcommands' options are declared to the command-line library. Only this room includes it.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "launch/options/command_options.h"

namespace ptrt {

// Each function adds subcommands; when one of them is given, its options are in `chosen` after the parse.
void add_generate_and_score(CLI::App& app, Command& chosen);
void add_merge(CLI::App& app, Command& chosen);
void add_doctor(CLI::App& app, Command& chosen);
void add_bench(CLI::App& app, Command& chosen);
void add_plan(CLI::App& app, Command& chosen);
void add_init(CLI::App& app, Command& chosen);
void add_quantize(CLI::App& app, Command& chosen);
void add_pack(CLI::App& app, Command& chosen);
void add_inspect(CLI::App& app, Command& chosen);

void add_run_options(CLI::App& command, ModelRunOptions& run);
void add_speculation(CLI::App& command, ModelRunOptions& run);
void add_bench_speculation(CLI::App& command, BenchOptions& options);

// "inf" or a positive number, "0.5"; nothing else.
std::optional<double> parse_request_rate(const std::string& text);

// The options added next stand in this group of --help.
inline void begin_group(CLI::App& command, const std::string& title) {
  command.option_defaults()->group(title);
}
inline constexpr const char* kCommonGroup = "Common options";  // where --help is

// A subcommand whose options live as long as the parser.
template <typename Options>
CLI::App* add_command(CLI::App& app, const char* name, const char* what,
                      const std::shared_ptr<Options>& options, Command& chosen) {
  CLI::App* command = app.add_subcommand(name, what);
  command->callback([options, &chosen] { chosen = *options; });
  return command;
}

template <typename T>
using Choices = std::vector<std::pair<std::string, T>>;

// An option that takes one of these names. (CLI::CheckedTransformer would also take the numbers of an enum,
// and list them in its messages.)
template <typename T>
CLI::Option* add_choice(CLI::App& command, const std::string& option, T& value, const Choices<T>& choices,
                        const std::string& description) {
  std::vector<std::string> names;
  std::string now;
  for (const auto& [name, meaning] : choices) {
    names.push_back(name);
    if (meaning == value) now = name;
  }
  const auto choose = [&value, choices](const std::string& given) {
    for (const auto& [name, meaning] : choices)
      if (name == given) value = meaning;
  };
  return command.add_option_function<std::string>(option, choose, description)
      ->type_name("{" + CLI::detail::join(names, ",") + "}")
      ->check(CLI::IsMember(names).description(""))
      ->default_str(now);
}

// The number that all of a text is: decimal, without a sign in front where it is positive; no NaN, no
// infinity. None for anything else, and beyond the type.
template <typename Number>
std::optional<Number> parse_number(const std::string& text) {
  Number value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  if constexpr (std::is_floating_point_v<Number>)
    if (!std::isfinite(value)) return std::nullopt;
  return value;
}

// A number of that range, both ends included. --help shows it as "1..1024". The library would also take
// hexadecimal and octal numbers and NaN, and would cut an integer that is too large.
template <typename Number>
CLI::Validator in_range(Number low, Number high) {
  static constexpr const char* kKind = std::is_floating_point_v<Number> ? "a number" : "an integer";
  return {[low, high](std::string& text) -> std::string {
            const std::optional<Number> value = parse_number<Number>(text);
            if (!value || *value < low || *value > high)
              return fmt::format("'{}': expected {} in {}..{}", text, kKind, low, high);
            text = fmt::format("{}", *value);  // as the library then reads it: without leading zeros
            return "";
          },
          fmt::format("{}..{}", low, high)};
}

// Of random numbers.
inline CLI::Option* add_seed(CLI::App& command, std::uint64_t& seed, const char* what) {
  CLI::Validator any = in_range<std::uint64_t>(0, std::numeric_limits<std::uint64_t>::max());
  return command.add_option("--seed", seed, what)->transform(any.description(""))->capture_default_str();
}

// A file on the command line, or with a vector one or several.
template <typename Path>
CLI::Option* add_path(CLI::App& command, const std::string& option, Path& path,
                      const std::string& description) {
  const auto named = [](const std::string& given) {
    return given.empty() ? std::string("expected the name of a file, found ''") : std::string();
  };
  return command.add_option(option, path, description)->check(CLI::Validator(named, ""));
}

// "64", "512K", "3MB", "2G", "1T" as bytes, powers of 1024. The error message names the units that are
// accepted in plain words instead of the library's table of thirty.
inline CLI::Validator as_size() {
  return {[](std::string& text) -> std::string {
            const std::string given = text;
            constexpr std::size_t kDigits = 18;  // of any result below 2^63
            try {
              const bool number = given[0] >= '1' && given[0] <= '9' && given.find(' ') == std::string::npos;
              if (number && CLI::AsSizeValue(false)(text).empty() && text.size() <= kDigits) return "";
            } catch (const CLI::ValidationError&) {
            }
            return "'" + given + "' is not a size: expected bytes, or a number with K, M, G or T";
          },
          ""};
}

// The model file and what goes with opening it.
inline CLI::Option* add_model(CLI::App& command, std::string& path, bool& trust_links,
                              const std::string& what = "Model file (HDF5)") {
  command.add_flag(
      "--trust-links", trust_links,
      "Follow external links with an absolute path or \"..\", and read datasets that lie in other\n"
      "files: for model files from a source you trust");
  return add_path(command, "MODEL", path, what);
}

}  // namespace ptrt
