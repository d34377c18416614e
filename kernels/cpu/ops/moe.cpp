#include "kernels/cpu/ops/moe.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "kernels/cpu/ops/elementwise.h"

namespace ptrt {
namespace {

template <typename T>
void grow(std::vector<T>& v, std::int64_t size) {
  if (v.size() < static_cast<std::size_t>(size)) v.resize(static_cast<std::size_t>(size));
}

}  // namespace

void route_row(std::span<float> logits, float cap, bool normalize, std::span<ExpertChoice> chosen) {
  float zeros = 0;  // NaN where a logit is not finite: then all weights are, whatever is chosen
  for (float& logit : logits) {
    zeros += 0.0f * logit;
    if (cap != 0) logit = cap * std::tanh(logit / cap);
  }
  // Insertion into the sorted prefix: a later logit must be larger to go before an earlier one.
  std::size_t count = 0;
  for (std::size_t expert = 0; expert < logits.size(); ++expert) {
    std::size_t place = count;
    while (place > 0 && logits[expert] > chosen[place - 1].weight) --place;
    if (place == chosen.size()) continue;
    count = std::min(count + 1, chosen.size());
    std::move_backward(chosen.begin() + static_cast<std::ptrdiff_t>(place),
                       chosen.begin() + static_cast<std::ptrdiff_t>(count - 1),
                       chosen.begin() + static_cast<std::ptrdiff_t>(count));
    chosen[place] = {static_cast<std::int32_t>(expert), logits[expert]};
  }
  const float largest = chosen.front().weight;
  float sum = zeros;
  if (!normalize)
    for (const float logit : logits) sum += std::exp(logit - largest);
  for (ExpertChoice& choice : chosen) {
    choice.weight = std::exp(choice.weight - largest);
    if (normalize) sum += choice.weight;
  }
  for (ExpertChoice& choice : chosen) choice.weight /= sum;
}

void Moe::run(const MoeJob& job) {
  const MoeShape& shape = job.shape;
  PTRT_CHECK(shape.top_k >= 1 && shape.top_k <= shape.experts);
  PTRT_CHECK(job.gate_out.rows == job.x.rows * shape.top_k && job.gate_out.width == shape.ffn_size);
  PTRT_CHECK(job.up_out.rows == job.gate_out.rows && job.up_out.width == shape.ffn_size);
  PTRT_CHECK(job.expert_out.rows == job.gate_out.rows && job.expert_out.width == job.x.width);
  PTRT_CHECK(job.router_logits.rows == job.x.rows && job.router_logits.width == shape.experts);
  PTRT_CHECK(job.y.rows == job.x.rows && job.y.width == job.x.width);

  route(job);
  group_by_expert(job);

  // One product for each matrix and each expert that has rows; `in` and `out` rows given by index.
  const auto add_products = [&](const TrackWeights& weights, Tensor x, const std::int32_t* x_rows, Tensor y) {
    for (std::int64_t t = 0; t < y.tracks; ++t) {
      const Weight& w = weights[static_cast<std::size_t>(t)];
      PTRT_CHECK(w.packed && w.count == shape.experts && w.in == x.width && w.out == y.width);
      const PackedLayout layout = packed_layout(w);
      const std::int32_t* begins = expert_begin_.data() + t * (shape.experts + 1);
      for (std::int64_t e = 0; e < shape.experts; ++e) {
        const std::int64_t first = t * y.rows + begins[e];
        if (begins[e] == begins[e + 1]) continue;
        products_.push_back({.layout = layout,
                             .matrix = static_cast<const std::byte*>(w.data) + e * layout.matrix_bytes(),
                             .rows = begins[e + 1] - begins[e],
                             .x = x.row(t, 0),
                             .x_height = x.rows,
                             .y = y.row(t, 0),
                             .x_rows = x_rows + first,
                             .y_rows = slot_rows_.data() + first});
      }
    }
  };
  products_.clear();
  add_products(*job.gate, job.x, source_rows_.data(), job.gate_out);
  add_products(*job.up, job.x, source_rows_.data(), job.up_out);
  matmul_.run(products_);
  glu(pool_, shape.activation, job.gate_out, job.up_out);
  products_.clear();
  add_products(*job.down, job.gate_out, slot_rows_.data(), job.expert_out);
  matmul_.run(products_);
  combine(job);
}

void Moe::route(const MoeJob& job) {
  const Tensor& logits = job.router_logits;
  products_.clear();
  for (std::int64_t t = 0; t < logits.tracks; ++t) {
    const Weight& w = (*job.router)[static_cast<std::size_t>(t)];
    PTRT_CHECK(w.packed && w.in == job.x.width && w.out == job.shape.experts);
    products_.push_back({.layout = packed_layout(w),
                         .matrix = static_cast<const std::byte*>(w.data),
                         .exact = true,
                         .rows = job.x.rows,
                         .x = job.x.row(t, 0),
                         .x_height = job.x.rows,
                         .y = logits.row(t, 0)});
  }
  matmul_.run(products_);

  const std::int64_t items = logits.tracks * logits.rows, top_k = job.shape.top_k;
  grow(choices_, items * top_k);
  constexpr std::int64_t kRowsPerTask = 32;
  pool_.parallel_for((items + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
    const std::int64_t end = std::min((task + 1) * kRowsPerTask, items);
    for (std::int64_t i = task * kRowsPerTask; i < end; ++i)
      route_row({logits.row(i / logits.rows, i % logits.rows), static_cast<std::size_t>(logits.width)},
                job.shape.router_logit_cap, job.shape.normalize_top_k,
                {choices_.data() + i * top_k, static_cast<std::size_t>(top_k)});
  });
}

// Counting sort of the slots of each track by expert; rows stay in ascending order within an
// expert.
void Moe::group_by_expert(const MoeJob& job) {
  const std::int64_t experts = job.shape.experts, top_k = job.shape.top_k;
  const std::int64_t slots = job.x.rows * top_k, tracks = job.router_logits.tracks;
  grow(slot_rows_, tracks * slots);
  grow(source_rows_, tracks * slots);
  grow(expert_begin_, tracks * (experts + 1));
  for (std::int64_t t = 0; t < tracks; ++t) {
    const ExpertChoice* choices = choices_.data() + t * slots;
    std::int32_t* begin = expert_begin_.data() + t * (experts + 1);
    std::fill(begin, begin + experts + 1, 0);
    for (std::int64_t slot = 0; slot < slots; ++slot) ++begin[choices[slot].expert + 1];
    for (std::int64_t e = 0; e < experts; ++e) begin[e + 1] += begin[e];
    // Filling moves each begin to its end, which is the next one's begin: shift back afterwards.
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const std::int64_t place = t * slots + begin[choices[slot].expert]++;
      slot_rows_[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(slot);
      source_rows_[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(slot / top_k);
    }
    std::copy_backward(begin, begin + experts, begin + experts + 1);
    begin[0] = 0;
  }
}

void Moe::combine(const MoeJob& job) {
  const std::int64_t items = job.y.tracks * job.y.rows, top_k = job.shape.top_k, width = job.y.width;
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, 8 * 1024 / (width * top_k));
  pool_.parallel_for((items + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
    const std::int64_t end = std::min((task + 1) * rows_per_task, items);
    for (std::int64_t i = task * rows_per_task; i < end; ++i) {
      const std::int64_t t = i / job.y.rows, r = i % job.y.rows;
      float* y = job.y.row(t, r);
      std::fill(y, y + width, 0.0f);
      for (std::int64_t slot = 0; slot < top_k; ++slot) {
        const float weight = choices_[static_cast<std::size_t>(i * top_k + slot)].weight;
        const float* expert_row = job.expert_out.row(t, r * top_k + slot);
        for (std::int64_t j = 0; j < width; ++j) y[j] += weight * expert_row[j];
      }
    }
  });
}

}  // namespace ptrt
