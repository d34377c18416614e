#include "driver/json_mutator.h"

#include <array>
#include <iterator>
#include <nlohmann/json.hpp>
#include <vector>

#include "driver/target.h"

namespace ptrt::fuzz {
namespace {

using nlohmann::ordered_json;

constexpr std::array kValues = std::to_array<std::string_view>({
    "null",
    "true",
    "false",
    "0",
    "1",
    "2",
    "-1",
    "0.0",
    "-0.0",
    "0.5",
    "1e-50",
    "1e300",
    "5e-324",
    "1e39",
    "100",
    "255",
    "256",
    "257",
    "1000",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483648",
    "4294967296",
    "281474976710656",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "\"\"",
    "\"a\"",
    "\"\\u0000\"",
    "\"\\ud83d\\ude42\"",
    "\"caf\\u00e9 \\u65e5\"",
    "\"0\"",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[0, 0]",
    "[\"\"]",
    "{\"\": 0}",
});

ordered_json::iterator item_of(ordered_json& value, std::size_t at) {
  return std::next(value.begin(), static_cast<std::ptrdiff_t>(at));
}

// The values within, the root too. Of long lists, such as vocabularies, a few: the rest is changed as often.
void collect(ordered_json& value, std::vector<ordered_json*>& all, Random& random) {
  constexpr std::size_t kFew = 8;
  all.push_back(&value);
  if (!value.is_structured()) return;
  const bool few = value.size() > 4 * kFew;
  for (std::size_t i = 0; i < (few ? kFew : value.size()); ++i)
    collect(*item_of(value, few ? random.below(value.size()) : i), all, random);
}

class JsonMutator {
 public:
  JsonMutator(const JsonWords& words, Random& random) : words_(words), random_(random) {}

  void change(ordered_json& root) {
    std::vector<ordered_json*> all;
    collect(root, all, random_);
    ordered_json& value = *all[random_.below(all.size())];
    if (value.is_object() && !random_.one_in(4))
      change_object(value, root);
    else if (value.is_array() && !random_.one_in(4))
      change_array(value, root);
    else if (value.is_string() && !random_.one_in(4))
      change_string(value);
    else if (value.is_number() && random_.one_in(2))
      change_number(value);
    else
      value = any_value(root);
  }

 private:
  ordered_json any_value(const ordered_json& root) {
    if (random_.one_in(3)) return a_part_of(root);
    const bool own = !words_.values.empty() && random_.one_in(2);
    return ordered_json::parse(own ? random_.pick(words_.values) : random_.pick(kValues));
  }

  // A copy of something small that is there already.
  ordered_json a_part_of(const ordered_json& root) {
    ordered_json copy = root;
    for (int step = 0; step < 4 && copy.is_structured() && !copy.empty(); ++step) {
      ordered_json item = *item_of(copy, random_.below(copy.size()));
      copy = std::move(item);
      if (random_.one_in(3)) break;
    }
    return copy;
  }

  std::string any_key() {
    return words_.keys.empty() || random_.one_in(10) ? "x" : std::string(random_.pick(words_.keys));
  }

  void change_object(ordered_json& object, const ordered_json& root) {
    const std::size_t kind = random_.below(4);
    if (kind == 0 || object.empty()) {
      object[any_key()] = any_value(root);
      return;
    }
    auto member = item_of(object, random_.below(object.size()));
    if (kind == 1) {
      object.erase(member);
    } else if (kind == 2) {
      ordered_json value = *member;
      object.erase(member);
      object[any_key()] = std::move(value);
    } else {
      *member = any_value(root);
    }
  }

  void change_array(ordered_json& array, const ordered_json& root) {
    const std::size_t kind = random_.below(4), at = random_.below(array.size() + 1);
    const auto place = item_of(array, at);
    if (kind == 0 || at == array.size())
      array.insert(place, any_value(root));
    else if (kind == 1)
      array.erase(place);
    else if (kind == 2)
      array.insert(place, ordered_json(array[at]));
    else
      std::swap(array[at], array[random_.below(array.size())]);
  }

  void change_string(ordered_json& value) {
    value = random_.one_in(4) && !words_.keys.empty() ? std::string(random_.pick(words_.keys))
                                                      : mutate_bytes(value.get<std::string>(), random_);
  }

  void change_number(ordered_json& value) {
    if (value.is_number_integer()) {
      // Wraps around; the result may be any integer.
      std::uint64_t number = value.get<std::uint64_t>();
      switch (random_.below(4)) {
        case 0:
          number += 1 + random_.below(8);
          break;
        case 1:
          number -= 1 + random_.below(8);
          break;
        case 2:
          number *= 2 + random_.below(14);
          break;
        default:
          number ^= std::uint64_t{1} << random_.below(64);
      }
      value = static_cast<std::int64_t>(number);
    } else {
      constexpr std::array kFactors{-1.0, 0.5, 2.0, 1e10, 1e-10, 1e-300};
      value = value.get<double>() * random_.pick(kFactors);
    }
  }

  const JsonWords& words_;
  Random& random_;
};

// A key twice: what a tree of values cannot hold.
std::string double_a_member(ordered_json& root, Random& random) {
  std::string text = root.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  if (!root.is_object() || root.empty()) return text;
  const auto member = item_of(root, random.below(root.size()));
  return fmt::format("{{{}:{},{}",
                     ordered_json(member.key()).dump(-1, ' ', false, ordered_json::error_handler_t::replace),
                     random.pick(kValues), std::string_view(text).substr(1));
}

}  // namespace

std::string mutate_json(std::string text, const JsonWords& words, Random& random) {
  if (random.one_in(8)) return mutate_bytes(std::move(text), random);
  ordered_json root = ordered_json::parse(text, nullptr, false);
  if (root.is_discarded()) return mutate_bytes(std::move(text), random);
  JsonMutator mutator(words, random);
  for (std::size_t left = 1 + random.below(3); left > 0; --left) mutator.change(root);
  if (random.one_in(20)) return double_a_member(root, random);
  // Characters as they are, or as \u escapes.
  return root.dump(-1, ' ', random.one_in(8), ordered_json::error_handler_t::replace);
}

}  // namespace ptrt::fuzz
