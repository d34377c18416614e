#include "kernels/cpu/matmul/matmul.h"

#include <algorithm>

#include "hwy/cache_control.h"
#include "kernels/base/error.h"
#include "kernels/cpu/matmul/matmul_float.h"
#include "kernels/cpu/matmul/matmul_int16.h"
#include "kernels/cpu/matmul/matmul_native.h"
#include "kernels/cpu/simd/native_products.h"
#include "kernels/cpu/simd/simd_target.h"

namespace ptrt {
namespace {

// Rough times in nanoseconds of one thread, for cutting work into tasks.
constexpr double kBytesPerNs = 16, kProductsPerNs = 100;
constexpr double kSmallWork = 5000;  // below it, waking a thread costs more than it brings
constexpr double kMinTask = 4000, kMaxTask = 60000;
constexpr double kTasksPerThread = 8;               // so that the last ones end together
constexpr std::int64_t kTileRows = 12;              // a multiple of every tile's rows, so that tiles are full
constexpr std::int64_t kRowBlock = 21 * kTileRows;  // the most rows of a task
constexpr std::int64_t kSmallConversion = 16 * 1024;  // elements
constexpr std::int64_t kPanelsPerStep = 8;            // a task's panels are a multiple: whole tiles
constexpr std::int64_t kFewRows = kMaxStreamRows;     // up to so many, products wait for memory
// One thread's run of a stream ends at a multiple of this: small compared to a run, but two panels
// at least.
constexpr std::int64_t kPanelsPerCut = 2;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// For few rows and panels of equal times: each thread reads one run of panels, which may span
// several matrices. Memory delivers one long run faster than many short ones.
bool is_stream(std::span<const Product> products) {
  const auto works = [](const Product& p) { return p.rows > 0; };
  const auto first = std::ranges::find_if(products, works);
  return std::ranges::all_of(products, [&](const Product& p) {
    return !works(p) || (p.rows <= kFewRows && p.rows == first->rows &&
                         p.layout.panel_bytes() == first->layout.panel_bytes());
  });
}

void multiply(RowFormat format, const MatmulBlock& block) {
  switch (format) {
    case RowFormat::plain:
      return multiply_float(block);
    case RowFormat::rounded:
      return multiplies_natively(Compute::bfloat16) ? multiply_pairs_apart(block) : multiply_float(block);
    case RowFormat::quantised:
      return multiply_quantised(block);
    case RowFormat::bfloat16:
      return multiply_native_bfloat16(block);
    case RowFormat::int8:
      return multiply_native_int8(block);
    case RowFormat::int16:
      return multiply_int16(block);
  }
}

bool has_int8_quads() {
  return simd_target_has_products() && has_native_int8();
}

double panel_work(const Product& p, std::int64_t rows) {
  return static_cast<double>(p.layout.panel_bytes()) / kBytesPerNs +
         static_cast<double>(p.layout.in * kPanelOuts * rows) / kProductsPerNs;
}

// The first of panels [begin, end), counted through all products: those that lie side by side in
// memory.
std::span<const std::byte> first_panels(std::span<const Product> products, std::int64_t begin,
                                        std::int64_t end) {
  for (const Product& p : products) {
    if (p.rows == 0) continue;
    const std::int64_t count = p.layout.panels(), bytes = p.layout.panel_bytes();
    if (begin < count)
      return {p.matrix + begin * bytes, static_cast<std::size_t>((std::min(count, end) - begin) * bytes)};
    begin -= count, end -= count;
  }
  return {};
}

}  // namespace

RowFormat Matmul::format_of(const Product& p) const {
  const Compute type = p.exact ? Compute::float32 : product_type(compute_, p.layout.dtype);
  switch (type) {
    case Compute::float32:
      break;
    case Compute::bfloat16:
      PTRT_CHECK(p.layout.dtype == DType::bfloat16);
      return multiplies_natively(type) && !takes_pairs_apart(p.rows) ? RowFormat::bfloat16
                                                                     : RowFormat::rounded;
    case Compute::int8:
      if (has_int8_quads()) return RowFormat::int8;
      return has_int16_products() ? RowFormat::int16 : RowFormat::quantised;
  }
  return RowFormat::plain;
}

// Products of one list often read the same x: q, k and v, gate and up, an expert's share of the
// rows.
std::size_t Matmul::input_of(const Product& p) {
  const RowFormat format = format_of(p);
  for (std::size_t i = inputs_.size(); i-- > 0;)
    if (const Input& seen = inputs_[i];
        seen.x == p.x && seen.in == p.layout.in && seen.height == p.x_height && seen.format == format)
      return i;
  inputs_.push_back({p.x, p.layout.in, p.x_height, format, scratch_bytes_, converted_rows_});
  if (format != RowFormat::plain) {
    scratch_bytes_ += p.x_height * record_bytes(format, p.layout.in);
    converted_rows_ += p.x_height;
    converted_elements_ += p.x_height * p.layout.in;
  }
  return inputs_.size() - 1;
}

void Matmul::convert_inputs() {
  records_ = reinterpret_cast<std::byte*>(scratch_.reserve(scratch_bytes_ / 4));
  const auto convert = [&](std::int64_t row) {
    for (const Input& input : inputs_) {
      const std::int64_t local = row - input.first_row;
      if (input.format == RowFormat::plain || local < 0 || local >= input.height) continue;
      write_record(input.format, input.x + local * input.in, input.in,
                   records_ + input.offset + local * record_bytes(input.format, input.in));
    }
  };
  if (converted_elements_ < kSmallConversion) {
    for (std::int64_t row = 0; row < converted_rows_; ++row) convert(row);
    return;
  }
  const std::int64_t rows_per_task =
      std::max<std::int64_t>(1, kSmallConversion / 4 * converted_rows_ / converted_elements_);
  pool_.parallel_for(divide_up(converted_rows_, rows_per_task), [&](std::int64_t task, int) {
    const std::int64_t end = std::min((task + 1) * rows_per_task, converted_rows_);
    for (std::int64_t row = task * rows_per_task; row < end; ++row) convert(row);
  });
}

void Matmul::plan_tasks(std::span<const Product> products) {
  double work = 0;
  for (const Product& p : products) work += static_cast<double>(p.layout.panels()) * panel_work(p, p.rows);
  small_ = work < kSmallWork;
  const double target = std::clamp(work / (kTasksPerThread * pool_.threads()), kMinTask, kMaxTask);
  plans_.clear();
  tasks_ = panels_ = 0;
  for (const Product& p : products) {
    Plan plan;
    plan.first_task = tasks_;
    if (p.rows > 0) {
      plan.input = input_of(p);
      panels_ += p.layout.panels();
      plan.row_blocks = divide_up(p.rows, kRowBlock);
      plan.rows_per_block = plan.row_blocks == 1
                                ? p.rows
                                : divide_up(divide_up(p.rows, plan.row_blocks), kTileRows) * kTileRows;
      const auto panels = static_cast<std::int64_t>(target / panel_work(p, plan.rows_per_block));
      plan.panels_per_task = std::max<std::int64_t>(1, panels / kPanelsPerStep) * kPanelsPerStep;
      tasks_ += plan.row_blocks * divide_up(p.layout.panels(), plan.panels_per_task);
    }
    plans_.push_back(plan);
  }
}

void Matmul::run_task(const Product& p, const Plan& plan, std::int64_t task) const {
  const std::int64_t runs = divide_up(p.layout.panels(), plan.panels_per_task);
  MatmulBlock block = block_of(p, plan);
  block.panel_begin = task % runs * plan.panels_per_task;
  block.panel_end = std::min(block.panel_begin + plan.panels_per_task, p.layout.panels());
  block.row_begin = task / runs * plan.rows_per_block;
  block.row_end = std::min(block.row_begin + plan.rows_per_block, p.rows);
  multiply(inputs_[plan.input].format, block);
}

// Panels [begin, end), counted through all products.
void Matmul::run_panels(std::span<const Product> products, std::int64_t begin, std::int64_t end) const {
  for (std::size_t i = 0; i < products.size(); ++i) {
    const Product& p = products[i];
    if (p.rows == 0) continue;
    const std::int64_t count = p.layout.panels();
    if (begin < count && end > 0) {
      MatmulBlock block = block_of(p, plans_[i]);
      block.panel_begin = std::max<std::int64_t>(begin, 0);
      block.panel_end = std::min(end, count);
      block.row_end = p.rows;
      multiply(inputs_[plans_[i].input].format, block);
    }
    begin -= count, end -= count;
  }
}

// The whole product, except for panels and rows. Those are then set one by one, as the kernels read
// them: a wide load of what narrower stores have just written waits until all loads before it are
// done, that is for memory.
MatmulBlock Matmul::block_of(const Product& p, const Plan& plan) const {
  const Input& input = inputs_[plan.input];
  MatmulBlock block{p.layout, p.matrix};
  block.x = input.format == RowFormat::plain ? reinterpret_cast<const std::byte*>(input.x)
                                             : records_ + input.offset;
  block.x_stride = record_bytes(input.format, p.layout.in);
  block.y = p.y;
  block.x_rows = p.x_rows;
  block.y_rows = p.y_rows;
  return block;
}

bool multiplies_natively(Compute compute) {
  if (compute == Compute::bfloat16) return simd_target_has_bfloat16();
  return compute == Compute::int8 && (has_int8_quads() || has_int16_products());
}

Compute product_type(Compute compute, DType weights) {
  if (compute != Compute::int8 || weights == DType::int8) return compute;
  return weights == DType::bfloat16 && multiplies_natively(Compute::bfloat16) ? Compute::bfloat16
                                                                              : Compute::float32;
}

// A run for each thread; after it, what the thread may read before the next list begins.
void Matmul::run_stream(std::span<const Product> products) {
  const auto first = std::ranges::find_if(products, [](const Product& p) { return p.rows > 0; });
  const std::int64_t panel_bytes = first->layout.panel_bytes();
  const int list = order_.begin(first->matrix), next = order_.follower(list);
  shares_.begin_job(panels_, kPanelsPerCut, panels_ * panel_bytes);
  pool_.parallel_for(pool_.threads(), [&](std::int64_t, int worker) {
    const WeightOrder::Bytes* const ahead =
        next == WeightOrder::kNone ? nullptr : &order_.begin_of_run(next, worker);
    if (ahead != nullptr) hwy::Prefetch(ahead);
    shares_.run_one(worker, [&](int run, std::int64_t begin, std::int64_t end) {
      order_.begin_of_run(list, run) = first_panels(products, begin, end);
      run_panels(products, begin, end);
    });
    pool_.read_ahead(worker, ahead != nullptr ? *ahead : WeightOrder::Bytes());
  });
  shares_.end_job();
}

void Matmul::run(std::span<const Product> products) {
  inputs_.clear();
  scratch_bytes_ = converted_rows_ = converted_elements_ = 0;
  plan_tasks(products);
  convert_inputs();
  if (is_stream(products)) {
    if (small_ || panels_ == 0 || pool_.threads() == 1) return run_panels(products, 0, panels_);
    return run_stream(products);
  }
  const auto run_one = [&](std::int64_t task, int) {
    const auto after = std::upper_bound(plans_.begin(), plans_.end(), task,
                                        [](std::int64_t t, const Plan& plan) { return t < plan.first_task; });
    const Plan& plan = *(after - 1);
    run_task(products[static_cast<std::size_t>(after - 1 - plans_.begin())], plan, task - plan.first_task);
  };
  if (!small_) return pool_.parallel_for(tasks_, run_one);
  for (std::int64_t task = 0; task < tasks_; ++task) run_one(task, 0);
}

}  // namespace ptrt
