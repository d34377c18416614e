#include "runtime/sync/mpi_all_reduce.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

static_assert(sizeof(StepHeader) % alignof(float) == 0);

std::size_t value_bytes(std::int64_t values) {
  return static_cast<std::size_t>(values) * sizeof(float);
}

std::size_t message_bytes(std::int64_t values) {
  return sizeof(StepHeader) + value_bytes(values);
}

float* values_in(std::byte* message) {
  return reinterpret_cast<float*>(message + sizeof(StepHeader));
}

constexpr std::size_t kAlignment = 64;

const float* offset(const float* values, std::int64_t by) {
  return values != nullptr ? values + by : nullptr;
}

}  // namespace

MpiAllReduce::MpiAllReduce(TrackComm& comm, Members members, Backend& backend, StepConsistency& consistency,
                           std::int64_t parts, std::int64_t max_values)
    : comm_(comm),
      members_(std::move(members)),
      me_(static_cast<int>(std::ranges::find(members_.ranks, comm.rank()) - members_.ranks.begin())),
      backend_(backend),
      consistency_(consistency),
      parts_(parts),
      all_(static_cast<std::size_t>(parts * size())) {
  PTRT_CHECK(me_ < size() && rank_of(0) == 0 &&
             (members_.order.empty() || members_.order.size() == all_.size()));
  const auto ranks = static_cast<std::size_t>(size());
  // Slices are rounded up to whole values. Two sums have a header and a rounding each.
  const std::size_t whole = message_bytes(parts * max_values) + sizeof(StepHeader);
  const std::size_t sliced =
      ranks * (message_bytes(parts * (slice_width(max_values, size()) + 1)) + sizeof(StepHeader));
  send_.resize(std::max(whole, sliced) + kAlignment);
  recv_.resize(std::max(ranks * whole, sliced) + kAlignment);
  sends_.reserve(ranks);
  receives_.reserve(ranks);
}

MpiAllReduce::~MpiAllReduce() {
  if (std::ranges::any_of(sums_, &Sum::in_flight)) comm_.drop_transfers();
}

std::uint64_t MpiAllReduce::run(AllReduceAlgorithm algorithm, const AllReduceJob& job) {
  PTRT_CHECK(std::ranges::none_of(sums_, &Sum::in_flight));
  begin(0, algorithm, job, false);
  return finish(0);
}

void MpiAllReduce::start(int number, AllReduceAlgorithm algorithm, const AllReduceJob& job) {
  begin(number, algorithm, job, true);
}

bool MpiAllReduce::poll(int number) {
  while (sums_[number].in_flight && comm_.poll(number))
    if (advance(number)) sums_[number].in_flight = false;
  return !sums_[number].in_flight;
}

std::uint64_t MpiAllReduce::finish(int number) {
  Sum& sum = sums_[number];
  while (sum.in_flight) {
    comm_.finish(number);
    if (advance(number)) sum.in_flight = false;
  }
  consistency_.begin(sum.step_sum, sum.ready_ns);
  return sum.sent;
}

void MpiAllReduce::begin(int number, AllReduceAlgorithm algorithm, const AllReduceJob& job,
                         bool copies_parts) {
  Sum& sum = sums_[number];
  PTRT_CHECK(!sum.in_flight);
  sum = {.algorithm = algorithm,
         .job = job,
         .step_sum = consistency_.sum(),
         .ready_ns = consistency_.last_ready_ns(),
         .in_flight = true};
  place(number);
  const int ranks = size(), me = me_;
  sends_.clear();
  receives_.clear();
  if (algorithm == AllReduceAlgorithm::root) {
    if (me != 0 || copies_parts) pack(job, {0, job.count}, sum.send);
    if (me == 0) {
      for (int r = 1; r < ranks; r++) receives_.push_back({rank_of(r), sum.received(r), sum.message});
    } else {
      sends_.push_back({rank_of(0), sum.send, sum.message});
      receives_.push_back({rank_of(0), sum.recv, message_bytes(job.count)});
      sum.sent += sum.message;
    }
    comm_.start(number, sends_, receives_);
  } else if (algorithm == AllReduceAlgorithm::one_shot) {
    pack(job, {0, job.count}, sum.send);
    gather(number, false);
  } else {
    for (int r = 0; r < ranks; r++)
      if (r != me || copies_parts) pack(job, slice(sum, r), sum.to_send(r));
    gather(number, true);
  }
  if (copies_parts) sum.job.local = {};
}

// Its memory and its messages' size.
void MpiAllReduce::place(int number) {
  Sum& sum = sums_[number];
  const Sum& other = sums_[1 - number];
  const auto ranks = static_cast<std::size_t>(size());
  const bool sliced = sum.algorithm == AllReduceAlgorithm::two_shot;
  sum.message = message_bytes(parts_ * (sliced ? slice_width(sum.job.count, size()) : sum.job.count));
  sum.send_bytes = (sliced ? ranks : 1) * sum.message;
  sum.recv_bytes = ranks * sum.message;
  const auto in = [&](std::vector<std::byte>& memory, std::size_t bytes, std::size_t others) {
    PTRT_CHECK(bytes + (other.in_flight ? others + kAlignment : 0) <= memory.size());
    return number == 0 ? memory.data() : memory.data() + (memory.size() - bytes) / kAlignment * kAlignment;
  };
  sum.send = in(send_, sum.send_bytes, other.send_bytes);
  sum.recv = in(recv_, sum.recv_bytes, other.recv_bytes);
}

