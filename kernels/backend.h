// A Backend is the memory and the op set of one device. runtime/ writes the forward pass once against this
// interface; every op serves all tracks of the rank in one call (a leading `tracks` dimension).
//
// Rules every backend keeps:
//  * batch-invariant (the CPU's; a GPU's as far as docs/CUDA.md says): what an op writes for a row depends on
//    that row (and its KV pages) alone, bit for bit, never on the other rows of the call, the number of
//    threads or the tiles chosen;
//  * accumulation in float32 (or wider), norm and softmax statistics in float32;
//  * no allocation inside an op: scratch is passed in or sized once, at construction or by reserve();
//  * ops of a backend run in the order of the calls. On a device they may return before they have run; only
//    sample(), take_sampled(), log_probs() and read_back() wait.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/host_cores.h"
#include "kernels/block_edges.h"
#include "kernels/device_collectives.h"
#include "kernels/tensor.h"
#include "kernels/weight_source.h"

namespace ptrt {

inline constexpr std::int64_t kPageTokens = 16;  // tokens of one KV page

// One matrix product for every local track: y[t] = x[t] · w[t]ᵀ, x [tracks, rows, in], y [tracks, rows, out].
struct LinearJob {
  const TrackWeights* weights = nullptr;
  Tensor x;
  Tensor y;
};

// The KV pool of a rank; ops work on its first tracks, as many as q has. [page][local track][layer][keys,
// values][kv_head] and then one head's page, whose inner layout is the backend's own. CPU: cpu/kv_layout.h;
// CUDA: both [kPageTokens][head_dim]. Page by page, so that only memory of pages in use is ever touched.
// Elements are float32 or bfloat16; on a GPU of Backend::activation_type().
struct KvPool {
  std::byte* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t tracks = 0, layers = 0, pages = 0, kv_heads = 0, head_dim = 0;

  // The pool as a caller sees it whose first track is track t: the tracks before it are left out, the strides
  // stay.
  KvPool from_track(std::int64_t t) const {
    KvPool part = *this;
    part.data += t * layers * layer_stride() * static_cast<std::int64_t>(size_of(dtype));
    return part;
  }
  std::int64_t head_stride() const { return kPageTokens * head_dim; }
  std::int64_t layer_stride() const { return 2 * kv_heads * head_stride(); }
  std::int64_t page_stride() const { return tracks * layers * layer_stride(); }
  std::int64_t elements() const { return pages * page_stride(); }
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(dtype); }
  // First element of a page's keys of one head; T is float or a 16-bit type, as dtype says.
  template <typename T>
  T* keys(std::int64_t track, std::int64_t layer, std::int64_t page, std::int64_t head) const {
    return reinterpret_cast<T*>(data) + page * page_stride() + (track * layers + layer) * layer_stride() +
           head * head_stride();
  }
  template <typename T>
  T* values(std::int64_t track, std::int64_t layer, std::int64_t page, std::int64_t head) const {
    return keys<T>(track, layer, page, head) + kv_heads * head_stride();
  }
};

// The rows of one step. Row r is the token at `positions[r]` of the sequence in slot `slots[r]`, whose pages
// are page_table[slot · page_table_stride + position / kPageTokens]. Rows of one sequence are neighbours with
// consecutive positions.
struct StepRows {
  std::span<const std::int32_t> positions;   // [rows]
  std::span<const std::int32_t> slots;       // [rows]
  std::span<const std::int32_t> page_table;  // [slots, page_table_stride]
  std::int64_t page_table_stride = 0;
  // A slot that no sequence has, whose pages are one that no sequence gets: for rows that only fill up a
  // batch. -1: there is none.
  std::int32_t spare_slot = -1;

  // The page that holds tokens [index · kPageTokens, (index + 1) · kPageTokens) of row r's sequence.
  std::int64_t page(std::int64_t r, std::int64_t index) const {
    const std::int64_t slot = slots[static_cast<std::size_t>(r)];
    return page_table[static_cast<std::size_t>(slot * page_table_stride + index)];
  }
};

// What bounds every later call: a backend sizes its scratch from it.
struct WorkLimits {
  std::int64_t tracks = 1;
  std::int64_t rows = 0;        // of a step
  std::int64_t logit_rows = 0;  // of one call of sample() or log_probs()
  std::int64_t sequences = 0;   // slots
  std::int64_t context = 0;     // tokens of a sequence
  std::int64_t heads = 0, head_dim = 0;
  std::int64_t experts = 0, top_k = 0;  // 0: no mixture of experts

