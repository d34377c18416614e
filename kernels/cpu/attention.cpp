#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/simd-inl.h"

#ifndef PTRT_KERNELS_CPU_ATTENTION_ONCE_
#define PTRT_KERNELS_CPU_ATTENTION_ONCE_
namespace ptrt {

inline constexpr std::int64_t kMaxBlockRows = 16;
inline constexpr std::int64_t kPaddedLanes = 64;  // head_dim is padded to a multiple of any vector

// One task: the queries of one block of rows that share a KV head, query = row · group + head within the
// group.
struct AttentionTask {
  const AttentionShape* shape;
  const Tensor *q, *out;
  const StepRows* step;
  const KvPool* kv;
  std::int64_t layer, track, kv_head, first_row, rows;

  std::int64_t group() const { return shape->heads / shape->kv_heads; }
  std::int64_t queries() const { return rows * group(); }
  std::int64_t padded_dim() const {
    return (shape->head_dim + kPaddedLanes - 1) / kPaddedLanes * kPaddedLanes;
  }
  std::int64_t last_position() const {
    return step->positions[static_cast<std::size_t>(first_row + rows - 1)];
  }
  std::int64_t position(std::int64_t row) const {
    return step->positions[static_cast<std::size_t>(first_row + row)];
  }
  std::int64_t first_visible(std::int64_t row) const {
    return shape->window == 0 ? 0 : std::max<std::int64_t>(0, position(row) - shape->window + 1);
  }
  // Offset of a query's head in the rows of q and out.
  std::int64_t head_offset(std::int64_t query) const {
    return (kv_head * group() + query % group()) * shape->head_dim;
  }
};

// Running state of a task's queries, in a worker's scratch.
struct AttentionScratch {
  float* q;        // [queries, padded_dim], zeros behind head_dim
  float* acc;      // [queries, padded_dim]  Σ weight · value so far
  float* weights;  // [queries, kPageTokens] scores, then softmax weights of the current page
  float* max;      // [queries]              largest score so far
  float* sum;      // [queries]              Σ weight so far
  float* rescale;  // [queries]              what the page's new maximum makes of the old sums

  static std::int64_t floats(std::int64_t queries, std::int64_t padded_dim) {
    return queries * (2 * padded_dim + kPageTokens + 3);
  }
  static AttentionScratch at(float* base, std::int64_t queries, std::int64_t padded_dim) {
    AttentionScratch s{};
    s.q = base;
    s.acc = s.q + queries * padded_dim;
    s.weights = s.acc + queries * padded_dim;
    s.max = s.weights + queries * kPageTokens;
    s.sum = s.max + queries;
    s.rescale = s.sum + queries;
    return s;
  }
};

// The tokens of the current page that a row sees: [begin, end) within the page.
struct VisibleTokens {
  std::int64_t begin = 0, end = 0;
  bool operator==(const VisibleTokens&) const = default;
};

}  // namespace ptrt
#endif

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kTileQueries = 4;
#else
constexpr int kTileQueries = 2;
#endif
constexpr int kTileVectors = 4;  // vectors of a value row that a tile keeps in registers
constexpr std::int64_t kPageVectors = kPageTokens / kLanes;

// Scores of kQueries queries with four tokens: weights[query][0..4) = scale · q[query] · k[token].
template <int kQueries>
HWY_INLINE void score_tile(const float* q, std::int64_t padded_dim, const float* k, std::int64_t head_dim,
                           float scale, float* weights) {
  FloatVec acc[kQueries][4];
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int t = 0; t < 4; ++t) acc[i][t] = hn::Zero(kFloats);
  }
  const auto step = [&](std::int64_t j, auto load) HWY_ATTR {
    FloatVec kv[4];
    PTRT_UNROLL
    for (int t = 0; t < 4; ++t) kv[t] = load(k + t * head_dim + j);
    PTRT_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const FloatVec qv = hn::LoadU(kFloats, q + i * padded_dim + j);
      PTRT_UNROLL
      for (int t = 0; t < 4; ++t) acc[i][t] = hn::MulAdd(qv, kv[t], acc[i][t]);
    }
  };
  const std::int64_t whole = whole_vectors(head_dim);
  for (std::int64_t j = 0; j < whole; j += kLanes)
    step(j, [](const float* from) HWY_ATTR { return hn::LoadU(kFloats, from); });
  if (whole < head_dim)
    step(whole, [left = head_dim - whole](const float* from) HWY_ATTR { return load_part(from, left); });
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i)
    hn::StoreU(hn::Mul(sum_lanes_of_four(acc[i][0], acc[i][1], acc[i][2], acc[i][3]), hn::Set(kQuad, scale)),
               kQuad, weights + i * kPageTokens);
}

