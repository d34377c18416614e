#include "kernels/cpu/weights/weight_loader.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "kernels/cpu/weights/widened_float8.h"

namespace ptrt {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{128} << 10;
constexpr std::int64_t kImagePieceBytes = std::int64_t{512} << 10;  // no buffer has to stay in a cache

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::int64_t row_bytes(const WeightSpec& spec) {
  return spec.in * static_cast<std::int64_t>(size_of(spec.dtype));
}

std::size_t kept_bytes(const Weight& w) {
  if (w.packed) return static_cast<std::size_t>(w.count * packed_layout(w).matrix_bytes());
  return static_cast<std::size_t>(w.count * w.out * w.in) * size_of(w.dtype);
}

Weight kept_weight(const WeightSpec& spec, const CpuOptions& options) {
  return {nullptr, cpu_weight_type(spec, options), spec.count, spec.out, spec.in, is_multiplied(spec.role)};
}

}  // namespace

DType cpu_weight_type(const WeightSpec& stored, const CpuOptions& options) {
  if (stored.dtype == DType::float8_e4m3 && stored.role != WeightRole::matrix)
    throw_bad_input("{}: float8 is for matrices; expected a wider type", stored.name);
  const WeightSpec spec = widened(stored);
  const bool stored_int8 = spec.dtype == DType::int8;
  if (spec.role != WeightRole::matrix) {
    if (stored_int8) throw_bad_input("{}: int8 is for matrices; expected a floating type", spec.name);
    if (spec.role == WeightRole::vector) return DType::float32;
    const bool rounded = spec.role == WeightRole::tied_embedding && options.compute == Compute::bfloat16;
    return rounded ? DType::bfloat16 : spec.dtype;
  }
  const bool becomes_int8 = stored_int8 || options.quantize_int8;
  if (options.compute == Compute::bfloat16 && becomes_int8)
    throw_bad_input("{}: int8 weights cannot take bfloat16 products; compute in int8 or float32", spec.name);
  if (options.compute == Compute::int8 && !becomes_int8)
    throw_bad_input("{}: int8 products need int8 weights, found {}; quantise them or compute in another type",
                    spec.name, to_string(spec.dtype));
  if (becomes_int8) return DType::int8;
  return options.compute == Compute::bfloat16 ? DType::bfloat16 : spec.dtype;
}

std::size_t cpu_weight_bytes(const WeightSpec& spec, const CpuOptions& options) {
  return kept_bytes(kept_weight(spec, options));
}

std::vector<Weight> WeightLoader::load(std::span<const WeightLoad> loads) {
  for (const WeightLoad& load : loads) cpu_weight_type(load.spec, options_);
  std::vector<Job> jobs;
  std::deque<WidenedFloat8> wide;
  std::int64_t tasks = 0;
  for (const WeightLoad& load : loads) {
    const bool float8 = load.spec.dtype == DType::float8_e4m3;
    jobs.push_back(
        plan(widened(load.spec), float8 ? wide.emplace_back(load.spec, *load.source) : *load.source));
    jobs.back().first_task = tasks;
    tasks += load.spec.count * jobs.back().tasks_per_matrix;
  }
  if (arena_.adopted()) tasks = 0;
  pool_.parallel_for(tasks, [&](std::int64_t task, int worker) {
    const auto after = std::upper_bound(jobs.begin(), jobs.end(), task,
                                        [](std::int64_t t, const Job& job) { return t < job.first_task; });
    const Job& job = *(after - 1);
    run_task(job, task - job.first_task, buffers_[static_cast<std::size_t>(worker)]);
  });
  std::vector<Weight> weights;
  for (const Job& job : jobs) {
    weights.push_back(job.weight);
    bytes_ += kept_bytes(job.weight);
    if (job.to == nullptr) mapped_bytes_ += kept_bytes(job.weight);
  }
  return weights;
}

WeightLoader::Job WeightLoader::plan(const WeightSpec& spec, WeightSource& source) {
  PTRT_CHECK(spec.count >= 1 && spec.out >= 1 && spec.in >= 1);
  const bool packed = is_multiplied(spec.role);
  Job job;
  job.spec = spec;
  job.source = &source;
  job.weight = kept_weight(spec, options_);
  if (!map(job)) {
    job.to = arena_.take(kept_bytes(job.weight), spec.name);
    job.weight.data = job.to;
  }
  const std::int64_t unit = packed ? kPanelOuts : 1;
  const std::int64_t piece = job.to == nullptr ? kImagePieceBytes : kPieceBytes;
  job.rows_per_task = std::max<std::int64_t>(1, piece / (row_bytes(spec) * unit)) * unit;
  if (spec.role == WeightRole::vector) job.rows_per_task = spec.out;
  job.tasks_per_matrix = divide_up(spec.out, job.rows_per_task);
  return job;
}