  std::int64_t page_table_stride() const { return (context + kPageTokens - 1) / kPageTokens; }
};

struct AttentionShape {
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t window =
      0;  // 0: all positions up to the row's own; else the last `window` of them, its own included
  bool rope = true;
  float norm_eps = 1e-5f;  // of the QK-norm
};

struct MoeShape {
  std::int64_t experts = 0, top_k = 0, ffn_size = 0;
  float router_logit_cap = 0;  // 0: no cap
};

// Weights and scratch of one mixture-of-experts FFN. The caller allocates the scratch once.
struct MoeJob {
  MoeShape shape;
  const TrackWeights *router = nullptr, *gate = nullptr, *up = nullptr, *down = nullptr;
  Tensor x;              // [tracks, rows, d]
  Tensor y;              // [tracks, rows, d]
  Tensor router_logits;  // [tracks, rows, experts]          scratch
  Tensor gate_out;       // [tracks, rows · top_k, ffn_size] scratch
  Tensor up_out;         // [tracks, rows · top_k, ffn_size] scratch
  Tensor expert_out;     // [tracks, rows · top_k, d]        scratch
};

// How the next token of one row is chosen (docs/SPEC.md, Requests).
struct SampleParams {
  float temperature = 0;       // 0: greedy
  std::int32_t top_k = 0;      // 0: all
  float top_p = 1;             // 1: all
  std::uint64_t seed = 0;      // of the request
  std::uint64_t position = 0;  // index of the token in the request's output
  bool want_logprob = false;
};

struct Sampled {
  std::int32_t token = 0;
  float logprob = 0;  // natural logarithm, before temperature; only when asked for
};

// How a device spent its time on recorded steps that followed one another, what was queued behind each until
// the next included.
struct ReplayTimes {
  double busy_s = 0;  // from the first work of a step to its last
  double idle_s = 0;  // before the first
};

