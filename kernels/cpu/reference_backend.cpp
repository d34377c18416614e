#include "kernels/cpu/reference_backend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/base/philox.h"
#include "kernels/base/scalar_types.h"
#include "kernels/convert.h"
#include "kernels/cpu/matmul/activations.h"
#include "kernels/cpu/matmul/matmul.h"
#include "kernels/cpu/reference_math.h"
#include "kernels/cpu/weights/widened_float8.h"
#include "kernels/int8.h"

namespace ptrt {
namespace {

bool all_finite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

// One row as the products of a compute type see it.
std::vector<double> round_row(const float* x, std::int64_t n, Compute compute) {
  std::vector<double> rounded(x, x + n);
  if (compute == Compute::bfloat16)
    for (double& value : rounded) value = rounded_to_bfloat16(value);
  if (compute != Compute::int8) return rounded;
  for (std::int64_t begin = 0; begin < n; begin += kInt8Group) {
    const std::int64_t end = std::min(begin + kInt8Group, n);
    float largest = 0;
    for (std::int64_t i = begin; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
    const bool finite = all_finite({x + begin, static_cast<std::size_t>(end - begin)});
    const bool empty = largest <= kSmallestGroup;
    for (std::int64_t i = begin; i < end; ++i)
      rounded[static_cast<std::size_t>(i)] =
          !finite ? NAN
          : empty ? 0
                  : double{std::nearbyint(x[i] * (127.0f / largest))} * (largest / 127.0f);
  }
  return rounded;
}

// y = x · w[matrix]ᵀ for one row.
void linear_row(const float* x, const Weight& w, std::int64_t matrix, Compute compute, float* y) {
  const std::vector<double> row = round_row(x, w.in, product_type(compute, w.dtype));
  for (std::int64_t o = 0; o < w.out; ++o) {
    double sum = 0;
    for (std::int64_t i = 0; i < w.in; ++i)
      sum += row[static_cast<std::size_t>(i)] * weight_element(w, (matrix * w.out + o) * w.in + i);
    y[o] = static_cast<float>(sum);
  }
}

double activated(FfnActivation activation, double v) {
  if (activation == FfnActivation::silu) return v / (1 + std::exp(-v));
  return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v)));
}

// A track-less tensor is seen by every track.
const float* row_of(const Tensor& x, std::int64_t track, std::int64_t r) {
  return x.row(x.tracks == 1 ? 0 : track, r);
}

template <class Op>
void for_elements(const Tensor& from, const Tensor& to, const Op& op) {
  for (std::int64_t t = 0; t < to.tracks; ++t)
    for (std::int64_t r = 0; r < to.rows; ++r)
      for (std::int64_t i = 0; i < to.width; ++i) op(to.row(t, r)[i], row_of(from, t, r)[i]);
}

float tree(std::span<const float* const> parts, std::int64_t i) {
  if (parts.size() == 1) return parts[0][i];
  const std::size_t left = std::bit_floor(parts.size() - 1);
  return tree(parts.first(left), i) + tree(parts.subspan(left), i);
}

// Ids by falling value, ties by rising id.
std::vector<std::int32_t> by_value(std::span<const float> values) {
  std::vector<std::int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  return ids;
}

float log_prob(std::span<const float> logits, std::int32_t token) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  const double exact = logits[static_cast<std::size_t>(token)] - max - std::log(sum);
  return static_cast<float>(std::max(exact, double{std::numeric_limits<float>::lowest()}));
}

// Bias, then the repetition penalty, then the others; finite.
std::vector<float> edited_logits(std::span<const float> logits, const LogitEdits& edits) {
  std::vector<float> edited(logits.begin(), logits.end());
  for (const TokenEdit& edit : edits.tokens) {
    float& logit = edited[static_cast<std::size_t>(edit.token)];
    double x = double{logit} + double{edit.bias};
    if (x > 0)
      x /= double{edit.repetition_penalty};
    else
      x *= double{edit.repetition_penalty};
    x -= double{edit.subtracted};
    constexpr double kMost = std::numeric_limits<float>::max();
    logit = static_cast<float>(std::clamp(x, -kMost, kMost));
  }
  return edited;
}