bool WeightLoader::map(Job& job) {
  const WeightSpec& spec = job.spec;
  if (spec.role == WeightRole::vector || job.weight.dtype != spec.dtype) return false;
  std::optional<MappedWeight> mapped =
      job.source->try_map(job.weight.packed ? WeightLayout::panels : WeightLayout::rows);
  if (!mapped) return false;
  PTRT_CHECK(mapped->bytes == kept_bytes(job.weight));
  job.weight.data = mapped->data.get();
  mappings_.push_back(std::move(mapped->data));
  return true;
}

void WeightLoader::run_task(const Job& job, std::int64_t task, Buffers& buffers) {
  note_progress();
  const WeightSpec& spec = job.spec;
  if (spec.role == WeightRole::vector) return load_vector(job, buffers);
  const std::int64_t matrix = task / job.tasks_per_matrix,
                     row = task % job.tasks_per_matrix * job.rows_per_task;
  const std::int64_t count = std::min(job.rows_per_task, spec.out - row);
  if (job.to == nullptr) return job.source->check_mapped(matrix * spec.out + row, count);
  if (job.weight.packed) return load_packed(job, matrix, row, count, buffers);
  const std::int64_t first = matrix * spec.out + row, bytes = row_bytes(spec);
  job.source->read(first, {job.to + first * bytes, static_cast<std::size_t>(count * bytes)});
}

void WeightLoader::load_vector(const Job& job, Buffers& buffers) {
  buffers.rows.resize(static_cast<std::size_t>(job.spec.out * row_bytes(job.spec)));
  job.source->read(0, buffers.rows);
  widen(job.spec.dtype, buffers.rows.data(), job.spec.out * job.spec.in, reinterpret_cast<float*>(job.to));
}

void WeightLoader::load_packed(const Job& job, std::int64_t matrix, std::int64_t row, std::int64_t count,
                               Buffers& buffers) {
  const WeightSpec& spec = job.spec;
  const PackedLayout layout = packed_layout(job.weight);
  const std::int64_t first = matrix * spec.out + row;
  buffers.rows.resize(static_cast<std::size_t>(count * row_bytes(spec)));
  job.source->read(first, buffers.rows);
  if (spec.dtype == DType::int8) {
    buffers.scales.resize(static_cast<std::size_t>(count * layout.groups()));
    job.source->read_scales(first, std::as_writable_bytes(std::span(buffers.scales)));
  }
  std::byte* to = job.to + matrix * layout.matrix_bytes() + row / kPanelOuts * layout.panel_bytes();
  for (std::int64_t r = 0; r < count; r += kPanelOuts, to += layout.panel_bytes())
    pack_rows(job, first + r, r, std::min(kPanelOuts, count - r), buffers, to);
}

void WeightLoader::pack_rows(const Job& job, std::int64_t first, std::int64_t row, std::int64_t count,
                             Buffers& buffers, std::byte* to) {
  const WeightSpec& spec = job.spec;
  const PackedLayout layout = packed_layout(job.weight);
  const std::byte* from = buffers.rows.data() + row * row_bytes(spec);
  if (layout.dtype == spec.dtype) {
    const std::uint16_t* scales =
        spec.dtype == DType::int8 ? buffers.scales.data() + row * layout.groups() : nullptr;
    return pack_panel(layout, from, scales, count, to);
  }
  if (layout.dtype == DType::int8) {
    Int8Rows& small = buffers.quantized;
    small.quantize(spec, first, {from, static_cast<std::size_t>(count * row_bytes(spec))});
    return pack_panel(layout, reinterpret_cast<const std::byte*>(small.q().data()), small.scales().data(),
                      count, to);
  }
  const std::int64_t elements = count * spec.in;
  buffers.wide.resize(static_cast<std::size_t>(elements));
  buffers.rounded.resize(static_cast<std::size_t>(elements));
  widen(spec.dtype, from, elements, buffers.wide.data());
  round_to_bfloat16(buffers.wide.data(), elements, buffers.rounded.data());
  pack_panel(layout, reinterpret_cast<const std::byte*>(buffers.rounded.data()), nullptr, count, to);
}

}  // namespace ptrt