// Stands for a token that is not known yet: the one of row `row` of the last queue_sample().
constexpr std::int32_t token_of_sample(std::int32_t row) {
  return -1 - row;
}

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;             // "cpu"
  virtual std::string instruction_set() const = 0;  // what the numerics hang on, e.g. "AVX3_ZEN4"
  virtual int threads() const = 0;

  // Zeroed memory for activations and KV pages, 64-byte aligned, freed with the pointer. Throws when there is
  // none.
  virtual std::shared_ptr<std::byte[]> allocate(std::size_t bytes, const std::string& what) = 0;
  // Takes a weight in, in the layout that the backend likes; reads the source once, piece by piece.
  virtual Weight load_weight(const WeightSpec& spec, WeightSource& source) = 0;
  // The same for several weights, which a backend may read side by side.
  virtual std::vector<Weight> load_weights(std::span<const WeightLoad> loads) {
    std::vector<Weight> weights;
    for (const WeightLoad& load : loads) weights.push_back(load_weight(load.spec, *load.source));
    return weights;
  }
  virtual std::size_t weight_bytes() const = 0;           // held by weights loaded so far
  virtual std::size_t mapped_bytes() const { return 0; }  // of these, what lies in mapped files

  // What is left of a memory of its own; none where it is the host's.
  virtual std::optional<std::size_t> free_bytes() const { return std::nullopt; }

  // Type of the activations inside a sublayer: normed rows, q, k, v, gate, up and outputs. The streams x and
  // h, rope angles, router logits and logits are float32.
  virtual DType activation_type() const { return DType::float32; }
  // Tells of all weights that load_weight() will be asked for, in that order: memory can be counted and taken
  // at once. Throws when there is not enough.
  virtual void plan_weights(std::span<const WeightSpec> /*specs*/) {}
  // Called once, before the first op, by whoever runs steps.
  virtual void reserve(const WorkLimits& /*limits*/) {}
  // What the following embed(), rope_angles(), rope_append() and attention() calls are told again: a device
  // copies it to buffers of fixed address, so that those ops only launch work.
  // With steps_ahead(), a token may be a token_of_sample().
  virtual void begin_step(std::span<const std::int32_t> /*tokens*/, const StepRows& /*rows*/) {}
  // Whether run_recorded() records.
  virtual bool records_steps() const { return false; }
  // Runs `ops`: calls of this backend's ops that hang on `key`, and on what begin_step() was told, alone, for
  // a step whose rows are all of different sequences. A backend may record the work that they queue and queue
  // it again for an equal key without calling `ops`. True when they were called.
  virtual bool run_recorded(std::int64_t /*key*/, const std::function<void()>& ops) {
    ops();
    return true;
  }
  // Gives up all recorded work. What it queues into (collectives of other ranks' devices) ends only after it.
  virtual void forget_recorded() noexcept {}
  // Times of the replays since the last call, by the device's clock; waits for them. None where nothing is
  // recorded.
  virtual std::optional<ReplayTimes> take_replay_times() { return std::nullopt; }
  // Says that the device will idle for want of requests, which no time is to count.
  virtual void rest() {}
  // Between this process's memory and what allocate() gave; both wait until the bytes have moved.
  virtual void write(std::span<const std::byte> from, std::byte* to) {
    std::memcpy(to, from.data(), from.size());
  }
  virtual void read_back(const std::byte* from, std::span<std::byte> to) {
    std::memcpy(to.data(), from, to.size());
  }

  // Collectives between the devices of several ranks; null where memory is the host's.
  virtual DeviceGroups* device_groups() { return nullptr; }

  // Whether run_tracks_apart() is the better way to run that many tracks between two syncs.
  virtual bool runs_tracks_apart(std::int64_t /*tracks*/) const { return false; }
  // body(track, lane) for every track below `tracks`, several at a time; `lane` does the work of one track
  // (ops with a single track) on one thread, with the same bits as this backend.
  virtual void run_tracks_apart(std::int64_t tracks,
                                const std::function<void(std::int64_t, Backend&)>& body) {
    for (std::int64_t track = 0; track < tracks; ++track) body(track, *this);
  }

  // x[0, r, :] = table[tokens[r], :]
  virtual void embed(const Weight& table, std::span<const std::int32_t> tokens, Tensor x) = 0;
  // out = x / sqrt(mean(x²) + eps) · w, row by row; in place when out is x.
  virtual void rms_norm(const TrackWeights& weights, float eps, Tensor x, Tensor out) = 0;
  // h += a, then out = RMSNorm(h); out may be h.
  virtual void add_rms_norm(Tensor a, Tensor h, const TrackWeights& weights, float eps, Tensor out) {
    add(a, h);
    rms_norm(weights, eps, h, out);
  }
  // All products of one list in one parallel region.
  virtual void linear(std::span<const LinearJob> jobs) = 0;
  // h += a
  virtual void add(Tensor a, Tensor h) = 0;
  // out = x, track by track (x may be a broadcast).
  virtual void copy(Tensor x, Tensor out) = 0;
  // out[0, i, :] = x[0, rows[i], :]
  virtual void gather_rows(Tensor x, std::span<const std::int32_t> rows, Tensor out) {
    for (std::size_t i = 0; i < rows.size(); ++i)
      copy({x.row(0, rows[i]), 1, 1, x.width, 0},
           {out.row(0, static_cast<std::int64_t>(i)), 1, 1, x.width, 0});
  }
  // x[t, i, :] = x[t, rows[i], :]; rows ascend.
  virtual void keep_rows(Tensor x, std::span<const std::int32_t> rows) {
    for (std::int64_t t = 0; t < x.tracks; ++t)
      for (std::size_t i = 0; i < rows.size(); ++i)
        if (const auto to = static_cast<std::int64_t>(i); rows[i] != to)
          copy({x.row(t, rows[i]), 1, 1, x.width, 0}, {x.row(t, to), 1, 1, x.width, 0});
  }
  // Whether attention() takes other rows than begin_step() was told of.
  virtual bool takes_part_of_step() const { return true; }
  // gate = silu(gate) · up
  virtual void swiglu(Tensor gate, Tensor up) = 0;
  // gate.y = silu(gate) · up of the two products, which are of equal sizes and of one x; what is left in up.y
  // is undefined.
  virtual void gated_linear(const LinearJob& gate, const LinearJob& up) {
    const LinearJob both[] = {gate, up};
    linear(both);
    swiglu(gate.y, up.y);
  }
  virtual void moe_ffn(const MoeJob& job) = 0;

  // cos_sin[0, r, :] = cos of the head_dim/2 angles of positions[r], then their sines (angles in double).
  virtual void rope_angles(std::span<const std::int32_t> positions, double theta, Tensor cos_sin) = 0;
  // Per head: QK-norm where the weights are present, then RoPE where shape.rope, on q (in place) and k; then
  // k and v of every row go to their pages of `layer`. What stays in k is undefined. An empty TrackWeights
  // means no QK-norm.
  virtual void rope_append(const AttentionShape& shape, const TrackWeights& q_norm,
                           const TrackWeights& k_norm, Tensor cos_sin, Tensor q, Tensor k, Tensor v,
                           const StepRows& rows, std::int64_t layer, const KvPool& pool) = 0;
  // Causal attention of every row over its sequence's pages as stored; out [tracks, rows, heads · head_dim].
  // On the CPU, over a pool of bfloat16 and with a compute type other than float32, its products take
  // bfloat16: q / sqrt(head_dim) and the softmax weights are rounded, on every instruction set. Otherwise
  // neither is.
  virtual void attention(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer,
                         const KvPool& pool, Tensor out) = 0;

  // y[t] -= x: the leaves of the delta_sum fusion.
  virtual void subtract(Tensor x, Tensor y) = 0;
  // out[i] = the fixed binary tree sum of parts[0..n)[i] (the left part takes the largest power of two below
  // the count), count elements each; out may be one of the parts. `add_to` (may be null) is added last, after
  // `scale`: out = (add_to ? add_to : 0) + scale · tree.
  virtual void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale,
                        const float* add_to, float* out) = 0;

  // What lies between the last product of a track block and the first of the next, around the sync
  // (block_edges.h), with the bits of these ops.
  virtual void end_block(const BlockEnd& end) {
    if (end.post_norm != nullptr)
      add_rms_norm(end.a, end.h, *end.post_norm, end.eps, end.h);
    else
      add(end.a, end.h);
    if (end.combine_norm != nullptr)
      rms_norm(*end.combine_norm, end.eps, end.h, end.y);
    else if (end.y.data != end.h.data)
      copy(end.h, end.y);
    if (end.minus.data != nullptr) subtract(end.minus.broadcast(end.y.tracks), end.y);
  }
  virtual void begin_block(const BlockBegin& begin) {
    float* x = begin.x.row(0, 0);
    if (!begin.parts.empty())
      tree_sum(begin.parts, begin.x.rows * begin.x.width, begin.scale, begin.add_to_x ? x : nullptr, x);
    const Tensor every = begin.x.broadcast(begin.h.tracks);
    if (begin.dispatch_norm != nullptr)
      rms_norm(*begin.dispatch_norm, begin.eps, every, begin.h);
    else
      copy(every, begin.h);
    if (begin.pre_norm != nullptr) rms_norm(*begin.pre_norm, begin.eps, begin.h, begin.normed);
  }

  // One token a row of logits [1, rows, vocab]; randomness depends on (seed, position) alone.
  virtual void sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) = 0;
  // Steps that may be begun before the tokens of the one before them are taken: 0 or 1. Where it is 1, a
  // token_of_sample() is known to the next step, and the tokens of a queue_sample() are taken before there
  // are two more.
  virtual int steps_ahead() const { return 0; }
  // sample() in two halves; what is queued is taken in order. Only take_sampled() waits.
  virtual void queue_sample(Tensor logits, std::span<const SampleParams> params) {
    std::vector<Sampled>& out = queued_samples_.emplace_back(params.size());
    sample(logits, params, out);
  }
  virtual void take_sampled(std::span<Sampled> out) {
    std::ranges::copy(queued_samples_.at(0), out.begin());
    queued_samples_.erase(queued_samples_.begin());
  }
  // out[r] = log softmax(logits[r])[targets[r]], statistics over fixed vocabulary chunks.
  virtual void log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<float> out) = 0;

 private:
  std::vector<std::vector<Sampled>> queued_samples_;  // of the queue_sample() above
};

struct CpuOptions {
  int threads = 1;  // workers, the calling thread included
  // Where each worker runs (host_cores.h); none: anywhere. The first is the calling thread's, which binds
  // itself.
  std::vector<CpuSet> worker_cores = {};
  // More threads than processing units run on this host: workers sleep at once when there is nothing to do.
  bool oversubscribed = false;
  // Type of the products' inputs. bfloat16 rounds activations (and wider weights, at load) to bfloat16; int8
  // quantises activations in groups of kInt8Group and needs int8 matrices; float32 takes every weight type.
  Compute compute = Compute::float32;
  // Matrices of other types (not routers, not tables that are looked up) become int8 at load, or the load is
  // refused: every weight must be finite and at most kLargestInt8Weight (int8.h).
  bool quantize_int8 = false;
};

// Throws bad_input on threads < 1; loading a weight throws it where its type does not go with the options.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

// True where the processor multiplies in that type at speed: what `--compute auto` asks.
bool cpu_computes(Compute compute);

}  // namespace ptrt
