// The fields of request lines: one row for each name and the forms in which it means the same. Whatever is not in
// this table is refused. docs/REQUESTS.md has the table for users; tests/docs compares the two.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace ptrt {

// Forms of a JSON object that has fields, and the commands to which a field matters, as bits.
using FieldForms = std::uint8_t;
inline constexpr FieldForms kPlain = 1, kCompletions = 2, kChat = 4, kEnvelope = 8;
inline constexpr FieldForms kBodies = kCompletions | kChat, kLines = kPlain | kBodies;
inline constexpr FieldForms kPrompts = kPlain | kCompletions, kMessages = kPlain | kChat;
using FieldTasks = std::uint8_t;
inline constexpr FieldTasks kGenerate = 1, kScore = 2, kBoth = kGenerate | kScore;

enum class Standing : std::uint8_t {
  read,     // by the parser, through Fields; a line in which nothing has read it is refused
  passes,   // any value: it changes no result
  refused,  // known, but not supported: only the neutral value passes
};

struct FieldRule {
  std::string_view name;
  FieldForms forms;
  FieldTasks tasks;  // `score` ignores fields of `generate` alone
  Standing standing;
  std::string_view neutral = {};  // of a refused one: the value, as JSON, that asks for nothing
};

// Ascending by name. A name has several rows where its standing differs between forms.
// clang-format off
inline constexpr auto kFieldTable = std::to_array<FieldRule>({
    {"add_generation_prompt", kMessages, kBoth, Standing::read},
    {"add_special_tokens", kPrompts, kBoth, Standing::read},
    {"add_special_tokens", kChat, kBoth, Standing::refused, "false"},
    {"allowed_token_ids", kLines, kGenerate, Standing::read},
    {"audio", kChat, kGenerate, Standing::refused},
    {"bad_words", kLines, kGenerate, Standing::read},
    {"best_of", kLines, kGenerate, Standing::read},
    {"body", kEnvelope, kBoth, Standing::read},
    {"cache_salt", kLines, kBoth, Standing::passes},
    {"chat_template", kMessages, kGenerate, Standing::refused},
    {"chat_template_kwargs", kMessages, kBoth, Standing::read},
    {"context", kPrompts, kScore, Standing::read},
    {"continuation", kPrompts, kScore, Standing::read},
    {"continue_final_message", kMessages, kBoth, Standing::read},
    {"custom_id", kEnvelope, kBoth, Standing::read},
    {"detokenize", kLines, kGenerate, Standing::refused, "true"},
    {"documents", kMessages, kBoth, Standing::read},
    {"ec_transfer_params", kLines, kGenerate, Standing::refused},
    {"echo", kPrompts, kGenerate, Standing::read},
    {"echo", kChat, kGenerate, Standing::refused, "false"},
    {"extra_args", kLines, kGenerate, Standing::refused, "{}"},
    {"flat_logprobs", kLines, kGenerate, Standing::refused, "false"},
    {"frequency_penalty", kLines, kGenerate, Standing::read},
    {"function_call", kChat, kGenerate, Standing::refused, "\"none\""},
    {"functions", kChat, kGenerate, Standing::refused, "[]"},
    {"guided_choice", kLines, kGenerate, Standing::read},
    {"guided_decoding_backend", kLines, kGenerate, Standing::refused},
    {"guided_grammar", kLines, kGenerate, Standing::refused},
    {"guided_json", kLines, kGenerate, Standing::read},
    {"guided_regex", kLines, kGenerate, Standing::read},
    {"guided_whitespace_pattern", kLines, kGenerate, Standing::refused},
    {"id", kPlain, kBoth, Standing::read},
    {"ignore_eos", kLines, kGenerate, Standing::read},
    {"include_reasoning", kChat, kGenerate, Standing::refused, "true"},
    {"include_stop_str_in_output", kLines, kGenerate, Standing::read},
    {"kv_transfer_params", kLines, kGenerate, Standing::refused},
    {"length_penalty", kLines, kGenerate, Standing::refused, "1"},
    {"logit_bias", kLines, kGenerate, Standing::read},
    {"logits_processors", kLines, kGenerate, Standing::refused, "[]"},
    {"logprob_token_ids", kLines, kGenerate, Standing::refused},
    {"logprobs", kLines, kBoth, Standing::read},
    {"max_completion_tokens", kLines, kGenerate, Standing::read},
    {"max_tokens", kLines, kGenerate, Standing::read},
    {"media_io_kwargs", kChat, kGenerate, Standing::refused, "{}"},
    {"messages", kMessages, kBoth, Standing::read},
    {"metadata", kLines, kBoth, Standing::passes},
    {"method", kEnvelope, kBoth, Standing::read},
    {"min_p", kLines, kGenerate, Standing::read},
    {"min_tokens", kLines, kGenerate, Standing::read},
    {"mm_processor_kwargs", kChat, kGenerate, Standing::refused, "{}"},
    {"modalities", kChat, kGenerate, Standing::refused, "[\"text\"]"},
    {"model", kBodies, kBoth, Standing::read},
    {"n", kLines, kGenerate, Standing::read},
    {"output_kind", kPlain, kGenerate, Standing::passes},
    {"parallel_tool_calls", kChat, kGenerate, Standing::refused, "true"},
    {"prediction", kChat, kGenerate, Standing::passes},
    {"presence_penalty", kLines, kGenerate, Standing::read},
    {"priority", kLines, kBoth, Standing::passes},
    {"prompt", kPrompts, kBoth, Standing::read},
    {"prompt_cache_key", kLines, kBoth, Standing::passes},
    {"prompt_cache_retention", kLines, kBoth, Standing::passes},
    {"prompt_embeds", kPrompts, kBoth, Standing::refused},
    {"prompt_logprob_start", kLines, kGenerate, Standing::refused, "0"},
    {"prompt_logprob_token_ids", kLines, kGenerate, Standing::refused},
    {"prompt_logprobs", kLines, kGenerate, Standing::read},
    {"reasoning_effort", kChat, kGenerate, Standing::refused},
    {"repetition_detection", kLines, kGenerate, Standing::refused},
    {"repetition_penalty", kLines, kGenerate, Standing::read},
    {"request_id", kLines, kBoth, Standing::passes},
    {"response_format", kLines, kGenerate, Standing::read},
    {"return_mm_kwargs", kBodies, kBoth, Standing::passes},
    {"return_prompt_text", kChat, kGenerate, Standing::refused, "false"},
    {"return_token_ids", kBodies, kGenerate, Standing::read},
    {"return_token_offsets", kBodies, kBoth, Standing::passes},
    {"return_tokens_as_token_ids", kBodies, kGenerate, Standing::read},
    {"routed_experts_prompt_start", kLines, kGenerate, Standing::refused, "0"},
    {"safety_identifier", kLines, kBoth, Standing::passes},
    {"seed", kLines, kGenerate, Standing::read},
    {"service_tier", kLines, kBoth, Standing::passes},
    {"session_id", kLines, kBoth, Standing::passes},
    {"skip_clone", kPlain, kGenerate, Standing::passes},
    {"skip_reading_prefix_cache", kPlain, kGenerate, Standing::passes},
    {"skip_special_tokens", kLines, kGenerate, Standing::refused, "true"},
    {"spaces_between_special_tokens", kLines, kGenerate, Standing::passes},
    {"stop", kLines, kGenerate, Standing::read},
    {"stop_token_ids", kLines, kGenerate, Standing::read},
    {"store", kLines, kBoth, Standing::passes},
    {"stream", kLines, kGenerate, Standing::refused, "false"},
    {"stream_interval", kLines, kBoth, Standing::passes},
    {"stream_options", kLines, kBoth, Standing::passes},
    {"structured_outputs", kLines, kGenerate, Standing::read},
    {"suffix", kPrompts, kGenerate, Standing::refused, "\"\""},
    {"temperature", kLines, kGenerate, Standing::read},
    {"thinking_token_budget", kLines, kGenerate, Standing::refused, "-1"},
    {"tokens", kPrompts, kBoth, Standing::read},
    {"tool_choice", kMessages, kGenerate, Standing::read},
    {"tools", kMessages, kBoth, Standing::read},
    {"top_k", kLines, kGenerate, Standing::read},
    {"top_logprobs", kChat, kGenerate, Standing::read},
    {"top_p", kLines, kGenerate, Standing::read},
    {"trace_decode_token_ids", kLines, kGenerate, Standing::refused},
    {"truncate_prompt_tokens", kLines, kBoth, Standing::read},
    {"truncation_side", kLines, kBoth, Standing::read},
    {"url", kEnvelope, kBoth, Standing::read},
    {"use_beam_search", kLines, kGenerate, Standing::refused, "false"},
    {"user", kLines, kBoth, Standing::passes},
    {"verbosity", kChat, kGenerate, Standing::refused, "\"medium\""},
    {"vllm_xargs", kLines, kGenerate, Standing::refused, "{}"},
    {"watermarking", kLines, kGenerate, Standing::refused, "false"},
    {"web_search_options", kChat, kGenerate, Standing::refused},
});
// clang-format on