// -1: no token is allowed.
std::int32_t sample_token(std::span<const float> raw, const SampleParams& params) {
  const LogitEdits edits = params.edits != nullptr ? *params.edits : LogitEdits{};
  const std::vector<float> logits = edited_logits(raw, edits);
  std::vector<std::int32_t> ids = by_value(logits);
  std::erase_if(ids, [&](std::int32_t id) { return !edits.allows(id); });
  if (ids.empty()) return -1;
  if (params.temperature == 0) return ids[0];
  const double max = logits[static_cast<std::size_t>(ids[0])];
  const auto weight = [&](std::int32_t id) {
    return std::exp((logits[static_cast<std::size_t>(id)] - max) / params.temperature);
  };
  const bool top_k = params.top_k > 0 && params.top_k < std::ssize(raw);
  if (params.min_p > 0) {
    const double least = max + std::log(double{params.min_p}) * double{params.temperature};
    std::erase_if(ids, [&](std::int32_t id) { return double{logits[static_cast<std::size_t>(id)]} < least; });
  }
  if (top_k) ids.resize(std::min(ids.size(), static_cast<std::size_t>(params.top_k)));
  const auto mass_of = [&](std::size_t count) {
    return std::accumulate(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), 0.0,
                           [&](double sum, std::int32_t id) { return sum + weight(id); });
  };
  if (params.top_p < 1) {
    const double enough = params.top_p * mass_of(ids.size());
    std::size_t keep = 1;
    for (double mass = weight(ids[0]); keep < ids.size() && mass < enough; ++keep) mass += weight(ids[keep]);
    ids.resize(keep);
  } else if (!top_k && !(params.min_p > 0)) {
    std::sort(ids.begin(), ids.end());  // nothing is cut off: the draw runs by id
  }
  const double target = uniform_draw(params.seed, params.position) * mass_of(ids.size());
  double cumulative = 0;
  for (const std::int32_t id : ids)
    if ((cumulative += weight(id)) > target) return id;
  return ids.back();
}

}  // namespace

float weight_element(const Weight& w, std::int64_t index) {
  if (w.dtype == DType::float32) return static_cast<const float*>(w.data)[index];
  if (w.dtype == DType::int8) {
    const auto* q = static_cast<const std::int8_t*>(w.data);
    std::uint16_t scale = 0;
    const std::int64_t row = index / w.in, group = index % w.in / kInt8Group;
    std::memcpy(&scale, q + w.count * w.out * w.in + (row * int8_groups(w.in) + group) * 2, sizeof(scale));
    return static_cast<float>(q[index]) * from_float16(scale);
  }
  const std::uint16_t bits = static_cast<const std::uint16_t*>(w.data)[index];
  return w.dtype == DType::bfloat16 ? from_bfloat16(bits) : from_float16(bits);
}

std::shared_ptr<std::byte[]> ReferenceBackend::allocate(std::size_t bytes, const std::string&) {
  return std::make_shared<std::byte[]>(bytes);
}

