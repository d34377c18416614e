// `ptrt init`: a model file with random weights.
#include <fmt/core.h>

#include <chrono>

#include "kernels/base/files.h"
#include "launch/commands/model/model_commands.h"
#include "launch/commands/model/model_output.h"
#include "launch/job/standard_streams.h"
#include "model_io/file/model_writer.h"
#include "model_io/shard/random_init.h"

namespace ptrt {
namespace {

// A vocabulary of this size is the 256 bytes with a few special ids after them.
constexpr std::int64_t kFirstByteVocabulary = 256, kLastByteVocabulary = 260;

std::int64_t write_tensors(const ModelConfig& config, const std::vector<TensorSpec>& tensors,
                           const InitOptions& options, ModelWriter& writer) {
  std::int64_t parameters = 0;
  for (const TensorSpec& spec : tensors) {
    writer.write(spec, options.dtype, [&](std::int64_t first, std::span<std::byte> bytes) {
      random_elements(config, spec, options.seed, options.dtype, first, bytes);
    });
    parameters += spec.elements();
  }
  return parameters;
}

}  // namespace

void run_init(const InitOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const ModelConfig config =
      parse_config(read_text_file(options.config_path, "the configuration"), options.config_path);
  check_model_output(options.output, config, options.split,
                     std::vector<NamedFile>{{"the configuration", options.config_path}});
  remove_temporaries_on_signals();
  ModelWriter writer(options.output, config, options.split);
  std::int64_t parameters = write_tensors(config, shared_tensors(config), options, writer);
  for (std::int64_t track = 0; track < config.tracks; ++track)
    parameters += write_tensors(config, track_tensors(config, track), options, writer);
  const bool bytes_fit =
      config.vocab_size >= kFirstByteVocabulary && config.vocab_size <= kLastByteVocabulary;
  if (bytes_fit) writer.write_tokenizer({"bytes", {}, {}});
  writer.commit();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  print_out("{}: model \"{}\", {} parameters, {} bytes of {} in {} file{}, tokenizer {}, {:.1f} s\n",
            options.output, config.name, parameters, writer.bytes_written(), to_string(options.dtype),
            writer.files().size(), writer.files().size() == 1 ? "" : "s", bytes_fit ? "bytes" : "none",
            elapsed.count());
}

}  // namespace ptrt