// acc[query][0..kVectors · kLanes) = rescale · acc + Σ_token weight · value, tokens ascending.
template <int kQueries, int kVectors, class Load>
HWY_INLINE void value_tile(const AttentionScratch& s, std::int64_t query, std::int64_t padded_dim,
                           std::int64_t j, const float* v, std::int64_t head_dim, VisibleTokens seen,
                           const Load& load) {
  FloatVec acc[kQueries][kVectors];
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c)
      acc[i][c] = hn::Mul(hn::LoadU(kFloats, s.acc + (query + i) * padded_dim + j + c * kLanes),
                          hn::Set(kFloats, s.rescale[query + i]));
  }
  for (std::int64_t t = seen.begin; t < seen.end; ++t) {
    FloatVec values[kVectors];
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c) values[c] = load(v + t * head_dim + j + c * kLanes);
    PTRT_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const FloatVec weight = hn::Set(kFloats, s.weights[(query + i) * kPageTokens + t]);
      PTRT_UNROLL
      for (int c = 0; c < kVectors; ++c) acc[i][c] = hn::MulAdd(weight, values[c], acc[i][c]);
    }
  }
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c)
      hn::StoreU(acc[i][c], kFloats, s.acc + (query + i) * padded_dim + j + c * kLanes);
  }
}

template <int kQueries>
HWY_INLINE void add_values(const AttentionScratch& s, std::int64_t query, std::int64_t padded_dim,
                           const float* v, std::int64_t head_dim, VisibleTokens seen) {
  const auto load = [](const float* from) HWY_ATTR { return hn::LoadU(kFloats, from); };
  std::int64_t j = 0;
  for (; j + kTileVectors * kLanes <= head_dim; j += kTileVectors * kLanes)
    value_tile<kQueries, kTileVectors>(s, query, padded_dim, j, v, head_dim, seen, load);
  for (; j + kLanes <= head_dim; j += kLanes)
    value_tile<kQueries, 1>(s, query, padded_dim, j, v, head_dim, seen, load);
  if (j < head_dim)
    value_tile<kQueries, 1>(s, query, padded_dim, j, v, head_dim, seen,
                            [left = head_dim - j](const float* from)
                                HWY_ATTR { return load_part(from, left); });
}

// Turns the scores of one query into softmax weights and updates its maximum, sum and rescale factor.
HWY_INLINE void update_softmax(const AttentionScratch& s, std::int64_t query, VisibleTokens seen) {
  float* weights = s.weights + query * kPageTokens;
  const float lowest = -std::numeric_limits<float>::infinity();
  std::fill(weights, weights + seen.begin, lowest);
  std::fill(weights + seen.end, weights + kPageTokens, lowest);
  FloatVec largest = hn::Set(kFloats, s.max[query]);
  for (std::int64_t i = 0; i < kPageVectors; ++i)
    largest = hn::Max(largest, hn::LoadU(kFloats, weights + i * kLanes));
  const float new_max = max_lanes(largest);
  FloatVec sum = hn::Zero(kFloats);
  for (std::int64_t i = 0; i < kPageVectors; ++i) {
    float* at = weights + i * kLanes;
    const FloatVec weight = exp_nonpositive(hn::Sub(hn::LoadU(kFloats, at), hn::Set(kFloats, new_max)));
    hn::StoreU(weight, kFloats, at);
    sum = hn::Add(sum, weight);
  }
  const float rescale =
      new_max == s.max[query] ? 1.0f : hn::GetLane(exp_nonpositive(hn::Set(kFloats, s.max[query] - new_max)));
  s.rescale[query] = rescale;
  s.sum[query] = s.sum[query] * rescale + sum_lanes(sum);
  s.max[query] = new_max;
}

template <int kQueries = kTileQueries>
HWY_INLINE void score_queries(std::int64_t queries, const float* q, std::int64_t padded_dim, const float* k,
                              std::int64_t head_dim, float scale, float* weights) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries)
      return score_queries<kQueries - 1>(queries, q, padded_dim, k, head_dim, scale, weights);
  }
  score_tile<kQueries>(q, padded_dim, k, head_dim, scale, weights);
}

// All queries of the task with one page; `seen` by row.
void attend_page(const AttentionTask& task, const AttentionScratch& s, const float* k, const float* v,
                 const VisibleTokens* seen) {
  const std::int64_t head_dim = task.shape->head_dim, padded_dim = task.padded_dim();
  const std::int64_t queries = task.queries(), group = task.group();
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

  std::int64_t begin = kPageTokens, end = 0;  // what any row sees
  for (std::int64_t row = 0; row < task.rows; ++row) {
    if (seen[row].begin >= seen[row].end) continue;
    begin = std::min(begin, seen[row].begin);
    end = std::max(end, seen[row].end);
  }
  for (std::int64_t t = begin / 4 * 4; t < end; t += 4)
    for (std::int64_t query = 0; query < queries; query += kTileQueries)
      score_queries(std::min<std::int64_t>(queries - query, kTileQueries), s.q + query * padded_dim,
                    padded_dim, k + t * head_dim, head_dim, scale, s.weights + query * kPageTokens + t);

  for (std::int64_t query = 0; query < queries; ++query)
    if (const VisibleTokens& tokens = seen[query / group]; tokens.begin < tokens.end)
      update_softmax(s, query, tokens);

  for (std::int64_t query = 0; query < queries;) {
    const VisibleTokens& tokens = seen[query / group];
    const bool whole_tile = query + kTileQueries <= queries &&
                            std::all_of(seen + query / group, seen + (query + kTileQueries - 1) / group + 1,
                                        [&](const VisibleTokens& other) { return other == tokens; });
    if (tokens.begin < tokens.end) {
      if (whole_tile) {
        add_values<kTileQueries>(s, query, padded_dim, v, head_dim, tokens);
      } else {
        add_values<1>(s, query, padded_dim, v, head_dim, tokens);
      }
    }
    query += whole_tile ? kTileQueries : 1;
  }
}

