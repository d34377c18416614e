#include "launch/commands/bench_requests.h"

#include <cmath>
#include <random>

#include "kernels/base/error.h"
#include "launch/requests/request_parser.h"

namespace ptrt {
namespace {

// Before any request of that size is made.
void check_fit(std::int64_t input, std::int64_t output, const ModelSession& session) {
  if (input + output > session.config().max_context)
    throw_bad_input("--input-len {} + --output-len {} exceed the model's max_context of {}", input, output,
                    session.config().max_context);
  if (input + output - 1 > session.kv_tokens())  // the last token is never cached
    throw_bad_input(
        "--input-len {} + --output-len {} do not fit the KV cache of {} tokens: raise --kv-cache-bytes",
        input, output, session.kv_tokens());
}

std::vector<Request> dataset_requests(const BenchOptions& options, const ModelSession& session,
                                      const std::string& text) {
  RequestFile file = parse_requests(text, options.dataset, Task::generate, session.config(),
                                    session.tokenizer(), {session.kv_tokens()});
  for (std::size_t i = 0; i < file.lines.size(); i++)
    if (const RequestError& error = file.lines[i].error; file.lines[i].request < 0)
      throw_bad_input("{} line {}: {}: {}", options.dataset, i + 1, error.code, error.message);
  const auto count = static_cast<std::int64_t>(file.requests.size());
  if (options.requests > count)
    throw_bad_input("--requests {}: {} has {}", options.requests, options.dataset, count);
  if (options.requests > 0) file.requests.resize(static_cast<std::size_t>(options.requests));
  for (Request& request : file.requests) {
    request.ignore_eos = true;
    request.stop.clear();
  }
  return std::move(file.requests);
}

}  // namespace

std::vector<Request> random_requests(const ModelConfig& config, std::int64_t count, std::int64_t input_len,
                                     std::int64_t output_len, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Request> requests(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < requests.size(); i++) {
    Request& request = requests[i];
    request.line = static_cast<std::int64_t>(i);
    request.max_tokens = output_len;
    request.ignore_eos = true;
    for (std::int64_t t = 0; t < input_len; t++)
      request.tokens.push_back(
          static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(config.vocab_size)));
  }
  return requests;
}

void set_arrivals(std::vector<Request>& requests, double rate, std::uint64_t seed) {
  if (std::isinf(rate)) return;
  std::mt19937_64 random(seed);
  double now = 0;
  for (Request& request : requests) {
    // 53 bits in (0, 1], by hand: the standard library's distributions differ between implementations.
    const double uniform = (static_cast<double>(random() >> 11) + 1) / 9007199254740992.0;
    now -= std::log(uniform) / rate;
    request.arrival_s = now;
  }
}

std::vector<BenchCell> bench_cells(const BenchOptions& options, const ModelSession& session,
                                   const std::string& dataset) {
  std::vector<BenchCell> cells;
  if (!options.dataset.empty()) {
    cells.push_back({0, 0, dataset_requests(options, session, dataset)});
  } else {
    const std::int64_t count = options.requests > 0 ? options.requests : 8;
    for (const std::int64_t input : options.input_lens)
      for (const std::int64_t output : options.output_lens) check_fit(input, output, session);
    for (const std::int64_t input : options.input_lens)
      for (const std::int64_t output : options.output_lens)
        cells.push_back(
            {input, output, random_requests(session.config(), count, input, output, options.seed)});
  }
  for (BenchCell& cell : cells) set_arrivals(cell.requests, options.request_rate, options.seed);
  return cells;
}

}  // namespace ptrt
