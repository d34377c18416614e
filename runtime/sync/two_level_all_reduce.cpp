#include "runtime/sync/two_level_all_reduce.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/base/error.h"
#include "runtime/sync/host_all_reduce.h"

namespace ptrt {
namespace {

std::size_t value_bytes(std::int64_t values) {
  return static_cast<std::size_t>(values) * sizeof(float);
}

// Aligned groups of a power of two are subtrees of the tree over all parts, if all groups are equal.
bool is_subtree(const std::vector<int>& ranks, std::int64_t parts) {
  const auto count = static_cast<std::int64_t>(ranks.size());
  return ranks.back() - ranks.front() + 1 == count && ranks.front() % count == 0 &&
         std::has_single_bit(static_cast<std::uint64_t>(count * parts));
}

// The ranks of each host, hosts in the order of their lowest ranks.
std::vector<std::vector<int>> ranks_by_host(const std::vector<int>& hosts) {
  std::vector<std::vector<int>> found;
  for (int rank = 0; rank < static_cast<int>(hosts.size()); rank++) {
    const int host = hosts[static_cast<std::size_t>(rank)];
    const auto known = std::ranges::find(found, host, [](const auto& ranks) { return ranks.front(); });
    if (known == found.end())
      found.push_back({rank});
    else
      known->push_back(rank);
  }
  return found;
}

bool all_are_subtrees(const std::vector<std::vector<int>>& hosts, std::int64_t parts) {
  return std::ranges::all_of(hosts, [&](const auto& ranks) { return is_subtree(ranks, parts); });
}

// A leader sends one sum, or the parts of its host's ranks in their order.
MpiAllReduce::Members leaders_of(const std::vector<std::vector<int>>& hosts, std::int64_t parts, bool adds) {
  MpiAllReduce::Members leaders;
  for (const std::vector<int>& ranks : hosts) {
    leaders.ranks.push_back(ranks.front());
    if (adds) continue;
    for (const int rank : ranks)
      for (std::int64_t p = 0; p < parts; p++) leaders.order.push_back(rank * parts + p);
  }
  return leaders;
}

}  // namespace

std::unique_ptr<TwoLevelAllReduce> TwoLevelAllReduce::make(TrackComm& comm, Backend& backend,
                                                           StepConsistency& consistency, std::int64_t parts,
                                                           std::int64_t max_values) {
  const auto hosts = ranks_by_host(comm.hosts());
  const std::size_t ranks = hosts.front().size();
  const bool equal = std::ranges::all_of(hosts, [&](const auto& host) { return host.size() == ranks; });
  if (hosts.size() == 1 || ranks == 1 || !equal) return nullptr;
  auto board = ShmBoard::make(comm, parts + 1, max_values);
  if (board == nullptr) return nullptr;
  return std::make_unique<TwoLevelAllReduce>(comm, backend, consistency, parts, max_values, std::move(board));
}

TwoLevelAllReduce::TwoLevelAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency,
                                     std::int64_t parts, std::int64_t max_values,
                                     std::unique_ptr<ShmBoard> board)
    : comm_(comm),
      backend_(backend),
      consistency_(consistency),
      parts_(parts),
      host_(ranks_on_my_host(comm)),
      adds_(false),
      board_(std::move(board)),
      of_host_(static_cast<std::size_t>(parts) * host_.size()),
      piece_(static_cast<std::size_t>(parts)) {
  const auto hosts = ranks_by_host(comm.hosts());
  adds_ = all_are_subtrees(hosts, parts);
  if (comm.rank() == host_.front())
    leaders_.emplace(comm, leaders_of(hosts, parts, adds_), backend, consistency,
                     adds_ ? 1 : std::ssize(of_host_), std::min(max_values, 2 * board_->values()));
}

std::uint64_t TwoLevelAllReduce::run(const AllReduceJob& job) {
  PTRT_CHECK(sums_[0].stage == Stage::ended && sums_[1].stage == Stage::ended);
  std::uint64_t sent = 0;
  for (std::int64_t first = 0; first < job.count; first += board_->values()) {
    for (std::size_t p = 0; p < job.local.size(); p++) piece_[p] = job.local[p] + first;
    begin(0,
          {piece_, std::min(board_->values(), job.count - first), job.scale,
           job.add_to != nullptr ? job.add_to + first : nullptr, job.out + first},
          false);
    sent += finish(0);
  }
  return sent;
}

void TwoLevelAllReduce::start(int number, const AllReduceJob& job) {
  PTRT_CHECK(job.count <= most_in_flight());
  begin(number, job, true);
}

void TwoLevelAllReduce::begin(int number, const AllReduceJob& job, bool copies_parts) {
  Sum& sum = sums_[number];
  PTRT_CHECK(sum.stage == Stage::ended);
  sum = {.job = job,
         .stage = leads() ? Stage::gathering : Stage::waiting,
         .on_board = ++number_,
         .step_sum = consistency_.sum(),
         .ready_ns = consistency_.last_ready_ns()};
  if (!leads() || copies_parts) publish_parts(sum);
  if (copies_parts) sum.job.local = {};
}

