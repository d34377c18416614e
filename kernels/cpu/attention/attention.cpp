#include "kernels/cpu/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention/attention.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/attention/attention-inl.h"
#include "kernels/cpu/attention/attention_avx512.h"

#ifndef PTRT_KERNELS_CPU_ATTENTION_ONCE_
#define PTRT_KERNELS_CPU_ATTENTION_ONCE_
namespace ptrt {

// The inputs of attention's products: float32, float32 rounded to bfloat16, or bfloat16 pairs for
// the processor's own instruction.
enum class AttentionInputs : std::uint8_t { exact, rounded, pairs };

// The queries of one block of rows that share a KV head, query = row · group + head within the
// group.
struct AttentionTask {
  const AttentionShape* shape;
  const Tensor *q, *out;
  const StepRows* step;
  const KvPool* kv;
  AttentionInputs inputs;
  std::int64_t layer, track, kv_head, first_row, rows;

  std::int64_t group() const { return shape->heads / shape->kv_heads; }
  std::int64_t queries() const { return rows * group(); }
  std::int64_t position(std::int64_t row) const {
    return step->positions[static_cast<std::size_t>(first_row + row)];
  }
  std::int64_t last_position() const { return position(rows - 1); }
  std::int64_t first_visible(std::int64_t row) const {
    return shape->window == 0 ? 0 : std::max<std::int64_t>(0, position(row) - shape->window + 1);
  }
  std::int64_t first_piece() const { return first_visible(0) / kPieceTokens; }
  std::int64_t end_piece() const { return last_position() / kPieceTokens + 1; }
  bool sees(std::int64_t row, std::int64_t piece) const {
    return first_visible(row) < (piece + 1) * kPieceTokens && position(row) >= piece * kPieceTokens;
  }
  // A query's head in a tensor [tracks, rows, heads · head_dim].
  float* head(const Tensor& tensor, std::int64_t query) const {
    return tensor.row(track, first_row + query / group()) +
           (kv_head * group() + query % group()) * shape->head_dim;
  }
};

// The running softmax of a task's queries over one piece, or over all pieces so far.
struct AttentionState {
  std::int64_t stride;  // head_dim, rounded up to whole vectors
  float* acc;           // [queries, stride]     Σ weight · value
  float* sums;          // [queries, kSumLanes]  Σ weight, lane by lane; once merged all in the first lane
  float* max;           // [queries]             the largest score

  static std::int64_t stride_of(std::int64_t head_dim) {
    return (head_dim + kSumLanes - 1) / kSumLanes * kSumLanes;
  }
  // A multiple of kSumLanes.
  static std::int64_t floats(std::int64_t queries, std::int64_t head_dim) {
    return queries * (stride_of(head_dim) + kSumLanes) + (queries + kSumLanes - 1) / kSumLanes * kSumLanes;
  }
  static AttentionState at(float* base, std::int64_t queries, std::int64_t head_dim) {
    const std::int64_t stride = stride_of(head_dim);
    float* sums = base + queries * stride;
    return {stride, base, sums, sums + queries * kSumLanes};
  }
  void clear(std::int64_t queries) const {
    std::fill(acc, max, 0.0f);
    std::fill(max, max + queries, -std::numeric_limits<float>::infinity());
  }
};

// A worker's scratch: the queries of a task, scaled, as its kernel takes them, then two states.
struct AttentionScratch {
  static std::int64_t packed_floats(std::int64_t queries, std::int64_t head_dim) {
    const std::int64_t tiles = (queries + kTileQueries - 1) / kTileQueries;
    return (tiles * kTileQueries * head_dim + kSumLanes - 1) / kSumLanes * kSumLanes;
  }
  static std::int64_t floats(std::int64_t queries, std::int64_t head_dim) {
    return packed_floats(queries, head_dim) + 2 * AttentionState::floats(queries, head_dim);
  }
};

}  // namespace ptrt
#endif

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

