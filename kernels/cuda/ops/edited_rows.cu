#include <algorithm>

#include "kernels/cuda/host/scratch_size.h"
#include "kernels/cuda/ops/vocab_parts.cuh"

namespace ptrt::cuda {
namespace {

// Grid: x over parts, y over rows of the group. A part's edits follow its copies.
__global__ void __launch_bounds__(kThreads)
    edit_kernel(Parts raw, const EditedRow* rows, const TokenEdit* edits, const std::uint64_t* masks,
                float* edited) {
  pdl_trigger_and_wait();
  const EditedRow mine = rows[blockIdx.y];
  const Row row = raw.row_within(static_cast<unsigned>(mine.row), static_cast<int>(blockIdx.x));
  const std::uint64_t* mask = masks + blockIdx.y * mask_words(row.vocab);
  float* out = edited + static_cast<std::int64_t>(blockIdx.y) * row.vocab;
  const auto allowed = [&](int id) {
    return mine.is_masked == 0 || (mask[id / kTokensPerMaskWord] >> (id % kTokensPerMaskWord) & 1) != 0;
  };
  for (int id = row.begin + thread_id(); id < row.end; id += kThreads)
    out[id] = allowed(id) ? row.logits[id] : -INFINITY;
  __syncthreads();
  for (int i = thread_id(); i < mine.edits; i += kThreads) {
    const TokenEdit edit = edits[mine.first_edit + i];
    if (edit.token >= row.begin && edit.token < row.end && allowed(edit.token))
      out[edit.token] = edit.apply(row.logits[edit.token]);
  }
}

// One thread per row of the group.
__global__ void __launch_bounds__(kWarpSize)
    finish_kernel(Parts raw, const EditedRow* rows, int count, const float* edited, const Sampled* chosen,
                  const SampleParams* params, Sampled* out) {
  pdl_trigger_and_wait();
  const int number = static_cast<int>(blockIdx.x) * kWarpSize + thread_id();
  if (number >= count) return;
  const auto of_call = static_cast<unsigned>(rows[number].row);
  const VocabPart* parts = raw.of(of_call);
  const Key first = first_key(parts, raw.count);
  if (!Row::is_finite(first)) return;  // the row's result says so already
  Row row = raw.row(of_call);
  row.max_logit = row.logits[Row::id_of(first)];
  const int token = chosen[number].token;
  if (edited[static_cast<std::int64_t>(number) * raw.vocab + token] == -INFINITY)
    out[of_call] = {0, -INFINITY};  // Sampled::none_allowed()
  else
    out[of_call] = {token, params[of_call].want_logprob ? log_prob(row, token, parts, raw.count) : 0.0f};
}

template <typename T>
void upload(const T* from, std::size_t count, T* device, const Stream& stream) {
  if (count > 0)
    PTRT_CUDA_CHECK(cudaMemcpyAsync(device, from, count * sizeof(T), cudaMemcpyHostToDevice, stream.get()));
}

}  // namespace

EditedRows::EditedRows(const WorkLimits& limits, const Stream& stream)
    : stream_(stream),
      max_rows_(static_cast<std::size_t>(most_edited_rows(limits))),
      max_edits_(static_cast<std::size_t>(most_token_edits(limits))) {
  constexpr const char* kWhat = "sampling of edited logits";
  const auto vocab = static_cast<std::size_t>(limits.vocab);
  rows_ = allocate_device_array<EditedRow>(max_rows_, kWhat);
  params_ = allocate_device_array<SampleParams>(max_rows_, kWhat);
  edits_ = allocate_device_array<TokenEdit>(max_edits_, kWhat);
  masks_ = allocate_device_array<std::uint64_t>(
      max_rows_ * static_cast<std::size_t>(mask_words(limits.vocab)), kWhat);
  logits_ = allocate_device_array<float>(max_rows_ * vocab, kWhat);
  parts_ = allocate_device_array<VocabPart>(max_rows_ * kMaxVocabParts, kWhat);
  sampled_ = allocate_device_array<Sampled>(max_rows_, kWhat);
}

void EditedRows::stage(std::int64_t vocab, std::span<const SampleParams> params, StagedEdits& staged) const {
  staged.rows.clear(), staged.params.clear(), staged.edits.clear(), staged.masks.clear();
  staged.groups.clear();
  const auto words = static_cast<std::size_t>(mask_words(vocab));
  for (std::size_t r = 0; r < params.size(); ++r) {
    if (params[r].edits == nullptr) continue;
    const LogitEdits& edits = *params[r].edits;
    if (staged.groups.empty() || staged.groups.back().rows == max_rows_ ||
        staged.groups.back().edits + edits.tokens.size() > max_edits_)
      staged.groups.push_back({staged.rows.size(), 0, staged.edits.size(), 0});
    StagedEdits::Group& group = staged.groups.back();
    staged.rows.push_back({static_cast<std::int32_t>(r), static_cast<std::int32_t>(group.edits),
                           static_cast<std::int32_t>(edits.tokens.size()), edits.allowed.empty() ? 0 : 1});
    staged.params.push_back(params[r]);
    staged.params.back().want_logprob = false;
    staged.edits.insert(staged.edits.end(), edits.tokens.begin(), edits.tokens.end());
    staged.masks.insert(staged.masks.end(), edits.allowed.begin(), edits.allowed.end());
    staged.masks.resize(staged.rows.size() * words);
    group.rows++;
    group.edits += edits.tokens.size();
  }
}

EditedBatch EditedRows::write(const Tensor& logits, const StagedEdits& staged,
                              const StagedEdits::Group& group) {
  const auto words = static_cast<std::size_t>(mask_words(logits.width));
  upload(staged.rows.data() + group.first, group.rows, rows_.get(), stream_);
  upload(staged.params.data() + group.first, group.rows, params_.get(), stream_);
  upload(staged.edits.data() + group.first_edit, group.edits, edits_.get(), stream_);
  upload(staged.masks.data() + group.first * words, group.rows * words, masks_.get(), stream_);
  const Parts raw = parts_of(logits, nullptr, nullptr);
  launch(shape_of_parts("edit_logits", raw, group.rows, stream_), edit_kernel, raw, rows_.get(), edits_.get(),
         masks_.get(), logits_.get());
  const auto rows = static_cast<std::int64_t>(group.rows);
  return {{logits_.get(), 1, rows, logits.width, rows * logits.width, DType::float32},
          std::span(staged.params).subspan(group.first, group.rows),
          params_.get(),
          parts_.get(),
          sampled_.get()};
}

void EditedRows::finish(const Tensor& logits, VocabPart* parts, const StagedEdits::Group& group,
                        const SampleParams* params, Sampled* sampled) {
  const int rows = static_cast<int>(group.rows);
  launch(
      {"edited_rows", dim3(static_cast<unsigned>(ceil_div(rows, kWarpSize))), dim3(kWarpSize), stream_.get()},
      finish_kernel, parts_of(logits, parts, nullptr), rows_.get(), rows, logits_.get(), sampled_.get(),
      params, sampled);
}

}  // namespace ptrt::cuda