void TwoLevelAllReduce::publish_parts(const Sum& sum) {
  float* to = board_->values_of(comm_.rank(), sum.on_board);
  for (const float* part : sum.job.local) {
    std::memcpy(to, part, value_bytes(sum.job.count));
    to += board_->values();
  }
  ShmBoard::PartsReady& ready = board_->half_of(comm_.rank(), sum.on_board).parts;
  ready.header = consistency_.outgoing();
  ready.number.store(sum.on_board, std::memory_order_release);
}

// Written only when all parts of the host are there, so no rank reads the sum before last any more.
float* TwoLevelAllReduce::place_of_sum(const Sum& sum) {
  return board_->values_of(host_.front(), sum.on_board) + parts_ * board_->values();
}

bool TwoLevelAllReduce::parts_there(const Sum& sum) {
  return std::ranges::all_of(host_, [&](int rank) {
    return rank == comm_.rank() ||
           board_->half_of(rank, sum.on_board).parts.number.load(std::memory_order_acquire) == sum.on_board;
  });
}

// On the leader, when the parts of its host are there.
void TwoLevelAllReduce::exchange_with_leaders(int number) {
  Sum& sum = sums_[number];
  consistency_.begin(sum.step_sum, sum.ready_ns);
  for (std::size_t i = 0; i < host_.size(); i++) {
    const int rank = host_[i];
    const bool own = rank == comm_.rank();
    if (!own) consistency_.receive(rank, board_->half_of(rank, sum.on_board).parts.header, false);
    for (std::int64_t p = 0; p < parts_; p++)
      of_host_[i * static_cast<std::size_t>(parts_) + static_cast<std::size_t>(p)] =
          own && !sum.job.local.empty() ? sum.job.local[static_cast<std::size_t>(p)]
                                        : board_->values_of(rank, sum.on_board) + p * board_->values();
  }
  std::span<const float* const> parts = of_host_;
  if (adds_) {
    float* total = place_of_sum(sum);
    backend_.tree_sum(of_host_, sum.job.count, 1.0f, nullptr, total);
    of_host_[0] = total;
    parts = parts.first(1);
  }
  const int hosts = leaders_->size();
  const AllReduceAlgorithm algorithm = choose_algorithm(
      hosts, static_cast<std::size_t>(std::ssize(parts)) * value_bytes(sum.job.count), false);
  leaders_->start(number, algorithm, {parts, sum.job.count, sum.job.scale, sum.job.add_to, sum.job.out});
  sum.stage = Stage::exchanging;
}

void TwoLevelAllReduce::publish_sum(Sum& sum) {
  std::memcpy(place_of_sum(sum), sum.job.out, value_bytes(sum.job.count));
  ShmBoard::SumReady& ready = board_->half_of(comm_.rank(), sum.on_board).sum;
  ready.header = consistency_.outgoing();
  ready.number.store(sum.on_board, std::memory_order_release);
  sum.stage = Stage::ended;
}

void TwoLevelAllReduce::take_sum(Sum& sum) {
  const int leader = host_.front();
  ShmBoard::SumReady& ready = board_->half_of(leader, sum.on_board).sum;
  board_->wait_for(leader, ready.number, sum.on_board);
  consistency_.begin(sum.step_sum, sum.ready_ns);
  consistency_.receive(leader, ready.header, true);
  std::memcpy(sum.job.out, place_of_sum(sum), value_bytes(sum.job.count));
  sum.sent += value_bytes(parts_ * sum.job.count);
  sum.stage = Stage::ended;
}

void TwoLevelAllReduce::poll(int number) {
  Sum& sum = sums_[number];
  if (sum.stage == Stage::gathering && parts_there(sum)) exchange_with_leaders(number);
  if (sum.stage != Stage::exchanging || !leaders_->poll(number)) return;
  sum.sent += leaders_->finish(number);
  sum.ready_ns = consistency_.last_ready_ns();
  publish_sum(sum);
}

std::uint64_t TwoLevelAllReduce::finish(int number) {
  Sum& sum = sums_[number];
  if (sum.stage == Stage::waiting) {
    take_sum(sum);
    return sum.sent;
  }
  if (sum.stage == Stage::gathering) {
    for (const int rank : host_)
      if (rank != comm_.rank())
        board_->wait_for(rank, board_->half_of(rank, sum.on_board).parts.number, sum.on_board);
    exchange_with_leaders(number);
  }
  if (sum.stage == Stage::exchanging) {
    sum.sent += leaders_->finish(number);
    sum.ready_ns = consistency_.last_ready_ns();
    publish_sum(sum);
  }
  consistency_.begin(sum.step_sum, sum.ready_ns);
  return sum.sent;
}

}  // namespace ptrt
