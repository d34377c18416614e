#include "model_io/tokenizer/kinds/make_tokenizer.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "model_io/tokenizer/huggingface/hf_tokenizer.h"
#include "model_io/tokenizer/kinds/sentencepiece_tokenizer.h"

namespace ptrt {
namespace {

constexpr std::int32_t kByteIds = 256;

// Ids 0-255 are the bytes, further ids are special.
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    ids.reserve(text.size());
    for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
    return ids;
  }

  std::string token_bytes(std::int32_t id) const override {
    if (id < 0 || id >= kByteIds) return {};
    return {static_cast<char>(id)};
  }
};

}  // namespace

TokenizerChoice make_tokenizer(const TokenizerBlob& blob, const ModelConfig& config) {
  if (blob.kind.empty()) return {nullptr, "the model file has no tokenizer"};
  if (blob.kind == "huggingface") return huggingface::make_tokenizer(blob, config);
  if (blob.kind == "sentencepiece") return make_sentencepiece_tokenizer(blob, config);
  if (blob.kind != "bytes")
    throw_bad_input(
        "{}: /tokenizer: expected kind \"bytes\", \"sentencepiece\" or \"huggingface\", found \"{}\"",
        blob.file, blob.kind);
  if (config.vocab_size < kByteIds)
    throw_bad_input("{}: /tokenizer: kind \"bytes\" needs a vocab_size of at least {}, found {}", blob.file,
                    kByteIds, config.vocab_size);
  return {std::make_unique<ByteTokenizer>(), {}};
}

}  // namespace ptrt
