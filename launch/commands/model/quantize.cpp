// `ptrt quantize`: the same model with its matrices as int8 or float8.
#include <fmt/core.h>

#include <chrono>
#include <map>

#include "kernels/base/error.h"
#include "kernels/convert.h"
#include "launch/commands/model/model_commands.h"
#include "launch/commands/model/model_output.h"
#include "launch/job/standard_streams.h"
#include "model_io/file/model_file.h"
#include "model_io/file/model_writer.h"
#include "model_io/file/tensor_copy.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {
namespace {

class Quantizer {
 public:
  Quantizer(const QuantizeOptions& options, const ModelMetadata* known)
      : options_(options), model_(options.model, options.trust_links, known) {}

  void run() {
    const auto start = std::chrono::steady_clock::now();
    const ModelConfig& config = model_.config();
    const TokenizerBlob tokenizer = model_.tokenizer();
    make_tokenizer(tokenizer, config);  // throws for an unknown kind, which would be lost
    const std::vector<TensorSpec> tensors = model_tensors(config);
    check_tensors(tensors);
    check_model_output(options_.output, config, options_.split, files_of(model_));

    remove_temporaries_on_signals();
    ModelWriter writer(options_.output, config, options_.split);
    for (const TensorSpec& spec : tensors) convert(spec, writer);
    writer.write_tokenizer(tokenizer);
    writer.commit();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    print_out("{}: {} of {} tensors as {}, {} bytes of weights ({} in {}), {:.1f} s\n", options_.output,
              quantized_, tensors.size(), to_string(options_.weights), writer.bytes_written(),
              model_.bytes_read(), options_.model, elapsed.count());
  }

 private:
  // Every tensor is checked before any is written.
  void check_tensors(const std::vector<TensorSpec>& tensors) {
    for (const TensorSpec& spec : tensors) {
      const auto& stored = stored_.emplace(spec.path, model_.stat(spec)).first->second;
      if (size_of(stored.dtype) == 1)
        throw_bad_input("{}: dataset {} is {} already: expected a model of wider weights", stored.file,
                        spec.path, to_string(stored.dtype));
    }
  }

  void convert(const TensorSpec& spec, ModelWriter& writer) {
    const StoredTensor& stored = stored_.at(spec.path);
    if (spec.role != WeightRole::matrix)
      return TensorCopy(model_, writer, TensorCopy::NotFinite::refuse).copy(spec, stored, WeightLayout::rows);
    const auto reader = model_.open(stored);
    quantize(spec, stored, *reader, writer);
    reader->verify();
    ++quantized_;
  }

  void quantize(const TensorSpec& spec, const StoredTensor& stored, TensorReader& reader,
                ModelWriter& writer) {
    WeightSpec weight = spec.weight(stored.dtype);
    weight.name = fmt::format("{}: dataset {}", stored.file, spec.path);
    const std::size_t row_bytes = static_cast<std::size_t>(weight.in) * size_of(stored.dtype);
    writer.write_scaled(spec, options_.weights, [&](std::int64_t first, std::int64_t rows) {
      piece_.resize(static_cast<std::size_t>(rows) * row_bytes);
      reader.read(first, piece_);
      if (options_.weights == DType::float8_e4m3) {
        float8_.quantize(weight, first, piece_);
        return ModelWriter::ScaledPiece{std::as_bytes(float8_.codes()), std::as_bytes(float8_.scales())};
      }
      int8_.quantize(weight, first, piece_);
      return ModelWriter::ScaledPiece{std::as_bytes(int8_.q()), std::as_bytes(int8_.scales())};
    });
  }

  const QuantizeOptions& options_;
  ModelFile model_;
  std::map<std::string, StoredTensor> stored_;  // by path
  std::vector<std::byte> piece_;
  Int8Rows int8_;
  Float8Rows float8_;
  std::int64_t quantized_ = 0;
};

}  // namespace

void run_quantize(const QuantizeOptions& options, const ModelMetadata* known) {
  Quantizer(options, known).run();
}

}  // namespace ptrt
