#include "runtime/requests/request_bytes.h"

#include <utility>

namespace ptrt {
namespace {

template <typename T>
void append_field(std::string& message, const T& field) {
  append_bytes(message, field);
}

void append_field(std::string& message, const OutputConstraint& constraint) {
  append_bytes(message, static_cast<bool>(constraint));
  if (!constraint) return;
  const ByteAutomaton& automaton = *constraint.automaton;
  append_bytes(message, automaton.states);
  append_bytes(message, automaton.accept);
  append_bytes(message, automaton.edges);
  append_bytes(message, automaton.jumps);
}

template <typename T>
void take_field(ByteReader& bytes, T& field) {
  bytes.take(field);
}

void take_field(ByteReader& bytes, OutputConstraint& constraint) {
  bool there = false;
  bytes.take(there);
  if (!there) return;
  ByteAutomaton automaton;
  bytes.take(automaton.states);
  bytes.take(automaton.accept);
  bytes.take(automaton.edges);
  bytes.take(automaton.jumps);
  constraint.automaton = std::make_shared<const ByteAutomaton>(std::move(automaton));
}

// In one order for both ways.
template <typename Rules, typename Each>
void for_each_rule(Rules& rules, const Each& each) {
  each(rules.repetition_penalty);
  each(rules.presence_penalty);
  each(rules.frequency_penalty);
  each(rules.bias);
  each(rules.allowed);
  each(rules.bad_words);
  each(rules.min_tokens);
  each(rules.output);
}

// Most requests have none.
void append_field(std::string& message, const LogitRules& rules) {
  const bool there = rules != LogitRules();
  append_bytes(message, there);
  if (there) for_each_rule(rules, [&](const auto& rule) { append_field(message, rule); });
}

void take_field(ByteReader& bytes, LogitRules& rules) {
  bool there = false;
  bytes.take(there);
  if (there) for_each_rule(rules, [&](auto& rule) { take_field(bytes, rule); });
}

// Every field, in one order for both ways.
template <typename R, typename Each>
void for_each_field(R& request, const Each& each) {
  each(request.line);
  each(request.tokens);
  each(request.max_tokens);
  each(request.score_from);
  each(request.temperature);
  each(request.top_k);
  each(request.top_p);
  each(request.min_p);
  each(request.seed);
  each(request.samples);
  each(request.rules);
  each(request.stop);
  each(request.stop_tokens);
  each(request.include_stop);
  each(request.ignore_eos);
  each(request.logprobs);
  each(request.top_logprobs);
  each(request.prompt_logprobs);
  each(request.arrival_s);
}

}  // namespace

void append_request(std::string& message, const Request& request) {
  for_each_field(request, [&](const auto& field) { append_field(message, field); });
}

Request take_request(ByteReader& bytes) {
  Request request;
  for_each_field(request, [&](auto& field) { take_field(bytes, field); });
  return request;
}

}  // namespace ptrt
