#include "launch/jsonl/request_dealer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr std::int64_t kRun = 64;          // requests handed out at once, and lines read in one call
constexpr std::int64_t kMostStock = 4096;  // of a replica
constexpr double kStockSeconds = 0.1;      // that a stock lasts
constexpr double kMeasureSeconds = 0.05;   // over which a speed is measured

// Of one call: lines that a Python process renders are slow to read.
constexpr auto kLongestRead = std::chrono::milliseconds(50);

// What a line counts as, of Options::most_tokens. An automaton that several lines share counts for each.
std::int64_t tokens_of(const Request& request) {
  const auto& automaton = request.rules.output.automaton;
  const std::size_t of_automaton = automaton == nullptr ? 0 : automaton->bytes() / sizeof(request.tokens[0]);
  return std::ssize(request.tokens) + static_cast<std::int64_t>(of_automaton);
}

double seconds_between(RequestDealer::Clock::time_point from, RequestDealer::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

RequestDealer::RequestDealer(Source source, const Options& options, Clock::time_point start)
    : source_(std::move(source)),
      options_(options),
      replicas_(static_cast<std::size_t>(options.replicas)),
      order_(options.replicas) {
  PTRT_CHECK(options.replicas >= 1 && options.max_batch >= 1);
  for (Replica& replica : replicas_) replica.measured = start;
}

// Several replicas share the last requests evenly only if all of them are known.
bool RequestDealer::reads_tail() const {
  return options_.replicas > 1 && !at_end_ && options_.requests - read_ <= options_.tail;
}

Supply RequestDealer::read_one(std::vector<StreamedLine>& rejected) {
  auto line = std::make_unique<StreamedLine>();
  last_supply_ = source_(*line);
  at_end_ = last_supply_ == Supply::end;
  if (last_supply_ != Supply::line) return last_supply_;
  read_++;
  if (!line->runs()) {
    rejected.push_back(std::move(*line));
    return last_supply_;
  }
  window_tokens_ += tokens_of(line->request);
  if (options_.by_prefix) order_.add(line->number, line->request.tokens);
  const std::int64_t number = line->number;
  window_.add(number, std::move(line));
  return last_supply_;
}

// There is room for lines that nobody needs yet, and the source had some when it was asked last.
bool RequestDealer::reads_ahead() const {
  return options_.by_prefix && !at_end_ && last_supply_ != Supply::none_yet &&
         window_.size() < options_.most_lines && window_tokens_ < options_.most_tokens;
}

void RequestDealer::begin_tail() {
  std::vector<std::pair<std::int64_t, std::int64_t>> costs;
  for (const auto& [number, line] : window_.entries())
    if (line) costs.emplace_back((*line)->request.work(), number);
  std::ranges::stable_sort(costs, std::greater(), [](const auto& cost) { return cost.first; });
  for (const auto& cost : costs) longest_.push_back(cost.second);
  sorted_ = true;
}

// Of the window, which is not empty. Among the last requests, few enough to be in all batches, the length counts.
std::int64_t RequestDealer::choose(std::int64_t replica) {
  const bool few = sorted_ && window_.size() <= options_.replicas * options_.max_batch;
  if (options_.by_prefix && !few)
    if (const auto alike = order_.next_alike(replica)) return *alike;
  if (!sorted_) return options_.by_prefix ? order_.next_other(replica) : window_.first();
  while (window_.find(longest_.front()) == nullptr) longest_.pop_front();
  return longest_.front();
}

std::optional<RequestDealer::Deal> RequestDealer::next(Clock::time_point now,
                                                       std::vector<StreamedLine>& rejected) {
  if (done()) return std::nullopt;
  std::int64_t room = 0;
  const auto replica = neediest(now, room);
  const std::int64_t wanted = replica ? std::min(room, kRun) : 0;
  Supply supply = Supply::line;
  const auto until = Clock::now() + kLongestRead;
  for (std::int64_t i = 0; i < kRun && (i == 0 || Clock::now() < until) && supply == Supply::line &&
                           !at_end_ && (reads_tail() || window_.size() < wanted);
       i++)
    supply = read_one(rejected);
  if (reads_tail() || supply == Supply::skipped) return Deal{};
  if (at_end_ && !sorted_ && options_.replicas > 1) begin_tail();
  if (!replica || window_.empty()) {
    const std::size_t known = rejected.size();
    for (std::int64_t i = 0; i < kRun && reads_ahead() && Clock::now() < until; i++) read_one(rejected);
    if (reads_ahead() || rejected.size() > known) return Deal{};
    if (!replica) return std::nullopt;
  }
  // Of the last ones a replica gets one at a time: its cost decides who gets the next.
  const std::int64_t run = sorted_ ? 1 : std::min(room, kRun);
  Deal deal{*replica, {}};
  Replica& to = replicas_[static_cast<std::size_t>(*replica)];
  for (std::int64_t dealt = 0; dealt < run && !window_.empty();) {
    const std::int64_t number = choose(*replica);
    if (options_.by_prefix) order_.take(*replica, number);
    const StreamedLine& line = *deal.requests.emplace_back(window_.take(number));
    window_tokens_ -= tokens_of(line.request);
    const Replica::Work work{line.request.work(), line.request.samples};
    PTRT_CHECK(to.left.emplace(line.number, work).second);
    to.cost += work.tokens;
    to.samples += work.samples;
    dealt += work.samples;
  }
  if (deal.requests.empty() && rejected.empty()) return std::nullopt;
  return deal;
}

void RequestDealer::finished(std::int64_t number, std::int64_t line, Clock::time_point now) {
  Replica& replica = replicas_[static_cast<std::size_t>(number)];
  const auto at = replica.left.find(line);
  PTRT_CHECK(at != replica.left.end());
  replica.cost -= at->second.tokens;
  replica.samples -= at->second.samples;
  replica.finished += at->second.samples;
  replica.left.erase(at);
  const double seconds = seconds_between(replica.measured, now);
  if (seconds < kMeasureSeconds) return;
  const double lately = static_cast<double>(replica.finished) / seconds;
  replica.per_second = replica.is_known ? (replica.per_second + lately) / 2 : lately;
  replica.is_known = true;
  replica.finished = 0;
  replica.measured = now;
}

// One that has not finished anything for a while is at most as fast as if it did so now.
double RequestDealer::speed(const Replica& replica, Clock::time_point now) const {
  const double seconds = std::max(seconds_between(replica.measured, now), kMeasureSeconds);
  const double at_most = static_cast<double>(replica.finished + 1) / seconds;
  return replica.is_known ? std::min(replica.per_second, at_most) : at_most;
}

bool RequestDealer::is_slow(std::int64_t number, Clock::time_point now) const {
  double others = 0;
  for (std::int64_t r = 0; r < options_.replicas; r++) {
    const Replica& replica = replicas_[static_cast<std::size_t>(r)];
    if (r != number && replica.is_known) others += speed(replica, now);
  }
  const double mine = speed(replicas_[static_cast<std::size_t>(number)], now);
  return mine < 0.5 * others / static_cast<double>(options_.replicas - 1);
}

std::int64_t RequestDealer::stock(std::int64_t number, Clock::time_point now) const {
  const Replica& replica = replicas_[static_cast<std::size_t>(number)];
  const bool alone = options_.replicas == 1;
  if (reads_ahead()) return 0;
  if (!alone && (!replica.is_known || is_slow(number, now))) return 0;
  const std::int64_t share = alone ? options_.max_batch : (options_.max_batch + 3) / 4;
  const double lasting = replica.is_known ? kStockSeconds * speed(replica, now) : 0;
  const auto wanted = std::clamp(static_cast<std::int64_t>(lasting), share, std::max(share, kMostStock));
  if (alone || !sorted_) return wanted;
  return std::min(wanted, window_.size() / (2 * options_.replicas));
}

// The replica with room that has the least left to do, and how many more samples it may get.
std::optional<std::int64_t> RequestDealer::neediest(Clock::time_point now, std::int64_t& room) const {
  std::optional<std::int64_t> best;
  for (std::int64_t r = 0; r < options_.replicas; r++) {
    const Replica& replica = replicas_[static_cast<std::size_t>(r)];
    const std::int64_t more = options_.max_batch + stock(r, now) - replica.samples;
    if (more <= 0) continue;
    if (best && replicas_[static_cast<std::size_t>(*best)].cost <= replica.cost) continue;
    best = r;
    room = more;
  }
  return best;
}

}  // namespace ptrt
