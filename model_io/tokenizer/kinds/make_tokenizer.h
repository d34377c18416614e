#pragma once

#include "model_io/config/model_config.h"
#include "model_io/file/model_file.h"
#include "model_io/tokenizer/tokenizer.h"

namespace ptrt {

// The tokenizer of a model file. None when the file has none, or a huggingface one with a part that
// this program does not have. Throws bad_input on an unknown kind, a broken tokenizer model, or one
// with tokens beyond config.vocab_size.
TokenizerChoice make_tokenizer(const TokenizerBlob& blob, const ModelConfig& config);

}  // namespace ptrt