// For attend_tile_avx512() as words, else for attend_queries() [tile][head_dim][kTileQueries].
void pack_queries(const AttentionTask& task, float* packed) {
  const std::int64_t head_dim = task.shape->head_dim;
  const float scale = task.shape->query_scale();
  if (task.inputs == AttentionInputs::pairs) {
    auto* words = reinterpret_cast<std::uint32_t*>(packed);
    for (std::int64_t query = 0; query < task.queries(); ++query, words += query_words(head_dim))
      round_query_avx512(task.head(*task.q, query), head_dim, scale, words);
    return;
  }
  for (std::int64_t query = 0; query < task.queries(); ++query) {
    const float* from = task.head(*task.q, query);
    float* to = packed + query / kTileQueries * kTileQueries * head_dim + query % kTileQueries;
    for (std::int64_t j = 0; j < head_dim; ++j) to[j * kTileQueries] = from[j] * scale;
  }
  if (task.inputs == AttentionInputs::exact) return;
  const std::int64_t floats = AttentionScratch::packed_floats(task.queries(), head_dim);
  for (std::int64_t i = 0; i < floats; i += kLanes)
    hn::StoreU(round_to_bfloat16(hn::LoadU(kFloats, packed + i)), kFloats, packed + i);
}

// The pages of the span that begins at token `base`. Where no row of the task sees a page, a
// visible one is given instead: it is masked, but must be readable.
template <typename T>
SpanPages<T> pages_of_span(const AttentionTask& task, std::int64_t base) {
  const std::int64_t first = task.first_visible(0) / kPageTokens, last = task.last_position() / kPageTokens;
  SpanPages<T> span;
  for (std::int64_t p = 0; p < kSpanPages; ++p) {
    const std::int64_t page =
        task.step->page(task.first_row, std::clamp(base / kPageTokens + p, first, last));
    span.keys[p] = task.kv->keys<T>(task.track, task.layer, page, task.kv_head);
    span.values[p] = task.kv->values<T>(task.track, task.layer, page, task.kv_head);
  }
  span.pages = std::min(kSpanPages, last + 1 - base / kPageTokens);
  return span;
}

// Tile by tile; attend_tile(first query, queries, span, tokens seen, state) computes one.
template <typename T, class AttendTile>
void attend_spans(const AttentionTask& task, std::int64_t begin, std::int64_t end,
                  const AttentionState& state, const AttendTile& attend_tile) {
  const std::int64_t group = task.group(), queries = task.queries();
  SpanPages<T> span = pages_of_span<T>(task, begin), next{};
  for (std::int64_t base = begin; base < end; base += kSpanTokens, span = next) {
    bool fetches = base + kSpanTokens < end;
    if (fetches) next = pages_of_span<T>(task, base + kSpanTokens);
    for (std::int64_t query = 0; query < queries; query += kTileQueries) {
      const std::int64_t count = std::min<std::int64_t>(kTileQueries, queries - query);
      TokenRange seen[kTileQueries];
      bool any = false;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t row = (query + i) / group;
        seen[i] = {std::clamp<std::int64_t>(task.first_visible(row) - base, 0, kSpanTokens),
                   std::clamp<std::int64_t>(task.position(row) + 1 - base, 0, kSpanTokens)};
        any = any || !seen[i].empty();
      }
      if (!any) continue;
      span.next_keys = fetches ? next.keys : nullptr;
      span.next_values = fetches ? next.values : nullptr;
      const TileState tile{state.acc + query * state.stride, state.sums + query * kSumLanes,
                           state.max + query, state.stride};
      attend_tile(query, count, span, seen, tile);
      fetches = false;  // once for all tiles
    }
  }
}

