#include "model_io/tokenizer/tokenizer.h"

#include <sentencepiece_processor.h>

#include <charconv>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/tokenizer/huggingface/hf_tokenizer.h"

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

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const TokenizerBlob& blob) {
    const std::string_view bytes(reinterpret_cast<const char*>(blob.model.data()), blob.model.size());
    const auto status = processor_.LoadFromSerializedProto(bytes);
    if (!status.ok())
      throw_bad_input("{}: /tokenizer/model is not a sentencepiece model: {}", blob.file, status.ToString());
    for (std::int32_t id = 0; id < processor_.GetPieceSize(); ++id) pieces_.push_back(bytes_of_piece(id));
  }

  std::int64_t size() const { return static_cast<std::int64_t>(pieces_.size()); }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    if (!status.ok()) throw_bad_input("sentencepiece cannot encode the text: {}", status.ToString());
    return ids;
  }

  std::string token_bytes(std::int32_t id) const override {
    return id < 0 || id >= size() ? std::string() : pieces_[static_cast<std::size_t>(id)];
  }

 private:
  std::string bytes_of_piece(std::int32_t id) const {
    if (processor_.IsControl(id) || processor_.IsUnknown(id) || processor_.IsUnused(id)) return {};
    std::string piece = processor_.IdToPiece(id);
    if (processor_.IsByte(id)) {  // "<0x0A>"
      unsigned byte = 0;
      std::from_chars(piece.data() + 3, piece.data() + piece.size(), byte, 16);
      return {static_cast<char>(byte)};
    }
    constexpr std::string_view kSpace = "\u2581";  // what the pieces have for a space
    std::string bytes;
    for (std::size_t at = 0; at < piece.size();) {
      const bool is_space = piece.compare(at, kSpace.size(), kSpace) == 0;
      bytes += is_space ? ' ' : piece[at];
      at += is_space ? kSpace.size() : 1;
    }
    return bytes;
  }

  sentencepiece::SentencePieceProcessor processor_;
  std::vector<std::string> pieces_;  // the bytes of each id
};

TokenizerChoice make_sentencepiece(const TokenizerBlob& blob, const ModelConfig& config) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(blob);
  if (tokenizer->size() > config.vocab_size)
    throw_bad_input("{}: the sentencepiece tokenizer has {} pieces, more than vocab_size = {}", blob.file,
                    tokenizer->size(), config.vocab_size);
  return {std::move(tokenizer), {}};
}

// Length of the longest prefix of `bytes` that could begin a well-formed sequence, and whether it is a whole
// one (Unicode 15, table 3-7).
struct Sequence {
  std::size_t length = 1;
  bool whole = false;
};

Sequence first_sequence(std::string_view bytes) {
  const auto lead = static_cast<unsigned char>(bytes[0]);
  if (lead < 0x80) return {1, true};
  if (lead < 0xc2 || lead > 0xf4) return {1, false};
  const std::size_t wanted = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // Of the second byte alone the range is narrower: no overlong forms, no surrogates, nothing above U+10FFFF.
  unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t length = 1; length < wanted; ++length, low = 0x80, high = 0xbf) {
    if (length == bytes.size()) return {length, false};
    const auto byte = static_cast<unsigned char>(bytes[length]);
    if (byte < low || byte > high) return {length, false};
  }
  return {wanted, true};
}

}  // namespace

TokenizerChoice make_tokenizer(const TokenizerBlob& blob, const ModelConfig& config) {
  if (blob.kind.empty()) return {nullptr, "the model file has no tokenizer"};
  if (blob.kind == "huggingface") return huggingface::make_tokenizer(blob, config);
  if (blob.kind == "sentencepiece") return make_sentencepiece(blob, config);
  if (blob.kind != "bytes")
    throw_bad_input(
        "{}: /tokenizer: expected kind \"bytes\", \"sentencepiece\" or \"huggingface\", found \"{}\"",
        blob.file, blob.kind);
  if (config.vocab_size < kByteIds)
    throw_bad_input("{}: /tokenizer: kind \"bytes\" needs a vocab_size of at least {}, found {}", blob.file,
                    kByteIds, config.vocab_size);
  return {std::make_unique<ByteTokenizer>(), {}};
}

std::string sanitize_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const Sequence sequence = first_sequence(bytes);
    text += sequence.whole ? bytes.substr(0, sequence.length) : std::string_view("\uFFFD");
    bytes.remove_prefix(sequence.length);
  }
  return text;
}

}  // namespace ptrt
