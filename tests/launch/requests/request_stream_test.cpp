// Reading a request file as it is needed, against reading it whole.
#include "launch/jsonl/request_stream.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "launch/jsonl/request_inbox.h"
#include "launch/requests/id_set.h"
#include "launch/requests/line_id.h"
#include "launch/small_model.h"
#include "temp_folder.h"

namespace ptrt {
namespace {

const ModelConfig& config() {
  static const ModelConfig config = small_config();
  return config;
}

// Good and bad lines, blank ones, equal ids in several forms; no line break at the end.
std::string sample_file() {
  std::string text;
  for (int i = 0; i < 40; i++)
    text += fmt::format("{{\"id\": \"n{}\", \"tokens\": [{}], \"stop\": [\"a\"]}}\n", i % 25, i);
  text +=
      "\n  \nnot json\n[1]\n{\"tokens\": [1]}\n{\"id\": \"44\", \"tokens\": [1]}\n{\"id\": \"48\", "
      "\"tokens\": [2]}\n";
  text +=
      "{\"tokens\": [3]}\n{\"tokens\": [3]}\n{\"id\": 7, \"tokens\": [1]}\n{\"id\": \"x\", \"id\": \"n1\", "
      "\"tokens\": [1]}\n";
  text += R"({"custom_id": "n3", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}})"
          "\n";
  text += R"({"custom_id": "o", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}})"
          "\n";
  text += R"({"id": "o", "body": {}})"
          "\n"
          R"({"id": "o", "tokens": [5], "max_tokens": 9})";
  return text;
}

RequestParser parser(std::int64_t lines) {
  return RequestParser(Task::generate, config(), small_tokenizer(), {1000}, lines);
}

// The next line, however many are passed over before it.
std::optional<StreamedLine> next(RequestStream& stream) {
  StreamedLine line;
  Supply supply = Supply::skipped;
  while (supply == Supply::skipped) supply = stream.next(line);
  EXPECT_NE(supply, Supply::none_yet);
  return supply == Supply::line ? std::optional(line) : std::nullopt;
}

class RequestStreamTest : public testing::Test {
 protected:
  std::string write(const std::string& text) {
    const std::string path = folder_ / "r.jsonl";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  static void expect_same(const StreamedLine& line, const RequestFile& whole) {
    const RequestLine& expected = whole.lines[static_cast<std::size_t>(line.number)];
    EXPECT_EQ(line.line.id, expected.id) << line.number;
    EXPECT_EQ(line.line.openai, expected.openai);
    EXPECT_EQ(line.line.model, expected.model);
    EXPECT_EQ(line.line.error.code, expected.error.code) << line.number;
    EXPECT_EQ(line.line.error.message, expected.error.message);
    EXPECT_EQ(line.runs(), expected.request >= 0);
    if (!line.runs()) return;
    const Request& request = whole.requests[static_cast<std::size_t>(expected.request)];
    EXPECT_EQ(line.request.line, line.number);
    EXPECT_EQ(line.request.tokens, request.tokens);
    EXPECT_EQ(line.request.seed, request.seed);
    EXPECT_EQ(line.request.stop, request.stop);
  }

  TempFolder folder_;
};

TEST_F(RequestStreamTest, GivesTheLinesOfTheWholeFile) {
  const std::string text = sample_file();
  const RequestFile whole = parse_requests(text, "r", Task::generate, config(), small_tokenizer(), {1000});
  RequestInput input(write(text));
  const RequestFileFacts facts = scan_requests(input);
  EXPECT_EQ(facts.lines, std::ssize(whole.lines));
  EXPECT_EQ(facts.digest, XXH3_64bits(text.data(), text.size()));
  RequestStream stream(input, parser(facts.lines), [](std::int64_t) { return true; });
  EXPECT_EQ(facts.requests, facts.lines - 2) << "two lines are blank";
  EXPECT_EQ(facts.runs, (std::vector<LineRun>{{0, 40}, {42, facts.lines - 42}}));
  std::int64_t lines = 0;
  while (const auto line = next(stream)) {
    EXPECT_EQ(line->number, lines < 40 ? lines : lines + 2);
    expect_same(*line, whole);
    lines++;
  }
  EXPECT_EQ(lines, facts.requests);
}

// Ids count over the whole file, whatever is wanted of it.
TEST_F(RequestStreamTest, PartsAreThoseOfTheWholeFile) {
  const std::string text = sample_file();
  const RequestFile whole = parse_requests(text, "r", Task::generate, config(), small_tokenizer(), {1000});
  RequestInput input(write(text));
  const RequestFileFacts facts = scan_requests(input);
  for (const std::int64_t count : {2, 3, 7})
    for (std::int64_t index = 0; index < count; index++) {
      RequestStream stream(input, parser(facts.lines),
                           [&](std::int64_t line) { return line % count == index; });
      std::int64_t lines = 0;
      for (; const auto line = next(stream); lines++) {
        EXPECT_EQ(line->number % count, index);
        expect_same(*line, whole);
      }
      EXPECT_EQ(lines, scan_requests(input, {index, count}).requests);
    }
}

TEST_F(RequestStreamTest, LinesLongerThanAPiece) {
  std::string text;
  for (const std::size_t length : {std::size_t{0}, std::size_t{3}, std::size_t{700000}, std::size_t{262143}})
    text += std::string(length, 'x') + "\n";
  RequestInput input(write(text + "end"));
  RequestInput::Lines reader = input.lines();
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{3}, std::size_t{700000}, std::size_t{262143}}) {
    const auto line = reader.next();
    ASSERT_TRUE(line);
    EXPECT_EQ(*line, std::string(length, 'x'));
  }
  EXPECT_EQ(reader.next(), "end");
  EXPECT_FALSE(reader.next());
}

TEST_F(RequestStreamTest, NoChatLineIsOverlooked) {
  const auto may_chat = [this](const std::string& line) {
    RequestInput input(write(line + "\n"));
    return scan_requests(input).may_chat;
  };
  for (const char* key : {"messages", R"(\u006dessages)", R"(messa\u0067es)", R"(me\u0073sages)"})
    EXPECT_TRUE(may_chat(std::string("{\"") + key + "\": []}")) << key;
  EXPECT_FALSE(may_chat(R"({"prompt": "caf\u00e9, \"messages\""})"));
}

TEST_F(RequestStreamTest, AnEmptyFileIsBadInput) {
  for (const char* text : {"", "\n", " \n\t\r\n"}) {
    RequestInput input(write(text));
    EXPECT_THROW(scan_requests(input), Error) << text;
  }
}

// Of a piece of the file that differs no line is given.
TEST_F(RequestStreamTest, AFileThatChangesMeanwhile) {
  const std::string good = "{\"tokens\": [1]}\n{\"tokens\": [2]}\n";
  for (const char* later : {"{\"tokens\": [1]}\n{\"tokens\": [3]}\n", "{\"tokens\": [1]}\n", ""}) {
    RequestInput input(write(good));
    const RequestFileFacts facts = scan_requests(input);
    write(later);
    RequestStream stream(input, parser(facts.lines), [](std::int64_t) { return true; });
    EXPECT_THROW(next(stream), Error) << later;
  }
}

TEST_F(RequestStreamTest, AChangeFarInTheFile) {
  const std::string line = "{\"tokens\": [1]}\n";
  std::string text;
  for (int i = 0; i < 40000; i++) text += line;
  RequestInput input(write(text));
  const RequestFileFacts facts = scan_requests(input);
  text[35000 * line.size() + line.find('1')] = '2';
  write(text);
  RequestStream stream(input, parser(facts.lines), [](std::int64_t) { return true; });
  std::int64_t given = 0;
  EXPECT_THROW(
      while (const auto got = next(stream)) {
        EXPECT_EQ(got->request.tokens, std::vector<std::int32_t>{1});
        given++;
      },
      Error);
  EXPECT_GT(given, 30000);
  EXPECT_LT(given, 35000);
}

// What is appended belongs to another run; the open file stays when its name goes.
TEST_F(RequestStreamTest, AFileThatGrowsOrGoes) {
  const std::string text = sample_file(), path = write(text);
  RequestInput input(path);
  const RequestFileFacts facts = scan_requests(input);
  std::ofstream(path, std::ios::app) << "{\"tokens\": [7]}\n";
  for (const bool removed : {false, true}) {
    if (removed) std::filesystem::remove(path);
    RequestStream stream(input, parser(facts.lines), [](std::int64_t) { return true; });
    std::int64_t lines = 0;
    while (next(stream)) lines++;
    EXPECT_EQ(lines, facts.requests);
  }
}

TEST(LineId, IsThatOfTheParsedLine) {
  const std::pair<std::string, std::optional<std::string>> cases[] = {
      {R"({"id": "a", "tokens": [1, {"id": "b"}]})", "a"},
      {R"({"tokens": [1]})", "5"},
      {R"({"x": {"id": "b"}, "y": [{"id": "c"}]})", "5"},
      {R"({"id": 3})", std::nullopt},
      {R"({"id": ["a"]})", std::nullopt},
      {R"({"id": {"id": "z"}})", std::nullopt},
      {R"({"id": "a", "id": "b"})", "b"},
      {R"({"id": "a", "id": null})", "5"},
      {R"({"custom_id": "a", "custom_id": null})", std::nullopt},
      {R"({"id": "a", "body": {"custom_id": "b"}})", std::nullopt},
      {R"({"id": "a", "custom_id": "b"})", "b"},
      {R"({"url": "", "custom_id": 1})", std::nullopt},
      {R"({"id": "\u0041\n"})", "A\n"},
      {R"({"id": "a")", std::nullopt},
      {R"({"id": "a"} x)", std::nullopt},
      {R"({"id": "a", "max_tokens": 1e999})", std::nullopt},
      {R"(["id"])", std::nullopt},
      {R"("id")", std::nullopt},
      {R"(7)", std::nullopt},
      {"", std::nullopt},
      {"\xEF\xBB\xBF{\"id\": \"a\"}", std::nullopt},
      {std::string("{\"id\": \"a\"}\0", 12), std::nullopt},
      {R"({"id": "a", "x": )" + std::string(255, '[') + std::string(255, ']') + "}", "a"},
      {R"({"id": "a", "x": )" + std::string(256, '[') + std::string(256, ']') + "}", std::nullopt}};
  for (const auto& [text, id] : cases) {
    EXPECT_EQ(id_of_line(text, 5), id) << text;
    // The parser agrees: the id is taken for a later line exactly then.
    RequestParser whole = parser(10);
    RequestLine line;
    Request request;
    whole.parse(text, 5, line, request);
    const std::string later = id.value_or("not used");
    whole.parse(nlohmann::json{{"id", later}, {"tokens", {1}}}.dump(), 6, line, request);
    EXPECT_EQ(line.error.code, id ? "duplicate_id" : "") << text;
  }
}

TEST(IdSet, FindsWhatComesTwice) {
  for (const std::size_t known : {std::size_t{0}, std::size_t{5000}}) {
    IdSet ids(known);
    for (int i = 0; i < 5000; i++) EXPECT_TRUE(ids.insert(std::to_string(i)));
    for (int i = 0; i < 5000; i++) EXPECT_FALSE(ids.insert(std::to_string(i)));
    EXPECT_TRUE(ids.insert(""));
    EXPECT_FALSE(ids.insert(""));
  }
}

TEST(RequestInbox, CarriesWholeRequests) {
  StreamedLine sent{7, {}, {}};
  sent.line = {.id = "a\"b",
               .openai = true,
               .chat = true,
               .continuation = true,
               .echo = true,
               .token_ids = true,
               .tokens_as_ids = true,
               .prompt_logprobs = 3,
               .model = "m",
               .request = 0,
               .error = {}};
  sent.request = {.line = 7,
                  .tokens = {1, 2, 3},
                  .max_tokens = 9,
                  .score_from = 2,
                  .temperature = 0.5f,
                  .top_k = 3,
                  .top_p = 0.25f,
                  .seed = 1ull << 63,
                  .stop = {"x", ""},
                  .logprobs = true,
                  .ignore_eos = true};
  StreamedLine other{8, {}, {}};
  other.request.line = 8;
  other.request.rules = {
      .repetition_penalty = 2,
      .presence_penalty = -1,
      .frequency_penalty = 0.5f,
      .bias = {{3, 1.5f}},
      .allowed = {1, 2},
      .bad_words = {{4, 5}},
      .min_tokens = 6,
      .output = {std::make_shared<const ByteAutomaton>(ByteAutomaton{2, 1, {{0, 1, 'a', 'b'}}, {{1, 0}}})}};
  std::vector<HeldLine> lines;
  for (const StreamedLine& line : {sent, other}) lines.push_back(std::make_unique<StreamedLine>(line));
  RequestInbox inbox;
  EXPECT_FALSE(inbox.put_message(message_of(lines)));
  std::vector<Request> taken;
  EXPECT_TRUE(inbox.take(taken, std::chrono::milliseconds(0)));
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_EQ(taken[0], sent.request);
  EXPECT_EQ(taken[1], other.request);
  const StreamedLine kept = *inbox.take_out(7).line;
  EXPECT_EQ(kept.line.id, "a\"b");
  EXPECT_TRUE(kept.line.openai);
  EXPECT_TRUE(kept.line.continuation);
  EXPECT_EQ(kept.line.model, "m");
  EXPECT_EQ(kept.request.tokens, sent.request.tokens);
  EXPECT_TRUE(inbox.put_message(last_message()));
  taken.clear();
  EXPECT_FALSE(inbox.take(taken, std::chrono::milliseconds(1000)));
  EXPECT_TRUE(taken.empty());
  EXPECT_THROW(inbox.take_out(7), Error);
}

TEST(RequestInbox, WaitsForASignOfLife) {
  RequestInbox inbox;
  std::vector<Request> taken;
  EXPECT_TRUE(inbox.take(taken, std::chrono::milliseconds(1))) << "none was ever given";
  inbox.sign_of_life();
  EXPECT_TRUE(inbox.take(taken, std::chrono::milliseconds(1)));
  std::atomic<bool> given = false;
  std::thread thread([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    given = true;
    inbox.sign_of_life();
  });
  EXPECT_TRUE(inbox.take(taken, std::chrono::milliseconds(1)));
  EXPECT_TRUE(given);
  thread.join();
}

TEST(RequestInbox, AFailureEndsTheWait) {
  RequestInbox inbox;
  std::thread thread([&] { inbox.fail(std::make_exception_ptr(Error(ExitCode::failure, "gone"))); });
  std::vector<Request> taken;
  EXPECT_THROW(inbox.take(taken, std::chrono::milliseconds(60000)), Error);
  thread.join();
}

}  // namespace
}  // namespace ptrt