// One piece from an empty state on.
void attend_piece(const AttentionTask& task, std::int64_t piece, const float* packed,
                  const AttentionState& state) {
  state.clear(task.queries());
  const std::int64_t begin =
      std::max(piece * kPieceTokens, task.first_visible(0) / kSpanTokens * kSpanTokens);
  const std::int64_t end = std::min((piece + 1) * kPieceTokens, task.last_position() + 1);
  const std::int64_t head_dim = task.shape->head_dim;
  const auto in_float32 = [&]<typename T>(std::int64_t query, std::int64_t count, const SpanPages<T>& span,
                                          const TokenRange* seen, const TileState& tile) HWY_ATTR {
    attend_queries(count, packed + query * head_dim, head_dim, span, seen,
                   task.inputs == AttentionInputs::rounded, tile);
  };
  const auto in_pairs = [&](std::int64_t query, std::int64_t count, const SpanPages<std::uint16_t>& span,
                            const TokenRange* seen, const TileState& tile) {
    const auto* words = reinterpret_cast<const std::uint32_t*>(packed) + query * query_words(head_dim);
    attend_tile_avx512(count, words, head_dim, span, seen, tile);
  };
  if (task.inputs == AttentionInputs::pairs)
    attend_spans<std::uint16_t>(task, begin, end, state, in_pairs);
  else if (task.kv->dtype == DType::bfloat16)
    attend_spans<std::uint16_t>(task, begin, end, state, in_float32);
  else
    attend_spans<float>(task, begin, end, state, in_float32);
}

HWY_INLINE float shrink(float max, float new_max) {
  return max == new_max ? 1.0f : hn::GetLane(exp_nonpositive(hn::Set(kFloats, max - new_max)));
}

// Merges a piece into the state of the pieces before it, for the queries that see it.
void merge_piece(const AttentionTask& task, std::int64_t piece, const AttentionState& from,
                 const AttentionState& total) {
  for (std::int64_t query = 0; query < task.queries(); ++query) {
    if (!task.sees(query / task.group(), piece)) continue;
    const float max = std::max(total.max[query], from.max[query]);
    const float keep = shrink(total.max[query], max), add = shrink(from.max[query], max);
    float* sum = total.sums + query * kSumLanes;
    *sum = *sum * keep + sum_lanes(hn::LoadU(kFloats, from.sums + query * kSumLanes)) * add;
    total.max[query] = max;
    for (std::int64_t j = query * from.stride; j < (query + 1) * from.stride; j += kLanes) {
      const FloatVec kept = hn::Mul(hn::LoadU(kFloats, total.acc + j), hn::Set(kFloats, keep));
      hn::StoreU(hn::MulAdd(hn::LoadU(kFloats, from.acc + j), hn::Set(kFloats, add), kept), kFloats,
                 total.acc + j);
    }
  }
}

void write_out(const AttentionTask& task, const AttentionState& total) {
  const std::int64_t head_dim = task.shape->head_dim, whole = whole_vectors(head_dim);
  for (std::int64_t query = 0; query < task.queries(); ++query) {
    float* to = task.head(*task.out, query);
    const float* acc = total.acc + query * total.stride;
    const FloatVec sum = hn::Set(kFloats, total.sums[query * kSumLanes]);
    for (std::int64_t j = 0; j < whole; j += kLanes)
      hn::StoreU(hn::Div(hn::LoadU(kFloats, acc + j), sum), kFloats, to + j);
    if (whole < head_dim)
      store_part(hn::Div(hn::LoadU(kFloats, acc + whole), sum), to + whole, head_dim - whole);
  }
}

void attend(const AttentionTask& task, float* scratch) {
  const std::int64_t head_dim = task.shape->head_dim, queries = task.queries();
  float* states = scratch + AttentionScratch::packed_floats(queries, head_dim);
  const AttentionState state = AttentionState::at(states, queries, head_dim);
  const AttentionState total =
      AttentionState::at(states + AttentionState::floats(queries, head_dim), queries, head_dim);
  pack_queries(task, scratch);
  total.clear(queries);
  for (std::int64_t piece = task.first_piece(); piece < task.end_piece(); ++piece) {
    attend_piece(task, piece, scratch, state);
    merge_piece(task, piece, state, total);
  }
  write_out(task, total);
}

// The same in two steps: every piece of a task on its own, then all of them merged.
void attend_one_piece(const AttentionTask& task, std::int64_t piece, float* scratch, float* state) {
  pack_queries(task, scratch);
  attend_piece(task, piece, scratch, AttentionState::at(state, task.queries(), task.shape->head_dim));
}

