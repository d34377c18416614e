#include "launch/jsonl/request_desk.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace ptrt {
namespace {

constexpr std::int64_t kMostOfATurn = 512;  // requests handed out before results are looked at again

// Lines that a Python process renders take long: meanwhile results wait, and so does a signal.
constexpr auto kLongestTurn = std::chrono::milliseconds(50);

}  // namespace

RequestDesk::RequestDesk(JobComm& job, RequestDealer dealer, RequestInbox& own, std::int64_t replicas,
                         std::int64_t replica_ranks, Hooks hooks)
    : job_(job),
      dealer_(std::move(dealer)),
      own_(own),
      replica_ranks_(replica_ranks),
      hooks_(std::move(hooks)),
      runs_(static_cast<std::size_t>(replicas)),
      told_(static_cast<std::size_t>(replicas)) {}

bool RequestDesk::turn() {
  if (hooks_.stop_requested()) dealer_.stop();
  const auto now = RequestDealer::Clock::now();
  bool worked = false;
  rejected_.clear();
  for (std::int64_t dealt = 0; dealt < kMostOfATurn;) {
    auto deal = dealer_.next(now, rejected_);
    if (!deal) break;
    worked = true;
    if (deal->requests.empty()) break;  // there is more to read first
    dealt += std::ssize(deal->requests);
    auto& run = runs_[static_cast<std::size_t>(deal->replica)];
    std::ranges::move(deal->requests, std::back_inserter(run));
    if (RequestDealer::Clock::now() - now > kLongestTurn) break;
  }
  for (std::size_t replica = 0; replica < runs_.size(); replica++) {
    hand_out(static_cast<std::int64_t>(replica), std::exchange(runs_[replica], {}));
    if (dealer_.done()) tell_the_end(static_cast<std::int64_t>(replica));
  }
  if (!rejected_.empty()) hooks_.rejected(rejected_);
  return worked || !rejected_.empty();
}

void RequestDesk::hand_out(std::int64_t replica, std::vector<HeldLine> requests) {
  if (requests.empty()) return;
  if (replica == 0) return own_.put(std::move(requests));
  job_.send(static_cast<int>(replica * replica_ranks_), message_of(requests));
}

void RequestDesk::tell_the_end(std::int64_t replica) {
  const auto told = told_.begin() + replica;
  if (*told) return;
  *told = true;
  if (replica == 0) return own_.end();
  job_.send(static_cast<int>(replica * replica_ranks_), last_message());
}

void RequestDesk::finished(std::span<const ResultCollector::Result> results, int from) {
  const auto now = RequestDealer::Clock::now();
  for (const ResultCollector::Result& result : results)
    dealer_.finished(from / replica_ranks_, result.line, now);
}

void RequestDesk::left(int from) {
  const std::int64_t replica = from / replica_ranks_;
  if (!told_[static_cast<std::size_t>(replica)]) dealer_.stop();
  tell_the_end(replica);
}

}  // namespace ptrt
