#pragma once

#include "model_io/config/model_config.h"
#include "model_io/file/model_file.h"
#include "model_io/tokenizer/tokenizer.h"

namespace ptrt {

// Throws bad_input when the blob is not a sentencepiece model, or has more pieces than
// config.vocab_size.
TokenizerChoice make_sentencepiece_tokenizer(const TokenizerBlob& blob, const ModelConfig& config);

}  // namespace ptrt
