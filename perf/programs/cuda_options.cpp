#include "cuda_options.h"

#include <charconv>
#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/files.h"

namespace ptrt {
namespace {

std::int64_t number(std::string_view option, std::string_view text, std::int64_t most) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > most)
    throw_bad_input("{} takes numbers from 1 to {}, not {:?}", option, most, text);
  return value;
}

std::vector<std::int64_t> numbers(std::string_view option, std::string_view text, std::int64_t most) {
  std::vector<std::int64_t> all;
  for (std::size_t comma = 0; comma != std::string_view::npos; text.remove_prefix(comma + 1)) {
    comma = text.find(',');
    all.push_back(number(option, text.substr(0, comma), most));
    if (comma == std::string_view::npos) break;
  }
  return all;
}

}  // namespace

BenchOptions parse_bench_options(const std::vector<std::string>& arguments) {
  BenchOptions options;
  bool shaped = false;
  for (std::size_t i = 0; i < arguments.size(); i += 2) {
    const std::string& option = arguments[i];
    if (i + 1 == arguments.size()) throw_bad_input("{} takes a value", option);
    const std::string& value = arguments[i + 1];
    shaped |= option == "--ranks" || option == "--rows";
    if (option == "--json")
      options.json_file = value;
    else if (option == "--config")
      options.config_file = value;
    else if (option == "--ranks")
      options.ranks = number(option, value, 1 << 20);
    else if (option == "--rows")
      options.rows = numbers(option, value, kBenchSequences);
    else
      throw_bad_input(
          "unknown option {}: bench_cuda [--json FILE] [--config FILE [--ranks N] [--rows N,N,...]]", option);
  }
  if (shaped && options.config_file.empty()) throw_bad_input("--ranks and --rows go with --config");
  return options;
}

BenchShape shape_of(const BenchOptions& options) {
  const std::string& file = options.config_file;
  if (file.empty()) return {};
  return shape_of_rank(parse_config(read_text_file(file, "the configuration"), file), options.ranks);
}

}  // namespace ptrt