MpiAllReduce::Range MpiAllReduce::slice(const Sum& sum, std::int64_t rank) const {
  const std::int64_t count = sum.job.count, width = slice_width(count, size());
  return {std::min(rank * width, count), std::min((rank + 1) * width, count)};
}

// [header][part 0's values][part 1's values]…
void MpiAllReduce::pack(const AllReduceJob& job, Range values, std::byte* message) {
  const StepHeader header = consistency_.outgoing();
  std::memcpy(message, &header, sizeof header);
  float* to = values_in(message);
  for (const float* part : job.local) {
    std::memcpy(to, part + values.begin, value_bytes(values.size()));
    to += values.size();
  }
}

void MpiAllReduce::check_header(int member, const std::byte* message, bool from_first) {
  StepHeader other;
  std::memcpy(&other, message, sizeof other);
  consistency_.receive(rank_of(member), other, from_first);
}

void MpiAllReduce::check_headers_of_others(const Sum& sum) {
  for (int r = 0; r < size(); r++)
    if (r != me_) check_header(r, sum.received(r), r == 0);
}

// Sends the packed parts (the same to all ranks, or one slice for each) and receives the others'.
// Ranks start with different neighbours, so that none receives from all at once.
void MpiAllReduce::gather(int number, bool one_for_each) {
  Sum& sum = sums_[number];
  const int ranks = size(), me = me_;
  for (int distance = 1; distance < ranks; distance++) {
    const int to = (me + distance) % ranks, from = (me + ranks - distance) % ranks;
    sends_.push_back({rank_of(to), sum.to_send(one_for_each ? to : 0), sum.message});
    receives_.push_back({rank_of(from), sum.received(from), sum.message});
  }
  comm_.start(number, sends_, receives_);
  sum.sent += sum.message * static_cast<std::size_t>(ranks - 1);
}

// out = the sum of all parts' values `mine`; parts in messages are `stride` values apart. This
// rank's own are where they are, or in the message that holds their copy.
void MpiAllReduce::add(const Sum& sum, Range mine, std::int64_t stride) {
  const AllReduceJob& job = sum.job;
  if (mine.size() == 0) return;
  const bool sliced = sum.algorithm == AllReduceAlgorithm::two_shot;
  for (int r = 0; r < size(); r++) {
    const bool own = r == me_;
    for (std::int64_t p = 0; p < parts_; p++) {
      const auto index = static_cast<std::size_t>(r * parts_ + p);
      const float*& part =
          all_[members_.order.empty() ? index : static_cast<std::size_t>(members_.order[index])];
      if (own && !job.local.empty())
        part = job.local[static_cast<std::size_t>(p)] + mine.begin;
      else
        part = values_in(own ? sum.to_send(sliced ? r : 0) : sum.received(r)) + p * stride;
    }
  }
  backend_.tree_sum(all_, mine.size(), job.scale, offset(job.add_to, mine.begin), job.out + mine.begin);
}

bool MpiAllReduce::advance(int number) {
  Sum& sum = sums_[number];
  sum.transfers++;
  consistency_.begin(sum.step_sum, sum.ready_ns);
  bool ended = true;
  if (sum.algorithm == AllReduceAlgorithm::root) {
    ended = advance_root(number);
  } else if (sum.algorithm == AllReduceAlgorithm::two_shot) {
    ended = advance_two_shot(number);
  } else {
    check_headers_of_others(sum);
    add(sum, {0, sum.job.count}, sum.job.count);
  }
  sum.ready_ns = consistency_.last_ready_ns();
  return ended;
}

bool MpiAllReduce::advance_root(int number) {
  Sum& sum = sums_[number];
  const AllReduceJob& job = sum.job;
  if (me_ != 0) {
    check_header(0, sum.recv, true);
    std::memcpy(job.out, values_in(sum.recv), value_bytes(job.count));
    return true;
  }
  if (sum.transfers == 2) return true;
  check_headers_of_others(sum);
  add(sum, {0, job.count}, job.count);
  const float* total[] = {job.out};
  pack({total, job.count, 1, nullptr, nullptr}, {0, job.count}, sum.send);
  sends_.clear();
  const std::size_t bytes = message_bytes(job.count);
  for (int r = 1; r < size(); r++) sends_.push_back({rank_of(r), sum.send, bytes});
  comm_.start(number, sends_, {});
  sum.sent += bytes * static_cast<std::size_t>(size() - 1);
  return false;
}

bool MpiAllReduce::advance_two_shot(int number) {
  Sum& sum = sums_[number];
  if (sum.transfers == 2) return true;
  check_headers_of_others(sum);
  const int ranks = size(), me = me_;
  const Range mine = slice(sum, me);
  // The parts have been sent, so the sum may overwrite them.
  add(sum, mine, mine.size());
  float* out = sum.job.out;
  sends_.clear();
  receives_.clear();
  for (int distance = 1; distance < ranks; distance++) {
    const int to = (me + distance) % ranks, from = (me + ranks - distance) % ranks;
    if (mine.size() > 0) sends_.push_back({rank_of(to), out + mine.begin, value_bytes(mine.size())});
    if (const Range theirs = slice(sum, from); theirs.size() > 0)
      receives_.push_back({rank_of(from), out + theirs.begin, value_bytes(theirs.size())});
    sum.sent += value_bytes(mine.size());
  }
  comm_.start(number, sends_, receives_);
  return false;
}

}  // namespace ptrt