// Row-major in the type that the options ask for; int8: all q, then all scales.
Weight ReferenceBackend::load_weight(const WeightSpec& spec, WeightSource& source) {
  if (spec.dtype == DType::float8_e4m3) {
    WidenedFloat8 wide(spec, source);
    return load_weight(widened(spec), wide);
  }
  Weight w{nullptr, spec.dtype, spec.count, spec.out, spec.in};
  const std::int64_t rows = w.count * w.out;
  const auto scale_bytes = static_cast<std::size_t>(rows * int8_groups(w.in)) * 2;
  const auto elements = static_cast<std::size_t>(rows * w.in);
  std::vector<std::byte> bytes(elements * size_of(w.dtype));
  source.read(0, bytes);
  if (w.dtype == DType::int8) {
    bytes.resize(bytes.size() + scale_bytes);
    source.read_scales(0, std::span(bytes).last(scale_bytes));
  }
  w.data = bytes.data();
  const bool matrix = spec.role == WeightRole::matrix;
  if (matrix && options_.quantize_int8 && w.dtype != DType::int8) {
    Int8Rows small;
    small.quantize(spec, 0, bytes);
    const auto q = std::as_bytes(small.q()), scales = std::as_bytes(small.scales());
    bytes.assign(q.begin(), q.end());
    bytes.insert(bytes.end(), scales.begin(), scales.end());
    w.dtype = DType::int8;
  } else if ((matrix || spec.role == WeightRole::tied_embedding) && options_.compute == Compute::bfloat16) {
    std::vector<std::byte> small(elements * 2);
    for (std::size_t i = 0; i < elements; ++i) {
      const std::uint16_t bits = to_bfloat16(weight_element(w, static_cast<std::int64_t>(i)));
      std::memcpy(small.data() + 2 * i, &bits, sizeof(bits));
    }
    bytes = std::move(small);
    w.dtype = DType::bfloat16;
  }
  loaded_.push_back(std::move(bytes));
  w.data = loaded_.back().data();
  weight_bytes_ += loaded_.back().size();
  return w;
}

void ReferenceBackend::embed(const Weight& table, std::span<const std::int32_t> tokens, float scale,
                             Tensor x) {
  for (std::int64_t r = 0; r < x.rows; ++r)
    for (std::int64_t i = 0; i < x.width; ++i)
      x.row(0, r)[i] = scale * weight_element(table, tokens[static_cast<std::size_t>(r)] * x.width + i);
}

void ReferenceBackend::rms_norm(const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) {
  for (std::int64_t t = 0; t < out.tracks; ++t)
    for (std::int64_t r = 0; r < out.rows; ++r)
      norm_row(row_of(x, t, r), weights[static_cast<std::size_t>(t)], rule, x.width, out.row(t, r));
}

void ReferenceBackend::linear(std::span<const LinearJob> jobs) {
  for (const LinearJob& job : jobs)
    for (std::int64_t t = 0; t < job.y.tracks; ++t)
      for (std::int64_t r = 0; r < job.y.rows; ++r) {
        const auto track = static_cast<std::size_t>(t);
        linear_row(row_of(job.x, t, r), (*job.weights)[track], 0, options_.compute, job.y.row(t, r));
        for (std::int64_t o = 0; job.bias != nullptr && o < job.y.width; ++o)
          job.y.row(t, r)[o] += weight_element((*job.bias)[track], o);
      }
}

void ReferenceBackend::add(Tensor a, Tensor h) {
  for_elements(a, h, [](float& to, float from) { to += from; });
}

void ReferenceBackend::copy(Tensor x, Tensor out) {
  for_elements(x, out, [](float& to, float from) { to = from; });
}

void ReferenceBackend::subtract(Tensor x, Tensor y) {
  for_elements(x, y, [](float& to, float from) { to -= from; });
}

void ReferenceBackend::glu(FfnActivation activation, Tensor gate, Tensor up) {
  for_elements(up, gate, [&](float& g, float u) { g = static_cast<float>(activated(activation, g) * u); });
}

