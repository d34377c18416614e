// The table of fields: what is not in it is refused, and nothing that a line asks for is left out in silence.
#include "launch/requests/fields.h"

#include <gtest/gtest.h>

#include <set>

#include "launch/requests/bad_request.h"

namespace ptrt {
namespace {

using nlohmann::json;

// The code of the error; empty: there is none.
RequestError error_of(const std::string& object, FieldForms form, Task task = Task::generate) {
  const json parsed = json::parse(object);
  try {
    Fields(parsed, form, task).refuse_unsupported(nullptr);
  } catch (const BadRequest& bad) {
    return bad.error;
  }
  return {};
}

TEST(FieldTable, FormsOfANameAreApart) {
  for (std::size_t i = 0; i < kFieldTable.size(); i++)
    for (std::size_t j = i + 1; j < kFieldTable.size(); j++)
      EXPECT_TRUE(kFieldTable[i].name != kFieldTable[j].name ||
                  (kFieldTable[i].forms & kFieldTable[j].forms) == 0)
          << kFieldTable[i].name;
}

TEST(FieldTable, NeutralValuesAreJson) {
  for (const FieldRule& rule : kFieldTable) {
    if (rule.standing != Standing::refused) {
      EXPECT_TRUE(rule.neutral.empty()) << rule.name;
    } else if (!rule.neutral.empty()) {
      EXPECT_TRUE(json::accept(rule.neutral)) << rule.name;
    }
  }
}

TEST(FieldTable, WhatItDoesNotHaveIsRefusedByName) {
  for (const FieldForms form : {kPlain, kCompletions, kChat, kEnvelope}) {
    const RequestError error = error_of(R"({"frobnicate": 1})", form);
    EXPECT_EQ(error.code, "unsupported_field");
    EXPECT_NE(error.message.find("'frobnicate'"), std::string::npos) << error.message;
    EXPECT_EQ(error_of(R"({"frobnicate": null})", form).code, "") << "null asks for nothing";
  }
  EXPECT_EQ(error_of(R"({"custom_id": "a", "priority": 1})", kEnvelope).code, "unsupported_field");
  EXPECT_EQ(error_of(R"({"top_logprobs": 1})", kCompletions).code, "unsupported_field");
  EXPECT_EQ(error_of(R"({"id": "a"})", kCompletions).code, "unsupported_field");
}

TEST(FieldTable, ANearMissIsSuggested) {
  EXPECT_NE(error_of(R"({"max_token": 1})", kPlain).message.find("is 'max_tokens' meant?"),
            std::string::npos);
  EXPECT_NE(error_of(R"({"temprature": 1})", kChat).message.find("'temperature'"), std::string::npos);
  EXPECT_EQ(error_of(R"({"frobnicate": 1})", kPlain).message.find("meant"), std::string::npos);
  EXPECT_EQ(similar_field("m", kPlain), "") << "any letter is near";
  EXPECT_EQ(similar_field(std::string(5000, 'x'), kPlain), "");
}

// A value that no refused field takes for its neutral one.
TEST(FieldTable, EachRefusedFieldNamesItsValue) {
  for (const FieldRule& rule : kFieldTable) {
    if (rule.standing != Standing::refused) continue;
    for (const FieldForms form : {kPlain, kCompletions, kChat}) {
      if ((rule.forms & form) == 0) continue;
      const json object = {{rule.name, {{"a", "peculiar"}}}};
      const RequestError error = error_of(object.dump(), form);
      EXPECT_EQ(error.code, "unsupported") << rule.name;
      EXPECT_NE(error.message.find("peculiar"), std::string::npos) << error.message;
      EXPECT_NE(error.message.find(rule.name), std::string::npos) << error.message;
      const json neutral = rule.neutral.empty() ? json() : json::parse(rule.neutral);
      EXPECT_EQ(error_of(json{{rule.name, neutral}}.dump(), form).code, "") << rule.name;
      EXPECT_EQ(error_of(object.dump(), form, Task::score).code, (rule.tasks & kScore) ? "unsupported" : "")
          << rule.name;
    }
  }
}

TEST(FieldTable, WhatChangesNoResultPasses) {
  for (const FieldRule& rule : kFieldTable)
    for (const FieldForms form : {kPlain, kCompletions, kChat})
      if (rule.standing == Standing::passes && (rule.forms & form) != 0) {
        EXPECT_EQ(error_of(json{{rule.name, {1, "a"}}}.dump(), form).code, "") << rule.name;
      }
}

TEST(Fields, WhatIsNotReadIsRefused) {
  const json object = {{"prompt", "a"}, {"max_tokens", 3}, {"user", "u"}, {"stream", false}};
  const Fields fields(object, kCompletions, Task::generate);
  fields.refuse_unsupported(nullptr);
  EXPECT_NE(fields.find("prompt"), nullptr);
  try {
    fields.refuse_unread();
    ADD_FAILURE() << "max_tokens was not read";
  } catch (const BadRequest& bad) {
    EXPECT_EQ(bad.error.code, "unsupported_field");
    EXPECT_NE(bad.error.message.find("'max_tokens'"), std::string::npos) << bad.error.message;
  }
  EXPECT_EQ(fields.integer("max_tokens", 16, 0, 100), 3);
  fields.refuse_unread();
}

TEST(Fields, IgnoredOnesAreCounted) {
  IgnoredFields ignored;
  for (const json& object : {json{{"foo", 1}, {"bar", 2}, {"stop", "a"}}, json{{"foo", 1}}})
    Fields(object, kPlain, Task::generate).refuse_unsupported(&ignored);
  EXPECT_EQ(ignored.text(), "'bar' (1 line), 'foo' (2 lines)");
  for (int i = 0; i < 150; i++) ignored.add("x" + std::to_string(i) + std::string(100, 'y'));
  EXPECT_LT(ignored.text().size(), 10000u);
  EXPECT_NE(ignored.text().find("others (52 lines)"), std::string::npos) << ignored.text();
}

TEST(Fields, NumbersKeepTheirRanges) {
  const auto number = [](double value, const NumberRange& range) -> std::optional<float> {
    const json object = {{"min_p", value}};
    try {
      return Fields(object, kPlain, Task::generate).number("min_p", 7, range);
    } catch (const BadRequest& bad) {
      EXPECT_EQ(bad.error.code, "invalid_request");
      return std::nullopt;
    }
  };
  EXPECT_EQ(number(0.5, {0, 1}), 0.5f);
  EXPECT_EQ(number(0, {0, 1}), 0);
  EXPECT_EQ(number(1, {0, 1}), 1);
  EXPECT_EQ(number(0, {0, 1, true}), std::nullopt);
  EXPECT_EQ(number(1e-60, {0, 1, true}), std::nullopt) << "zero as a float32";
  EXPECT_EQ(number(1.00000001, {0, 1}), std::nullopt) << "one as a float32";
  EXPECT_EQ(number(-2.5, {-2, 2}), std::nullopt);
  EXPECT_EQ(number(1e39, {0, 1e300}), std::nullopt) << "infinite as a float32";
  const json none = json::object();
  EXPECT_EQ(Fields(none, kPlain, Task::generate).number("min_p", 7, {0, 1}), 7);
}

}  // namespace
}  // namespace ptrt
