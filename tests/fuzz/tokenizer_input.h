// A tokenizer made of a fuzz input.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "driver/target.h"
#include "kernels/base/error.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt::fuzz {

// None where the input is refused, as it should be: bad input, in a message that names the file.
inline std::optional<TokenizerChoice> try_tokenizer(const std::string& kind, std::string_view input,
                                                    std::int64_t vocab_size) {
  ModelConfig config;
  config.vocab_size = vocab_size;
  try {
    return make_tokenizer({kind, {input.begin(), input.end()}, "m.h5"}, config);
  } catch (const Error& error) {
    expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
           error.what());
    expect(std::string_view(error.what()).starts_with("m.h5"), "the message names no file: {}", error.what());
    return std::nullopt;
  }
}

}  // namespace ptrt::fuzz
