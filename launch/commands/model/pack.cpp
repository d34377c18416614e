// `ptrt pack`: the same model with its matrices in the layout of the CPU's products, or back in rows.
#include <fmt/core.h>

#include <chrono>
#include <map>

#include "kernels/base/error.h"
#include "launch/commands/model/model_commands.h"
#include "launch/commands/model/model_output.h"
#include "launch/job/standard_streams.h"
#include "model_io/file/file_map.h"
#include "model_io/file/model_writer.h"
#include "model_io/file/tensor_copy.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {

void run_pack(const PackOptions& options, const ModelMetadata* known) {
  const auto start = std::chrono::steady_clock::now();
  const ModelFile model(options.model, options.trust_links, known);
  const ModelConfig& config = model.config();
  const TokenizerBlob tokenizer = model.tokenizer();
  make_tokenizer(tokenizer, config);  // throws for an unknown kind, which would be lost
  const std::vector<TensorSpec> tensors = model_tensors(config);
  std::map<std::string, StoredTensor> stored;  // every tensor is checked before any is written
  const bool panels = options.layout == WeightLayout::panels;
  for (const TensorSpec& spec : tensors) {
    const StoredTensor& found = stored.emplace(spec.path, model.stat(spec)).first->second;
    if (panels && found.dtype == DType::float8_e4m3)
      throw_bad_input("{}: dataset {} is float8, which has no panels: pack the model that it was made of",
                      found.file, spec.path);
  }
  check_model_output(options.output, config, options.split, files_of(model));

  remove_temporaries_on_signals();
  ModelWriter writer(options.output, config, options.split, panels ? kMapAlignment : 1);
  TensorCopy copy(model, writer, TensorCopy::NotFinite::keep);
  std::int64_t matrices = 0;
  for (const TensorSpec& spec : tensors) {
    copy.copy(spec, stored.at(spec.path), options.layout);
    matrices += is_multiplied(spec.role) ? 1 : 0;
  }
  writer.write_tokenizer(tokenizer);
  writer.commit();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  print_out("{}: {} of {} tensors in {}, {} bytes of weights ({} in {}), {:.1f} s\n", options.output,
            panels ? matrices : static_cast<std::int64_t>(tensors.size()), tensors.size(),
            panels ? "panels" : "rows", writer.bytes_written(), model.bytes_read(), options.model,
            elapsed.count());
}

}  // namespace ptrt