constexpr bool is_field_table_sorted() {
  for (std::size_t i = 1; i < kFieldTable.size(); i++)
    if (kFieldTable[i].name < kFieldTable[i - 1].name) return false;
  return true;
}
static_assert(is_field_table_sorted());

// Where the rows of a name begin, or would.
constexpr std::size_t first_row(std::string_view name) {
  const auto* row = std::ranges::lower_bound(kFieldTable, name, {}, &FieldRule::name);
  return static_cast<std::size_t>(row - kFieldTable.begin());
}

// The name of a field that some form reads. Any other does not compile, so that nothing is read that the table
// does not have.
class FieldName {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor)
  consteval FieldName(const char* name) : name_(name), row_(ptrt::first_row(name)) {
    bool is_read = false;
    for (std::size_t i = row_; i < kFieldTable.size() && kFieldTable[i].name == name_; i++)
      is_read = is_read || kFieldTable[i].standing == Standing::read;
    if (!is_read) throw "no row of the table reads this field";
  }
  constexpr std::string_view text() const { return name_; }
  constexpr std::size_t first_row() const { return row_; }

 private:
  std::string_view name_;
  std::size_t row_;
};

// Null where a form has no such field. `first` is first_row(name).
const FieldRule* find_field(std::string_view name, std::size_t first, FieldForms form);
// The field of a form whose name is a letter or two from `name`; empty if none is.
std::string_view similar_field(std::string_view name, FieldForms form);

}  // namespace ptrt