void attend(const AttentionTask& task, float* scratch) {
  const std::int64_t head_dim = task.shape->head_dim, padded_dim = task.padded_dim(),
                     queries = task.queries();
  const AttentionScratch s = AttentionScratch::at(scratch, queries, padded_dim);
  std::fill(s.q, s.weights, 0.0f);  // q and acc
  std::fill(s.max, s.sum, -std::numeric_limits<float>::infinity());
  std::fill(s.sum, s.rescale, 0.0f);
  for (std::int64_t query = 0; query < queries; ++query)
    std::copy_n(task.q->row(task.track, task.first_row + query / task.group()) + task.head_offset(query),
                head_dim, s.q + query * padded_dim);

  const std::int64_t last_page = task.last_position() / kPageTokens;
  for (std::int64_t index = task.first_visible(0) / kPageTokens; index <= last_page; ++index) {
    VisibleTokens seen[kMaxBlockRows];
    const std::int64_t base = index * kPageTokens;
    for (std::int64_t row = 0; row < task.rows; ++row)
      seen[row] = {std::clamp<std::int64_t>(task.first_visible(row) - base, 0, kPageTokens),
                   std::clamp<std::int64_t>(task.position(row) + 1 - base, 0, kPageTokens)};
    const std::int64_t page = task.step->page(task.first_row, index);
    attend_page(task, s, task.kv->keys<float>(task.track, task.layer, page, task.kv_head),
                task.kv->values<float>(task.track, task.layer, page, task.kv_head), seen);
  }

  for (std::int64_t query = 0; query < queries; ++query) {
    float* to = task.out->row(task.track, task.first_row + query / task.group()) + task.head_offset(query);
    const float* acc = s.acc + query * padded_dim;
    const float sum = s.sum[query];
    const std::int64_t whole = whole_vectors(head_dim);
    for (std::int64_t j = 0; j < whole; j += kLanes)
      hn::StoreU(hn::Div(hn::LoadU(kFloats, acc + j), hn::Set(kFloats, sum)), kFloats, to + j);
    for (std::int64_t j = whole; j < head_dim; ++j) to[j] = acc[j] / sum;
  }
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/error.h"

namespace ptrt {
namespace {

HWY_EXPORT(attend);

constexpr std::int64_t kBlockQueries = 16;

}  // namespace

void Attention::make_blocks(const StepRows& rows, std::int64_t count, std::int64_t max_rows) {
  blocks_.clear();
  for (std::int64_t r = 0; r < count; ++r) {
    const auto i = static_cast<std::size_t>(r);
    const bool follows = r > 0 && blocks_.back().rows < max_rows && rows.slots[i] == rows.slots[i - 1] &&
                         rows.positions[i] == rows.positions[i - 1] + 1;
    if (follows) {
      ++blocks_.back().rows;
    } else {
      blocks_.push_back({r, 1});
    }
  }
}

void Attention::run(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer,
                    const KvPool& kv, Tensor out) {
  PTRT_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0);
  PTRT_CHECK(q.width == shape.heads * shape.head_dim && out.width == q.width && out.rows == q.rows);
  PTRT_CHECK(kv.kv_heads == shape.kv_heads && kv.head_dim == shape.head_dim && kv.tracks == q.tracks);

  AttentionTask base{&shape, &q, &out, &rows, &kv, layer, 0, 0, 0, 0};
  const std::int64_t group = base.group();
  const std::int64_t max_rows = std::clamp<std::int64_t>(kBlockQueries / group, 1, kMaxBlockRows);
  make_blocks(rows, q.rows, max_rows);
  const std::int64_t scratch_floats = AttentionScratch::floats(max_rows * group, base.padded_dim());
  const std::int64_t worker_floats = (scratch_floats + kPaddedLanes - 1) / kPaddedLanes * kPaddedLanes;
  float* scratch = scratch_.reserve(worker_floats * pool_.threads());

  const auto blocks = static_cast<std::int64_t>(blocks_.size());
  const auto run_task = HWY_DYNAMIC_DISPATCH(attend);
  pool_.parallel_for(q.tracks * shape.kv_heads * blocks, [&](std::int64_t i, int worker) {
    AttentionTask task = base;
    const RowBlock& block = blocks_[static_cast<std::size_t>(i % blocks)];
    task.first_row = block.first;
    task.rows = block.rows;
    task.kv_head = i / blocks % shape.kv_heads;
    task.track = i / blocks / shape.kv_heads;
    run_task(task, scratch + worker * worker_floats);
  });
}

}  // namespace ptrt
#endif  // HWY_ONCE
