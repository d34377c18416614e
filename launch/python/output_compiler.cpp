#include "launch/python/output_compiler.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace ptrt {
namespace {

using nlohmann::json;

constexpr PythonHelper::Purpose kPurpose = {"structured output", "structured_output_error",
                                            "structured_output_unavailable"};

// Numbers of edges and jumps one after the other, as launch/python/helper_output.py gives them.
OutputConstraint read(const json& answer) {
  ByteAutomaton automaton{.states = answer["states"], .accept = answer["accept"], .edges = {}, .jumps = {}};
  const auto edges = answer["edges"].get<std::vector<std::int32_t>>();
  for (std::size_t i = 0; i < edges.size(); i += 4)
    automaton.edges.push_back({edges[i], edges[i + 3], static_cast<std::int16_t>(edges[i + 1]),
                               static_cast<std::int16_t>(edges[i + 2])});
  const auto jumps = answer["jumps"].get<std::vector<std::int32_t>>();
  for (std::size_t i = 0; i < jumps.size(); i += 2) automaton.jumps.push_back({jumps[i], jumps[i + 1]});
  return {std::make_shared<const ByteAutomaton>(std::move(automaton))};
}

}  // namespace

OutputConstraint OutputCompiler::compile(std::string_view line, bool openai) {
  std::string answer =
      helper_.ask(fmt::format(R"({{"kind":"output","openai":{},"line":{}}})", openai, line), kPurpose);
  if (const auto kept = kept_.find(answer); kept != kept_.end()) return kept->second;
  const json parsed = json::parse(answer, nullptr, false);
  if (!parsed.is_object()) throw HelperError{kPurpose.failed, "structured output has no automaton"};
  if (parsed.contains("error"))
    throw HelperError{parsed["error"]["code"].get<std::string>(),
                      parsed["error"]["message"].get<std::string>()};
  if (!parsed.contains("states")) return {};
  OutputConstraint constraint = read(parsed);
  const std::size_t bytes = answer.size() + constraint.automaton->bytes();
  if (kept_bytes_ + bytes > most_bytes_) {
    kept_.clear();
    kept_bytes_ = 0;
  }
  if (bytes > most_bytes_) return constraint;
  kept_bytes_ += bytes;
  return kept_[std::move(answer)] = std::move(constraint);
}

}  // namespace ptrt
