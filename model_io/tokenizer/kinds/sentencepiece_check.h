#pragma once

#include <string>
#include <string_view>

namespace ptrt {

// What the sentencepiece library does not check in a model and would crash on: its tables of character replacements
// (`precompiled_charsmap`). Empty when they are sound; else a clause for messages. Bytes that are no protocol buffer are
// left for the library to refuse.
std::string problem_of_sentencepiece_model(std::string_view model);

}  // namespace ptrt
