// Tokenizers of the tokenizers library, as a tokenizer.json describes them: those with a BPE model,
// byte-level or with byte fallback. The post-processor is not applied: bos comes from the model's
// config.
#pragma once

#include "model_io/config/model_config.h"
#include "model_io/file/model_file.h"
#include "model_io/tokenizer/tokenizer.h"

namespace ptrt::huggingface {

// None when the file is valid but needs something that this program does not have; why_none then
// names it. Throws bad_input when it is broken or does not fit the model's vocabulary.
TokenizerChoice make_tokenizer(const TokenizerBlob& blob, const ModelConfig& config);

}  // namespace ptrt::huggingface
