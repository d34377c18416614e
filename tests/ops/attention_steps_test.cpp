// Whole steps, queries and keys encoded and appended, then attention, one step after the other: beside the
// scalar reference, which gets the same rows.
#include "ops/fixtures/kv_pages.h"

namespace ptrt::testing {
namespace {

class AttentionSteps : public OpTest {
 protected:
  // Keys and q are rounded, which moves scores by up to some hundredths in bfloat16; values too.
  double tolerance() { return activations() == DType::float16 ? 0.004 : 0.03; }
};
INSTANTIATE_TEST_SUITE_P(Every, AttentionSteps,
                         ::testing::ValuesIn(without_reference(backends_on(op_targets()))), param_name);

// Rows of one step: the next `count` tokens of a slot's sequence.
struct Chunk {
  std::int32_t slot, count;
};
using Step = std::vector<Chunk>;

struct Model {
  AttentionShape shape;
  std::int64_t tracks;
  bool qk_norm;
};

std::string name_of(const Model& m) {
  const AttentionShape& s = m.shape;
  return fmt::format("heads {}/{} head_dim {} window {} rope {} norm {} tracks {}", s.heads, s.kv_heads,
                     s.head_dim, s.window, s.rope, m.qk_norm, m.tracks);
}

// One layer on one of the two: what a step of it takes.
struct Side {
  Backend& backend;
  TrackWeights q_norm, k_norm;
  KvPages pages;

  Side(Backend& on, const Model& model, const RandomWeights& q_weights, const RandomWeights& k_weights,
       std::int64_t slots, std::int64_t context, DType kv_dtype, Random order)
      : backend(on), pages(on, model.shape, model.tracks, slots, context, kv_dtype, order) {
    if (!model.qk_norm) return;
    q_norm = q_weights.load(on, WeightRole::vector);
    k_norm = k_weights.load(on, WeightRole::vector);
  }
  void run(const AttentionShape& shape, std::span<const std::int32_t> positions,
           std::span<const std::int32_t> slots, const Tensor& angles, const Tensor& q, const Tensor& k,
           const Tensor& v, const Tensor& out) {
    const StepRows rows = pages.rows(positions, slots);
    backend.set_step_inputs(std::vector<std::int32_t>(positions.size(), 0), rows);
    if (shape.rope) backend.rope_angles(positions, plain_rope(10000.0, shape.head_dim), angles);
    backend.rope_append(shape, q_norm, k_norm, angles, q, k, v, rows, KvPages::kLayer, pages.pool());
    backend.attention(shape, q, rows, KvPages::kLayer, pages.pool(), out);
  }
};

class ReferencePair {
 public:
  static constexpr std::int64_t kSlots = 3;

  ReferencePair(Backend& backend, const Model& model, std::int64_t context, std::int64_t max_rows)
      : model_(model),
        random_(static_cast<unsigned>(model.shape.head_dim)),
        q_norm_(DType::float32, model.tracks, 1, 1, model.shape.head_dim, random_),
        k_norm_(DType::float32, model.tracks, 1, 1, model.shape.head_dim, random_),
        tested_(backend, model, q_norm_, k_norm_, kSlots, context, matrix_dtype(backend), random_),
        // The reference has no float16 pages.
        expected_(reference_, model, q_norm_, k_norm_, kSlots, context,
                  matrix_dtype(backend) == DType::float16 ? DType::float32 : DType::bfloat16, random_) {
    backend.reserve({.tracks = model.tracks,
                     .rows = max_rows,
                     .logit_rows = 1,
                     .sequences = kSlots,
                     .context = context,
                     .heads = model.shape.heads,
                     .head_dim = model.shape.head_dim});
  }

  // Appends the step's rows and compares its attention.
  void run(const Step& step, double tolerance) {
    std::vector<std::int32_t> positions, slots;
    for (const Chunk& chunk : step)
      for (std::int32_t i = 0; i < chunk.count; ++i) {
        positions.push_back(lengths_[static_cast<std::size_t>(chunk.slot)]++);
        slots.push_back(chunk.slot);
      }
    const auto rows = static_cast<std::int64_t>(positions.size()), tracks = model_.tracks;
    const AttentionShape& shape = model_.shape;
    const std::int64_t q_width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
    Backend& backend = tested_.backend;
    const DType dtype = activation_dtype(backend);
    Array q(backend, tracks, rows, q_width, dtype, random_, 2),
        k(backend, tracks, rows, kv_width, dtype, random_, 2),
        v(backend, tracks, rows, kv_width, dtype, random_), angles(backend, 1, rows, shape.head_dim);
    const Array out(backend, tracks, rows, q_width, dtype);
    Activation expected(tracks, rows, q_width);
    tested_.run(shape, positions, slots, angles.tensor, q.tensor, k.tensor, v.tensor, out.tensor);
    expected_.run(shape, positions, slots, angles.host.tensor, q.host.tensor, k.host.tensor, v.host.tensor,
                  expected.tensor);
    expect_close(out.get().values, expected.values, tolerance,
                 fmt::format("{}, step of {} rows", name_of(model_), rows));
    expect_close(q.get().values, q.host.values, tolerance, name_of(model_) + ", q");
  }

