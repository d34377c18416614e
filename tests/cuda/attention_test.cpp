#include "device_test.h"

namespace ptrt::testing {
namespace {

class DeviceAttention : public DeviceTest {
 protected:
  // Keys and q are rounded, which moves scores by up to some hundredths in bfloat16; values too.
  double tolerance() { return inner() == DType::float16 ? 0.004 : 0.03; }
};
PTRT_EVERY_DEVICE_AND_TYPE(DeviceAttention);

// Rows of one step: of slot, from its next position on, count rows.
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

// One layer's cache on a backend and on the reference, fed the same rows step by step.
class Twin {
 public:
  static constexpr std::int64_t kSlots = 3, kLayers = 2, kLayer = 1;

  Twin(Backend& backend, const Model& model, std::int64_t context, std::int64_t max_rows)
      : backend_(backend),
        model_(model),
        random_(static_cast<unsigned>(model.shape.head_dim)),
        q_norm_(backend, reference_, WeightRole::vector, DType::float32, model.tracks, 1, 1,
                model.shape.head_dim, random_),
        k_norm_(backend, reference_, WeightRole::vector, DType::float32, model.tracks, 1, 1,
                model.shape.head_dim, random_),
        stride_((context + kPageTokens - 1) / kPageTokens) {
    WorkLimits limits;
    limits.tracks = model.tracks;
    limits.rows = max_rows;
    limits.logit_rows = 1;
    limits.sequences = kSlots;
    limits.context = context;
    limits.heads = model.shape.heads;
    limits.head_dim = model.shape.head_dim;
    backend.reserve(limits);
    // Scattered pages; memory that no sequence owns reads as NaN.
    for (std::int64_t i = 0; i < kSlots * stride_; ++i)
      page_table_.push_back(static_cast<std::int32_t>(i + 1));
    std::shuffle(page_table_.begin(), page_table_.end(), random_.engine());
    pool_ = {nullptr,
             matrix_type_of(backend),
             model.tracks,
             kLayers,
             kSlots * stride_ + 2,
             model.shape.kv_heads,
             model.shape.head_dim};
    const std::vector<std::byte> nan(pool_.bytes(), std::byte{0xFF});
    memory_ = backend.allocate(nan.size(), "a test's pages");
    backend.write(nan, memory_.get());
    // The reference's has no float16, but float32 instead.
    host_pool_ = pool_;
    if (pool_.dtype == DType::float16) host_pool_.dtype = DType::float32;
    host_memory_.assign(host_pool_.bytes(), std::byte{0xFF});
    pool_.data = memory_.get();
    host_pool_.data = host_memory_.data();
  }

  // Appends the step's rows and compares its attention.
  void run(const Step& step, double tolerance) {
    std::vector<std::int32_t> positions, slots;
    for (const Chunk& chunk : step)
      for (std::int32_t i = 0; i < chunk.count; ++i) {
        positions.push_back(lengths_[static_cast<std::size_t>(chunk.slot)]++);
        slots.push_back(chunk.slot);
      }
    const auto rows = static_cast<std::int64_t>(positions.size());
    const AttentionShape& shape = model_.shape;
    const std::int64_t q_width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
    const DType inner = backend_.traits().activation_dtype;
    OnDevice q(backend_, model_.tracks, rows, q_width, inner, random_, 2),
        k(backend_, model_.tracks, rows, kv_width, inner, random_, 2),
        v(backend_, model_.tracks, rows, kv_width, inner, random_);
    OnDevice angles(backend_, 1, rows, shape.head_dim, DType::float32);
    OnDevice out(backend_, model_.tracks, rows, q_width, inner);
    const TrackWeights none;
    const StepRows step_rows{positions, slots, page_table_, stride_};
    const std::vector<std::int32_t> tokens(positions.size(), 0);

    const auto both = [&](Backend& backend, const Tensor& angles_of, const Tensor& q_of, const Tensor& k_of,
                          const Tensor& v_of, const Tensor& out_of, const TrackWeights& q_norm,
                          const TrackWeights& k_norm, const KvPool& pool) {
      backend.set_step_inputs(tokens, step_rows);
      if (shape.rope) backend.rope_angles(positions, 10000.0, angles_of);
      backend.rope_append(shape, model_.qk_norm ? q_norm : none, model_.qk_norm ? k_norm : none, angles_of,
                          q_of, k_of, v_of, step_rows, kLayer, pool);
      backend.attention(shape, q_of, step_rows, kLayer, pool, out_of);
    };
    Activation expected(model_.tracks, rows, q_width);
    both(backend_, angles.tensor, q.tensor, k.tensor, v.tensor, out.tensor, q_norm_.device, k_norm_.device,
         pool_);
    both(reference_, angles.host.tensor, q.host.tensor, k.host.tensor, v.host.tensor, expected.tensor,
         q_norm_.host, k_norm_.host, host_pool_);
    expect_near(out.get(), expected.values, tolerance,
                fmt::format("{}, step of {} rows", name_of(model_), rows));
    expect_near(q.get(), q.host.values, tolerance, name_of(model_) + ", q");
  }

