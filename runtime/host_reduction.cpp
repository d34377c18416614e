#include "runtime/host_reduction.h"

#include <algorithm>
#include <cstring>

#include "kernels/error.h"
#include "runtime/fault.h"

namespace ptrt {
namespace {

// From this many bytes a rank, adding slices and gathering the sums moves less than sending everything to
// everyone.
constexpr std::size_t kSliceBytes = 128 * 1024;

static_assert(sizeof(StepHeader) % alignof(float) == 0);

std::int64_t slice_width(std::int64_t count, int ranks) {
  return (count + ranks - 1) / ranks;
}

double seconds(std::int64_t ns) {
  return 1e-9 * static_cast<double>(ns);
}

}  // namespace

HostReduction::HostReduction(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                             std::int64_t max_values)
    : comm_(comm), backend_(backend), state_(state), parts_per_rank_(parts), offsets_(comm) {
  all_.resize(static_cast<std::size_t>(parts * comm.size()));
  if (comm.size() == 1) return;
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto values = static_cast<std::size_t>(parts * max_values);
  const std::size_t whole = sizeof(StepHeader) + values * sizeof(float);
  // Slices round up to whole elements a rank and part.
  const std::size_t sliced =
      values * sizeof(float) + ranks * (sizeof(StepHeader) + sizeof(float) * all_.size());
  send_.resize(std::max(whole, sliced));
  recv_.resize(ranks * std::max(whole, sliced));
}

void HostReduction::sum(std::span<const float* const> local, std::int64_t count, float scale,
                        const float* add_to, float* out) {
  fault_point("sync");
  const std::int64_t start = now_ns();
  const Job job{local, count, scale, add_to, out};
  PTRT_CHECK(static_cast<std::int64_t>(local.size()) == parts_per_rank_ || comm_.size() == 1);
  if (comm_.size() == 1) {
    backend_.tree_sum(local, count, scale, add_to, out);
  } else {
    state_.header.sum = ++sums_;
    header_ = state_.header;
    header_.sent_ns = last_sent_ns_ = start;
    const std::size_t bytes = static_cast<std::size_t>(parts_per_rank_ * count) * sizeof(float);
    if (comm_.size() > 2 && bytes >= kSliceBytes)
      exchange_slices(job);
    else
      exchange_whole(job);
  }
  const std::int64_t end = now_ns();
  stats_.sync_points++;
  stats_.seconds += seconds(end - start);
  stats_.wait_seconds += seconds(std::clamp<std::int64_t>(last_sent_ns_ - start, 0, end - start));
}

// Every rank gets every part and adds them all: one hop.
void HostReduction::exchange_whole(const Job& job) {
  const auto part_bytes = static_cast<std::size_t>(job.count) * sizeof(float);
  const std::size_t bytes = sizeof header_ + static_cast<std::size_t>(parts_per_rank_) * part_bytes;
  std::memcpy(send_.data(), &header_, sizeof header_);
  for (std::size_t p = 0; p < job.local.size(); p++)
    std::memcpy(send_.data() + sizeof header_ + p * part_bytes, job.local[p], part_bytes);
  comm_.all_gather(send_.data(), recv_.data(), bytes);
  stats_.bytes_sent += bytes * static_cast<std::size_t>(comm_.size() - 1);
  take_headers(bytes);
  for (std::int64_t r = 0; r < comm_.size(); r++)
    for (std::int64_t p = 0; p < parts_per_rank_; p++)
      all_[static_cast<std::size_t>(r * parts_per_rank_ + p)] =
          reinterpret_cast<const float*>(message(recv_, r, bytes) + sizeof header_) + p * job.count;
  backend_.tree_sum(all_, job.count, job.scale, job.add_to, job.out);
}

// Every rank adds one slice of all parts, then the sums are gathered.
void HostReduction::exchange_slices(const Job& job) {
  const int ranks = comm_.size();
  const std::int64_t width = slice_width(job.count, ranks);
  const auto slice_bytes = static_cast<std::size_t>(width) * sizeof(float);
  const std::size_t bytes = sizeof header_ + static_cast<std::size_t>(parts_per_rank_) * slice_bytes;
  const auto slice_count = [&](std::int64_t rank) {
    return std::clamp<std::int64_t>(job.count - rank * width, 0, width);
  };
  for (std::int64_t r = 0; r < ranks; r++) {
    std::byte* to = message(send_, r, bytes);
    std::memcpy(to, &header_, sizeof header_);
    for (std::size_t p = 0; p < job.local.size(); p++)
      if (slice_count(r) > 0)
        std::memcpy(to + sizeof header_ + p * slice_bytes, job.local[p] + r * width,
                    static_cast<std::size_t>(slice_count(r)) * sizeof(float));
  }
  comm_.all_to_all(send_.data(), recv_.data(), bytes);
  take_headers(bytes);
  for (std::int64_t r = 0; r < ranks; r++)
    for (std::int64_t p = 0; p < parts_per_rank_; p++)
      all_[static_cast<std::size_t>(r * parts_per_rank_ + p)] =
          reinterpret_cast<const float*>(message(recv_, r, bytes) + sizeof header_) + p * width;

  const std::int64_t mine = slice_count(comm_.rank()), first = comm_.rank() * width;
  auto* sum = reinterpret_cast<float*>(send_.data());
  if (mine > 0)
    backend_.tree_sum(all_, mine, job.scale, job.add_to != nullptr ? job.add_to + first : nullptr, sum);
  comm_.all_gather(sum, recv_.data(), slice_bytes);
  for (std::int64_t r = 0; r < ranks; r++)
    if (slice_count(r) > 0)
      std::memcpy(job.out + r * width, message(recv_, r, slice_bytes),
                  static_cast<std::size_t>(slice_count(r)) * sizeof(float));
  stats_.bytes_sent += (bytes + slice_bytes) * static_cast<std::size_t>(ranks - 1);
}

std::byte* HostReduction::message(std::vector<std::byte>& buffer, std::int64_t index,
                                  std::size_t message_bytes) const {
  return buffer.data() + static_cast<std::size_t>(index) * message_bytes;
}

void HostReduction::take_headers(std::size_t message_bytes) {
  for (int r = 0; r < comm_.size(); r++) {
    StepHeader other;
    std::memcpy(&other, message(recv_, r, message_bytes), sizeof other);
    check_header(header_, comm_.rank(), other, r);
    if (r == 0) state_.header.flags = other.flags;
    last_sent_ns_ = std::max(last_sent_ns_, offsets_.to_mine(r, other.sent_ns));
  }
}

}  // namespace ptrt