void ReferenceBackend::moe_ffn(const MoeJob& job) {
  const MoeShape& shape = job.shape;
  const float cap = shape.router_logit_cap;
  const std::int64_t d = job.x.width;
  for (std::int64_t t = 0; t < job.y.tracks; ++t) {
    const auto track = static_cast<std::size_t>(t);
    for (std::int64_t r = 0; r < job.y.rows; ++r) {
      const float* x = row_of(job.x, t, r);
      std::vector<float> logits(static_cast<std::size_t>(shape.experts)),
          gate(static_cast<std::size_t>(shape.ffn_size)), up(gate.size()),
          expert_out(static_cast<std::size_t>(d));
      linear_row(x, (*job.router)[track], 0, Compute::float32, logits.data());
      if (!all_finite(logits)) {
        std::fill_n(job.y.row(t, r), d, NAN);
        continue;
      }
      if (cap != 0)
        for (float& logit : logits) logit = cap * std::tanh(logit / cap);
      std::vector<std::int32_t> chosen = by_value(logits);
      const std::size_t top_k = static_cast<std::size_t>(shape.top_k);
      if (shape.normalize_top_k) chosen.resize(top_k);
      double total = 0;
      for (const std::int32_t e : chosen) total += std::exp(double{logits[static_cast<std::size_t>(e)]});
      chosen.resize(top_k);
      std::vector<double> y(static_cast<std::size_t>(d));
      for (const std::int32_t e : chosen) {
        linear_row(x, (*job.gate)[track], e, options_.compute, gate.data());
        linear_row(x, (*job.up)[track], e, options_.compute, up.data());
        for (std::size_t i = 0; i < gate.size(); ++i)
          gate[i] = static_cast<float>(activated(shape.activation, gate[i]) * up[i]);
        linear_row(gate.data(), (*job.down)[track], e, options_.compute, expert_out.data());
        const double weight = std::exp(double{logits[static_cast<std::size_t>(e)]}) / total;
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += weight * expert_out[i];
      }
      for (std::int64_t i = 0; i < d; ++i)
        job.y.row(t, r)[i] = static_cast<float>(y[static_cast<std::size_t>(i)]);
    }
  }
}

void ReferenceBackend::tree_sum(std::span<const float* const> parts, std::int64_t count, float scale,
                                const float* add_to, float* out) {
  PTRT_CHECK(!parts.empty());
  for (std::int64_t i = 0; i < count; ++i) {
    const float sum = scale * tree(parts, i);
    out[i] = add_to != nullptr ? add_to[i] + sum : sum;
  }
}

void ReferenceBackend::sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) {
  for (std::size_t r = 0; r < params.size(); ++r) {
    const std::span<const float> row(logits.row(0, static_cast<std::int64_t>(r)),
                                     static_cast<std::size_t>(logits.width));
    if (!all_finite(row)) {
      out[r] = Sampled::not_finite();
      continue;
    }
    out[r].token = sample_token(row, params[r]);
    if (out[r].token < 0)
      out[r] = Sampled::none_allowed();
    else
      out[r].logprob = params[r].want_logprob ? log_prob(row, out[r].token) : 0;
  }
}

void ReferenceBackend::log_probs(Tensor logits, std::span<const std::int32_t> targets,
                                 std::span<Scored> out) {
  for (std::size_t r = 0; r < targets.size(); ++r) {
    const std::span<const float> row(logits.row(0, static_cast<std::int64_t>(r)),
                                     static_cast<std::size_t>(logits.width));
    out[r] = all_finite(row) ? Scored{log_prob(row, targets[r]), sample_token(row, {}) == targets[r]}
                             : Scored{NAN, false};
  }
}

void ReferenceBackend::top_log_probs(Tensor logits, std::span<const std::int32_t> counts,
                                     std::span<TopLogprobs> out) {
  for (std::size_t r = 0; r < counts.size(); ++r) {
    const std::span<const float> row(logits.row(0, static_cast<std::int64_t>(r)),
                                     static_cast<std::size_t>(logits.width));
    const bool finite = all_finite(row);
    const std::vector<std::int32_t> ids = by_value(row);
    for (std::size_t i = 0; i < static_cast<std::size_t>(counts[r]); ++i)
      out[r].at(i) = finite ? TokenLogprob{ids.at(i), log_prob(row, ids[i])} : TokenLogprob{0, NAN};
  }
}

}  // namespace ptrt