 private:
  Backend& backend_;
  Model model_;
  Random random_;
  ReferenceBackend reference_;
  BothWeights q_norm_, k_norm_;
  std::int64_t stride_;
  std::vector<std::int32_t> page_table_;
  KvPool pool_, host_pool_;
  std::shared_ptr<std::byte[]> memory_;
  std::vector<std::byte> host_memory_;
  std::vector<std::int32_t> lengths_ = std::vector<std::int32_t>(kSlots, 0);
};

TEST_P(DeviceAttention, EveryHeadSize) {
  for (const std::int64_t head_dim : {2, 10, 16, 37, 64, 72, 80, 96, 128, 160, 256}) {
    const bool rope = head_dim % 2 == 0;
    Twin twin(backend(), {{4, 2, head_dim, 0, rope}, 2, head_dim % 4 == 0}, 100, 60);
    twin.run({{0, 37}, {1, 1}, {2, 3}}, tolerance());  // prefill
    twin.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());   // decoding
    if (::testing::Test::HasFatalFailure()) return;
    twin.run({{0, 2}, {1, 30}, {2, 1}}, tolerance());  // both, chunks over a past
  }
}

TEST_P(DeviceAttention, EveryGrouping) {
  for (const auto& [heads, kv_heads] :
       {std::pair{1, 1}, {3, 1}, {5, 1}, {6, 2}, {6, 6}, {9, 1}, {16, 2}, {20, 1}}) {
    Twin twin(backend(), {{heads, kv_heads, 16, 0, true}, 1, false}, 64, 40);
    twin.run({{0, 30}, {1, 1}}, tolerance());
    twin.run({{0, 1}, {1, 1}, {2, 7}}, tolerance());
  }
}

TEST_P(DeviceAttention, EveryWindow) {
  for (const std::int64_t window : {1, 2, 16, 17, 40, 63, 64, 65, 300}) {
    Twin twin(backend(), {{2, 1, 16, window, true}, 1, false}, 160, 130);
    twin.run({{0, 100}, {1, 20}}, tolerance());
    twin.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());
    twin.run({{0, 19}, {1, 1}}, tolerance());
  }
}

// Contexts of several splits, whole and within windows, rows of one split among rows of several.
TEST_P(DeviceAttention, LongContexts) {
  for (const auto& [window, heads] : {std::pair{0, 1}, {0, 3}, {255, 1}, {256, 1}, {400, 2}}) {
    Twin twin(backend(), {{heads, 1, 8, window, false}, 1, false}, 600, 300);
    twin.run({{0, 255}, {1, 2}}, tolerance());
    for (int i = 0; i < 3; ++i) twin.run({{0, 1}, {1, 1}}, tolerance());  // across the first split's end
    twin.run({{0, 290}, {1, 1}}, tolerance());
    twin.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());
  }
}

// So many heads that splits are longer than the shortest: 3 rows, 12 tracks and 5 heads.
TEST_P(DeviceAttention, ManyHeadsHaveLongerSplits) {
  if (inner() == DType::float16) return;  // how they are cut does not hang on the type
  Twin twin(backend(), {{5, 5, 8, 0, false}, 12, false}, 516, 300);
  twin.run({{0, 255}, {1, 5}}, tolerance());
  twin.run({{0, 255}, {1, 1}}, tolerance());
  for (int i = 0; i < 3; ++i) twin.run({{0, 1}, {1, 1}, {2, 1}}, tolerance());  // across a split's end
}

// Prefill over a past by several blocks of queries, of every shape of tiles.
TEST_P(DeviceAttention, SeveralBlocksOfQueries) {
  for (const std::int64_t head_dim : {64, 80, 128, 256}) {
    Twin twin(backend(), {{3, 1, head_dim, 0, true}, 1, false}, 160, 110);
    twin.run({{0, 41}, {1, 9}}, tolerance());
    twin.run({{0, 90}, {1, 20}}, tolerance());
  }
}

// So many tiles of tokens that their places in shared memory are used again and again.
TEST_P(DeviceAttention, LongPrefill) {
  for (const std::int64_t head_dim : {64, 128}) {
    Twin twin(backend(), {{1, 1, head_dim, 0, true}, 1, false}, 560, 140);
    for (int i = 0; i < 4; ++i) twin.run({{0, 140}}, tolerance());
    Twin windowed(backend(), {{1, 1, head_dim, 300, true}, 1, false}, 560, 140);
    for (int i = 0; i < 4; ++i) windowed.run({{0, 140}}, tolerance());
    if (::testing::Test::HasFatalFailure()) return;
  }
}

// Many tracks: more than one launch takes.
TEST_P(DeviceAttention, ManyTracks) {
  Twin twin(backend(), {{2, 1, 16, 0, true}, 18, true}, 32, 10);
  twin.run({{0, 5}, {1, 1}}, tolerance());
  twin.run({{0, 1}, {1, 2}}, tolerance());
}

}  // namespace
}  // namespace ptrt::testing
