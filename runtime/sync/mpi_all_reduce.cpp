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

const float* offset(const float* values, std::int64_t by) {
  return values != nullptr ? values + by : nullptr;
}

}  // namespace

MpiAllReduce::MpiAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency,
                           std::int64_t parts, std::int64_t max_values)
    : comm_(comm),
      backend_(backend),
      consistency_(consistency),
      parts_(parts),
      all_(static_cast<std::size_t>(parts * comm.size())) {
  const std::int64_t ranks = comm.size();
  // Slices are rounded up to whole values.
  const std::size_t whole = message_bytes(parts * max_values);
  const std::size_t sliced =
      static_cast<std::size_t>(ranks) * message_bytes(parts * slice_width(max_values, comm.size()));
  send_.resize(std::max(whole, sliced));
  recv_.resize(std::max(static_cast<std::size_t>(ranks) * whole, sliced));
  sends_.reserve(static_cast<std::size_t>(ranks));
  receives_.reserve(static_cast<std::size_t>(ranks));
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

void MpiAllReduce::check_header(int rank, const std::byte* message, bool from_first) {
  StepHeader other;
  std::memcpy(&other, message, sizeof other);
  consistency_.receive(rank, other, from_first);
}

// Sets all_: this rank's parts, from value mine.begin, where they are; the others' where they were
// received.
void MpiAllReduce::point_at_parts(const AllReduceJob& job, Range mine, std::int64_t stride,
                                  std::size_t bytes) {
  for (std::int64_t r = 0; r < comm_.size(); r++)
    for (std::int64_t p = 0; p < parts_; p++)
      all_[static_cast<std::size_t>(r * parts_ + p)] =
          r == comm_.rank() ? job.local[static_cast<std::size_t>(p)] + mine.begin
                            : values_in(received(r, bytes)) + p * stride;
}

// Sends the messages in send_ (the same to all ranks, or one for each) and receives into recv_.
// Ranks start with different neighbours, so that none receives from all at once.
std::uint64_t MpiAllReduce::exchange_with_all(std::size_t bytes, bool one_for_each) {
  const int ranks = comm_.size(), me = comm_.rank();
  sends_.clear();
  receives_.clear();
  for (int distance = 1; distance < ranks; distance++) {
    const int to = (me + distance) % ranks, from = (me + ranks - distance) % ranks;
    sends_.push_back({to, to_send(one_for_each ? to : 0, bytes), bytes});
    receives_.push_back({from, received(from, bytes), bytes});
  }
  comm_.exchange(sends_, receives_);
  for (int r = 0; r < ranks; r++)
    if (r != me) check_header(r, received(r, bytes), r == 0);
  return bytes * static_cast<std::size_t>(ranks - 1);
}

std::uint64_t MpiAllReduce::one_shot(const AllReduceJob& job) {
  const std::size_t bytes = message_bytes(parts_ * job.count);
  pack(job, {0, job.count}, send_.data());
  const std::uint64_t sent = exchange_with_all(bytes, false);
  point_at_parts(job, {0, job.count}, job.count, bytes);
  backend_.tree_sum(all_, job.count, job.scale, job.add_to, job.out);
  return sent;
}

std::uint64_t MpiAllReduce::root(const AllReduceJob& job) {
  const int ranks = comm_.size();
  const std::size_t bytes = message_bytes(parts_ * job.count), sum_bytes = message_bytes(job.count);
  sends_.clear();
  receives_.clear();
  if (comm_.rank() != 0) {
    pack(job, {0, job.count}, send_.data());
    const Outgoing part{0, send_.data(), bytes};
    const Incoming sum{0, recv_.data(), sum_bytes};
    comm_.exchange({&part, 1}, {&sum, 1});
    check_header(0, recv_.data(), true);
    std::memcpy(job.out, values_in(recv_.data()), value_bytes(job.count));
    return bytes;
  }
  for (int r = 1; r < ranks; r++) receives_.push_back({r, received(r, bytes), bytes});
  comm_.exchange({}, receives_);
  for (int r = 1; r < ranks; r++) check_header(r, received(r, bytes), false);
  point_at_parts(job, {0, job.count}, job.count, bytes);
  backend_.tree_sum(all_, job.count, job.scale, job.add_to, job.out);
  const float* sum[] = {job.out};
  pack({sum, job.count, 1, nullptr, nullptr}, {0, job.count}, send_.data());
  for (int r = 1; r < ranks; r++) sends_.push_back({r, send_.data(), sum_bytes});
  comm_.exchange(sends_, {});
  return sum_bytes * static_cast<std::size_t>(ranks - 1);
}

std::uint64_t MpiAllReduce::two_shot(const AllReduceJob& job) {
  const int ranks = comm_.size(), me = comm_.rank();
  const std::int64_t width = slice_width(job.count, ranks);
  const auto slice = [&](std::int64_t r) {
    return Range{std::min(r * width, job.count), std::min((r + 1) * width, job.count)};
  };
  const std::size_t bytes = message_bytes(parts_ * width);
  for (int r = 0; r < ranks; r++)
    if (r != me) pack(job, slice(r), to_send(r, bytes));
  std::uint64_t sent = exchange_with_all(bytes, true);

  const Range mine = slice(me);
  point_at_parts(job, mine, mine.size(), bytes);
  // The parts have been sent, so the sum may overwrite them.
  if (mine.size() > 0)
    backend_.tree_sum(all_, mine.size(), job.scale, offset(job.add_to, mine.begin), job.out + mine.begin);
  sends_.clear();
  receives_.clear();
  for (int distance = 1; distance < ranks; distance++) {
    const int to = (me + distance) % ranks, from = (me + ranks - distance) % ranks;
    if (mine.size() > 0) sends_.push_back({to, job.out + mine.begin, value_bytes(mine.size())});
    if (const Range theirs = slice(from); theirs.size() > 0)
      receives_.push_back({from, job.out + theirs.begin, value_bytes(theirs.size())});
    sent += value_bytes(mine.size());
  }
  comm_.exchange(sends_, receives_);
  return sent;
}

}  // namespace ptrt