 private:
  Model model_;
  Random random_;
  RandomWeights q_norm_, k_norm_;
  ReferenceBackend reference_;
  Side tested_, expected_;
  std::vector<std::int32_t> lengths_ = std::vector<std::int32_t>(kSlots, 0);
};

TEST_P(AttentionSteps, EveryHeadSize) {
  for (const std::int64_t head_dim : {2, 10, 16, 37, 64, 72, 80, 96, 128, 160, 256}) {
    const bool rope = head_dim % 2 == 0;
    ReferencePair pair(backend(), {{4, 2, head_dim, 0, rope}, 2, head_dim % 4 == 0}, 100, 60);
    pair.run({{0, 37}, {1, 1}, {2, 3}}, tolerance());  // prefill
    pair.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());   // decoding
    if (::testing::Test::HasFatalFailure()) return;
    pair.run({{0, 2}, {1, 30}, {2, 1}}, tolerance());  // both, chunks over a past
  }
}

TEST_P(AttentionSteps, EveryGrouping) {
  for (const auto& [heads, kv_heads] :
       {std::pair{1, 1}, {3, 1}, {5, 1}, {6, 2}, {6, 6}, {9, 1}, {16, 2}, {20, 1}}) {
    ReferencePair pair(backend(), {{heads, kv_heads, 16, 0, true}, 1, false}, 64, 40);
    pair.run({{0, 30}, {1, 1}}, tolerance());
    pair.run({{0, 1}, {1, 1}, {2, 7}}, tolerance());
  }
}

TEST_P(AttentionSteps, EveryWindow) {
  for (const std::int64_t window : {1, 2, 16, 17, 40, 63, 64, 65, 300}) {
    ReferencePair pair(backend(), {{2, 1, 16, window, true}, 1, false}, 160, 130);
    pair.run({{0, 100}, {1, 20}}, tolerance());
    pair.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());
    pair.run({{0, 19}, {1, 1}}, tolerance());
  }
}

// Contexts of several splits, whole and within windows, rows of one split among rows of several.
TEST_P(AttentionSteps, LongContexts) {
  for (const auto& [window, heads] : {std::pair{0, 1}, {0, 3}, {255, 1}, {256, 1}, {400, 2}}) {
    ReferencePair pair(backend(), {{heads, 1, 8, window, false}, 1, false}, 600, 300);
    pair.run({{0, 255}, {1, 2}}, tolerance());
    for (int i = 0; i < 3; ++i) pair.run({{0, 1}, {1, 1}}, tolerance());  // across the first split's end
    pair.run({{0, 290}, {1, 1}}, tolerance());
    pair.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());
  }
}

// Contexts whose splits a GPU shares among the blocks of a cluster: some blocks and warps of it without a token, rows with one
// split and with several, more heads than a warp takes at once, windows that begin within a block's tokens.
TEST_P(AttentionSteps, LongerContexts) {
  struct Case {
    std::int64_t heads, head_dim, window;
  };
  for (const auto& [heads, head_dim, window] : {Case{9, 8, 0}, {1, 37, 0}, {1, 8, 1030}}) {
    ReferencePair pair(backend(), {{heads, 1, head_dim, window, false}, 1, false}, 1300, 520);
    pair.run({{0, 510}, {1, 10}}, tolerance());
    pair.run({{0, 511}}, tolerance());
    for (int i = 0; i < 4; ++i) pair.run({{0, 1}, {1, 1}}, tolerance());  // 1022 to 1025 tokens
    pair.run({{0, 60}}, tolerance());
    pair.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());
  }
}

// So many heads that splits are longer than the shortest: 3 rows, 12 tracks and 5 heads.
TEST_P(AttentionSteps, ManyHeadsHaveLongerSplits) {
  if (activations() == DType::float16) return;  // the cut does not depend on the type
  ReferencePair pair(backend(), {{5, 5, 8, 0, false}, 12, false}, 516, 300);
  pair.run({{0, 255}, {1, 5}}, tolerance());
  pair.run({{0, 255}, {1, 1}}, tolerance());
  for (int i = 0; i < 3; ++i) pair.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());  // across a split's end
}

// Prefill over a past by several blocks of queries, of every shape of tiles.
TEST_P(AttentionSteps, SeveralBlocksOfQueries) {
  for (const std::int64_t head_dim : {64, 80, 128, 256}) {
    ReferencePair pair(backend(), {{3, 1, head_dim, 0, true}, 1, false}, 160, 110);
    pair.run({{0, 41}, {1, 9}}, tolerance());
    pair.run({{0, 90}, {1, 20}}, tolerance());
  }
}

// So many tiles of tokens that their places in shared memory are used again and again.
TEST_P(AttentionSteps, LongPrefill) {
  for (const std::int64_t head_dim : {64, 128}) {
    ReferencePair pair(backend(), {{1, 1, head_dim, 0, true}, 1, false}, 560, 140);
    for (int i = 0; i < 4; ++i) pair.run({{0, 140}}, tolerance());
    ReferencePair windowed(backend(), {{1, 1, head_dim, 300, true}, 1, false}, 560, 140);
    for (int i = 0; i < 4; ++i) windowed.run({{0, 140}}, tolerance());
    if (::testing::Test::HasFatalFailure()) return;
  }
}

// Many tracks: more than one launch takes.
TEST_P(AttentionSteps, ManyTracks) {
  ReferencePair pair(backend(), {{2, 1, 16, 0, true}, 18, true}, 32, 10);
  pair.run({{0, 5}, {1, 1}}, tolerance());
  pair.run({{0, 1}, {1, 2}}, tolerance());
}

}  // namespace
}  // namespace ptrt::testing
