#include "model_io/tokenizer/kinds/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <charconv>
#include <exception>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/tokenizer/huggingface/added_tokens.h"
#include "model_io/tokenizer/kinds/sentencepiece_check.h"

namespace ptrt {
namespace {

// Most of the library's problems are a status; those of its tries are exceptions. Empty: none.
template <typename Call>
std::string problem_of(const Call& call) {
  try {
    const auto status = call();
    return status.ok() ? std::string() : status.ToString();
  } catch (const std::exception& error) {
    return error.what();
  }
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const TokenizerBlob& blob) {
    const std::string_view bytes(reinterpret_cast<const char*>(blob.model.data()), blob.model.size());
    if (const std::string problem = problem_of_sentencepiece_model(bytes); !problem.empty())
      throw_bad_input("{}: /tokenizer/model is not a sentencepiece model: {}", blob.file, problem);
    const std::string load_problem = problem_of([&] { return processor_.LoadFromSerializedProto(bytes); });
    if (!load_problem.empty())
      throw_bad_input("{}: /tokenizer/model is not a sentencepiece model: {}", blob.file, load_problem);
    std::vector<huggingface::AddedToken> controls;
    for (std::int32_t id = 0; id < processor_.GetPieceSize(); ++id) {
      pieces_.push_back(bytes_of_piece(id));
      if (processor_.IsControl(id)) controls.push_back({.content = processor_.IdToPiece(id), .id = id});
    }
    controls_ = huggingface::AddedTokenFinder(std::move(controls));
  }

  std::int64_t size() const { return static_cast<std::int64_t>(pieces_.size()); }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const std::string problem = problem_of([&] { return processor_.Encode(text, &ids); });
    if (!problem.empty()) throw_bad_input("sentencepiece cannot encode the text: {}", problem);
    return ids;
  }

  std::string token_bytes(std::int32_t id) const override {
    return id < 0 || id >= size() ? std::string() : pieces_[static_cast<std::size_t>(id)];
  }

  std::string token_text(std::int32_t id) const override {
    return id >= 0 && id < size() && processor_.IsControl(id) ? processor_.IdToPiece(id) : token_bytes(id);
  }

  // The library takes the text of a control token for plain text. What is between two of them is encoded by itself.
  std::vector<std::int32_t> encode_rendered(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    for (const auto& [span, id] : controls_.cut(text)) {
      if (id) {
        ids.push_back(*id);
        continue;
      }
      const auto between = encode(text.substr(span.begin, span.end - span.begin));
      ids.insert(ids.end(), between.begin(), between.end());
    }
    return ids;
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
  huggingface::AddedTokenFinder controls_{{}};
};

}  // namespace

TokenizerChoice make_sentencepiece_tokenizer(const TokenizerBlob& blob, const ModelConfig& config) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(blob);
  if (tokenizer->size() > config.vocab_size)
    throw_bad_input("{}: the sentencepiece tokenizer has {} pieces, more than vocab_size = {}", blob.file,
                    tokenizer->size(), config.vocab_size);
  return {std::move(tokenizer), {}};
}

}  // namespace ptrt
