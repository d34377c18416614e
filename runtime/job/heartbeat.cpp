#include "runtime/job/heartbeat.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "kernels/base/clock.h"

namespace ptrt {
namespace {

double seconds_since(std::int64_t ns) {
  return 1e-9 * static_cast<double>(now_ns() - ns);
}

}  // namespace

Heartbeat::Heartbeat(std::unique_ptr<PulseComm> comm, std::vector<std::string> hosts, double period_s)
    : comm_(std::move(comm)),
      hosts_(std::move(hosts)),
      period_ns_(static_cast<std::int64_t>(1e9 * period_s)),
      heard_ns_(static_cast<std::size_t>(comm_->size())),
      work_(heard_ns_.size()) {
  restart();
}

void Heartbeat::restart() {
  const std::int64_t now = now_ns();
  std::ranges::fill(heard_ns_, now);
  worked_ns_ = told_ns_ = now;
  told_ = {};
}

void Heartbeat::beat(std::uint64_t work) {
  const int ranks = comm_->size(), mine = comm_->rank();
  const auto note_work = [&](int rank, std::uint64_t now) {
    std::uint64_t& before = work_[static_cast<std::size_t>(rank)];
    if (std::exchange(before, now) != now) worked_ns_ = now_ns();
  };
  note_work(mine, work);
  for (int from = 0; from < (mine == 0 ? ranks : 1); from++) {
    if (from == mine) continue;
    const auto pulse = comm_->receive(from);
    if (!pulse) continue;
    heard_ns_[static_cast<std::size_t>(from)] = now_ns();
    note_work(from, pulse->work);
    if (mine == 0) continue;
    told_ = *pulse;
    told_ns_ = now_ns();
  }
  if (now_ns() - sent_ns_ < period_ns_) return;
  sent_ns_ = now_ns();
  if (mine != 0) return comm_->send(0, {.work = work});
  const Pulse pulse = pulse_of_rank_0(work);
  for (int to = 1; to < ranks; to++) comm_->send(to, pulse);
}

Pulse Heartbeat::pulse_of_rank_0(std::uint64_t work) const {
  Pulse pulse{.work = std::accumulate(work_.begin() + 1, work_.end(), work)};
  const int silent = lowest_silent();
  pulse.silent_for = static_cast<float>(silence_of(silent));
  if (pulse.silent_for > 3e-9f * static_cast<float>(period_ns_)) pulse.silent = silent;
  return pulse;
}

int Heartbeat::lowest_silent() const {
  int found = 1;
  for (int r = 2; r < comm_->size(); r++)
    if (heard_ns_[static_cast<std::size_t>(r)] < heard_ns_[static_cast<std::size_t>(found)] - period_ns_)
      found = r;
  return found;
}

double Heartbeat::silence_of(int rank) const {
  return seconds_since(heard_ns_[static_cast<std::size_t>(rank)]);
}

double Heartbeat::silence() const {
  if (comm_->rank() == 0) return silence_of(lowest_silent());
  const bool told = told_.silent >= 0 && told_.silent != comm_->rank();
  return std::max(silence_of(0),
                  told ? static_cast<double>(told_.silent_for) + seconds_since(told_ns_) : 0.0);
}

std::string Heartbeat::silent_ranks(double at_least_s) const {
  std::map<std::string, std::vector<int>> by_host;
  const auto add = [&](int rank) { by_host[hosts_[static_cast<std::size_t>(rank)]].push_back(rank); };
  if (comm_->rank() == 0) {
    for (int r = 1; r < comm_->size(); r++)
      if (silence_of(r) >= at_least_s) add(r);
  } else {
    add(silence_of(0) >= at_least_s || told_.silent < 0 ? 0 : told_.silent);
  }
  std::vector<std::string> parts;
  for (const auto& [host, ranks] : by_host)
    parts.push_back(fmt::format("rank{} {} ({})", ranks.size() > 1 ? "s" : "", fmt::join(ranks, ", "), host));
  return fmt::format("{}", fmt::join(parts, ", "));
}

double Heartbeat::since_work() const {
  return seconds_since(worked_ns_);
}

}  // namespace ptrt
