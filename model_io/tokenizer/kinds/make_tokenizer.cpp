#include "model_io/tokenizer/kinds/make_tokenizer.h"

#include <charconv>
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

// Ids 0-255 are the bytes, further ids are special. In a rendered chat id N of these is written <|N|>.
class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(std::int64_t vocab_size) : vocab_size_(vocab_size) {}

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

  std::string token_text(std::int32_t id) const override {
    return is_special(id) ? fmt::format("<|{}|>", id) : token_bytes(id);
  }

  std::vector<std::int32_t> encode_rendered(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    while (!text.empty()) {
      std::int32_t id = static_cast<unsigned char>(text.front());
      std::size_t taken = 1;
      if (text.starts_with("<|")) {
        std::int32_t named = 0;
        const auto [end, error] = std::from_chars(text.data() + 2, text.data() + text.size(), named);
        const std::string name = token_text(named);  // no sign, no leading zero
        if (error == std::errc() && is_special(named) && text.starts_with(name))
          id = named, taken = name.size();
      }
      ids.push_back(id);
      text.remove_prefix(taken);
    }
    return ids;
  }

 private:
  bool is_special(std::int32_t id) const { return id >= kByteIds && id < vocab_size_; }

  std::int64_t vocab_size_;
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
  return {std::make_unique<ByteTokenizer>(config.vocab_size), {}};
}

}  // namespace ptrt