void merge_pieces(const AttentionTask& task, float* states, float* scratch) {
  const std::int64_t head_dim = task.shape->head_dim, queries = task.queries();
  const AttentionState total = AttentionState::at(scratch, queries, head_dim);
  total.clear(queries);
  for (std::int64_t piece = task.first_piece(); piece < task.end_piece(); ++piece) {
    merge_piece(task, piece, AttentionState::at(states, queries, head_dim), total);
    states += AttentionState::floats(queries, head_dim);
  }
  write_out(task, total);
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/base/error.h"
#include "kernels/cpu/simd/dispatch.h"
#include "kernels/cpu/simd/simd_target.h"

namespace ptrt {
namespace {

PTRT_EXPORT(attend);
PTRT_EXPORT(attend_one_piece);
PTRT_EXPORT(merge_pieces);

constexpr std::int64_t kBlockQueries = 8 * kTileQueries;  // of a task
constexpr std::int64_t kTasksPerThread = 4;               // fewer leave threads without work at the end

AttentionInputs inputs_of(Compute compute, const KvPool& kv) {
  if (compute == Compute::float32 || kv.dtype == DType::float32) return AttentionInputs::exact;
  return kAttentionTakesPairs && simd_target_has_bfloat16() ? AttentionInputs::pairs
                                                            : AttentionInputs::rounded;
}

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
  PTRT_CHECK(kv.kv_heads == shape.kv_heads && kv.head_dim == shape.head_dim && kv.tracks >= q.tracks);
  PTRT_CHECK(kv.dtype == DType::float32 || kv.dtype == DType::bfloat16);

  const AttentionTask base{&shape, &q, &out, &rows, &kv, inputs_of(compute_, kv), layer, 0, 0, 0, 0};
  const std::int64_t group = base.group(), max_rows = std::max<std::int64_t>(1, kBlockQueries / group);
  make_blocks(rows, q.rows, max_rows);
  const std::int64_t worker_floats = AttentionScratch::floats(max_rows * group, shape.head_dim);
  float* scratch = scratch_.reserve(worker_floats * pool_.threads());

  const auto blocks = static_cast<std::int64_t>(blocks_.size());
  const std::int64_t tasks = q.tracks * shape.kv_heads * blocks;
  std::int64_t pieces = 1;  // the most of any task
  const auto task_at = [&](std::int64_t i) {
    AttentionTask task = base;
    const RowBlock& block = blocks_[static_cast<std::size_t>(blocks - 1 - i % blocks)];  // the longest first
    task.first_row = block.first;
    task.rows = block.rows;
    task.kv_head = i / blocks % shape.kv_heads;
    task.track = i / blocks / shape.kv_heads;
    return task;
  };
  for (std::int64_t i = 0; i < blocks; ++i)
    pieces = std::max(pieces, task_at(i).end_piece() - task_at(i).first_piece());

  const bool decode = blocks == q.rows;
  if (pool_.threads() == 1 || pieces == 1 || !decode || tasks >= kTasksPerThread * pool_.threads()) {
    const auto run_task = PTRT_DISPATCH(attend);
    pool_.parallel_for(
        tasks, [&](std::int64_t i, int worker) { run_task(task_at(i), scratch + worker * worker_floats); });
    return;
  }
  const std::int64_t state_floats = AttentionState::floats(group, shape.head_dim);
  float* states = states_.reserve(tasks * pieces * state_floats);
  const auto run_piece = PTRT_DISPATCH(attend_one_piece);
  pool_.parallel_for(tasks * pieces, [&](std::int64_t i, int worker) {
    const AttentionTask task = task_at(i / pieces);
    const std::int64_t piece = task.first_piece() + i % pieces;
    if (piece < task.end_piece())
      run_piece(task, piece, scratch + worker * worker_floats, states + i * state_floats);
  });
  const auto merge = PTRT_DISPATCH(merge_pieces);
  pool_.parallel_for(tasks, [&](std::int64_t i, int worker) {
    merge(task_at(i), states + i * pieces * state_floats, scratch + worker * worker_floats);
  });
}

}  // namespace ptrt
#endif  // HWY_ONCE
