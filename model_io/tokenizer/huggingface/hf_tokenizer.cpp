#include "model_io/tokenizer/huggingface/hf_tokenizer.h"

#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/strict_json.h"
#include "model_io/text/unicode.h"
#include "model_io/tokenizer/huggingface/added_tokens.h"
#include "model_io/tokenizer/huggingface/bpe.h"
#include "model_io/tokenizer/huggingface/component.h"
#include "model_io/tokenizer/huggingface/decoder.h"
#include "model_io/tokenizer/huggingface/normalizer.h"
#include "model_io/tokenizer/huggingface/pre_tokenizer.h"

namespace ptrt::huggingface {
namespace {

class HuggingFaceTokenizer : public Tokenizer {
 public:
  HuggingFaceTokenizer(const Component& file, std::int64_t vocab_size)
      : bpe_(file.child("model"), vocab_size) {
    if (file.has("normalizer")) normalizer_.add(file.child("normalizer"));
    if (file.has("pre_tokenizer")) pre_tokenizer_.add(file.child("pre_tokenizer"));
    if (file.has("decoder"))
      decoder_.add(file.child("decoder"));
    else
      file.note_unsupported("a decoder, which is missing");
    take_tokens(file, read_added_tokens(file, vocab_size));
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids;
    const std::string valid = sanitize_utf8(text);
    for (const auto& section : verbatim_tokens_.cut(valid)) {
      if (section.id)
        ids.push_back(*section.id);
      else
        encode_section(valid.substr(section.span.begin, section.span.end - section.span.begin),
                       section.span.begin == 0, ids);
    }
    return ids;
  }

  std::string token_bytes(std::int32_t id) const override {
    const auto found = bytes_.find(id);
    return found == bytes_.end() ? std::string() : found->second;
  }

  std::string token_text(std::int32_t id) const override {
    if (const auto found = special_texts_.find(id); found != special_texts_.end()) return found->second;
    return token_bytes(id);
  }

 private:
  // Text between the tokens that are found before normalisation.
  void encode_section(std::string text, bool starts_text, std::vector<std::int32_t>& ids) const {
    const std::string normalized = normalizer_.apply(std::move(text));
    for (const auto& [span, id] : normalized_tokens_.cut(normalized)) {
      if (id) {
        ids.push_back(*id);
        continue;
      }
      const bool first = starts_text && span.begin == 0;
      for (const Word& word :
           pre_tokenizer_.cut({normalized.substr(span.begin, span.end - span.begin), first}))
        bpe_.encode(word.text, ids);
    }
  }

  void take_tokens(const Component& file, std::vector<AddedToken> added) {
    for (const auto& [id, token] : bpe_.tokens())
      bytes_[id] = token == bpe_.unknown_token() ? std::string() : decoder_.bytes_of(token);
    std::vector<AddedToken> verbatim, normalized;
    std::unordered_map<std::int32_t, std::string> contents;
    for (AddedToken& token : added) {
      check_id(file, token, contents);
      if (token.special) special_texts_[token.id] = token.content;
      if (token.normalized) token.content = normalizer_.apply(token.content);
      bytes_[token.id] = token.special ? std::string() : decoder_.bytes_of(token.content);
      (token.normalized ? normalized : verbatim).push_back(std::move(token));
    }
    verbatim_tokens_ = AddedTokenFinder(std::move(verbatim));
    normalized_tokens_ = AddedTokenFinder(std::move(normalized));
  }

  // An id stands for one token, in the vocabulary and among the added tokens.
  void check_id(const Component& file, const AddedToken& token,
                std::unordered_map<std::int32_t, std::string>& contents) const {
    const auto fail = [&](const std::string& problem) {
      file.fail("added_tokens",
                fmt::format("gives {} the id {}, {}", shown(token.content), token.id, problem));
    };
    if (const auto id = bpe_.id_of(token.content); id && *id != token.id)
      fail(fmt::format("but the vocabulary has it as {}", *id));
    if (const auto found = bpe_.tokens().find(token.id);
        found != bpe_.tokens().end() && found->second != token.content)
      fail(fmt::format("which is {} in the vocabulary", shown(found->second)));
    const auto [first, is_new] = contents.emplace(token.id, token.content);
    if (!is_new && first->second != token.content)
      fail(fmt::format("which {} has already", shown(first->second)));
  }

  Normalizer normalizer_;
  AddedTokenFinder verbatim_tokens_{{}}, normalized_tokens_{{}};
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  Decoder decoder_;
  std::unordered_map<std::int32_t, std::string> bytes_;  // of each id; none for special tokens
  std::unordered_map<std::int32_t, std::string> special_texts_;
};

// Files of early versions do not name the model's type.
bool is_bpe(const Component& model) {
  return model.has("type") ? model.type() == "BPE" : model.has("merges") && model.has("vocab");
}

TokenizerChoice not_run(const std::string& what) {
  return {nullptr, fmt::format("the model's huggingface tokenizer needs {}, which is not supported", what)};
}

}  // namespace

TokenizerChoice make_tokenizer(const TokenizerBlob& blob, const ModelConfig& config) {
  const std::string_view bytes(reinterpret_cast<const char*>(blob.model.data()), blob.model.size());
  const nlohmann::json parsed = parse_json_object(bytes, blob.file + ": /tokenizer/model");
  std::string unsupported;
  const Component file(parsed, blob.file, "", unsupported);
  file.allow({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
              "post_processor", "decoder", "model"});
  if (file.has("version") && file.text("version") != "1.0")
    file.note_unsupported("version " + shown(file.value("version")));
  if (!is_bpe(file.child("model"))) {
    const Component model = file.child("model");
    return not_run(model.has("type") ? "a model of type " + shown(model.type()) : "a model without a type");
  }
  auto tokenizer = std::make_unique<HuggingFaceTokenizer>(file, config.vocab_size);
  if (!unsupported.empty()) return not_run(unsupported);
  return {std::move(tokenizer), {}};
}

}  // namespace ptrt::huggingface
