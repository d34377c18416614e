// Chat requests: the fields, the Python process that renders them and what becomes of it, and the parser.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "launch/commands/chat_lines.h"
#include "launch/python/chat_renderer.h"
#include "launch/requests/bad_request.h"
#include "launch/requests/chat_fields.h"
#include "launch/requests/request_parser.h"
#include "launch/small_model.h"
#include "runtime/journal/finished_run.h"
#include "runtime/journal/journal.h"
#include "temp_folder.h"

namespace ptrt {
namespace {

constexpr const char* kTemplate =
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}";
constexpr const char* kLine = R"({"messages": [{"role": "user", "content": "hi"}]})";

std::string render(PythonHelper& helper, const std::string& text, std::string_view line = kLine,
                   bool openai = false) {
  return ChatRenderer(helper, text, "2026-02-28", small_config(), small_tokenizer()).render(line, openai);
}

HelperError error_of(PythonHelper& helper, const std::string& text, std::string_view line = kLine) {
  try {
    render(helper, text, line);
  } catch (const HelperError& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return {};
}

// Waits for processes that need a second or so to start, several times on a busy host: one for all tests of a kind.
TEST(ChatRenderer, RendersWhatTheLineSays) {
  PythonHelper helper;
  EXPECT_EQ(helper.pid(), -1) << "it starts when it is needed";
  EXPECT_EQ(render(helper, kTemplate), "<|256|>user:hi;>");
  EXPECT_EQ(render(helper, "{{ eos_token }}{{ strftime_now('%d %b %Y') }}"), "<|257|>28 Feb 2026");
  EXPECT_EQ(render(helper, "{{ tools[0] | tojson }}{{ x }}",
                   R"({"messages": [{"role": "user"}], "tools": [{"z": 1.50, "a": "<ü>"}], )"
                   R"("chat_template_kwargs": {"x": 5}})"),
            "{\"z\": 1.5, \"a\": \"<ü>\"}5")
      << "keys keep their order, and nothing is escaped";
  const auto openai = R"({"custom_id": "c", "body": {"messages": [{"role": "user", "content": "hi"}], )"
                      R"("add_generation_prompt": false}})";
  EXPECT_EQ(render(helper, kTemplate, openai, true), "<|256|>user:hi;");
  EXPECT_EQ(render(helper, kTemplate,
                   R"({"messages": [{"role": "a", "content": "x y"}], "continue_final_message": true})"),
            "<|256|>a:x y");
  EXPECT_EQ(render(helper, kTemplate,
                   R"({"messages": [{"role": "a", "content": [{"type": "text", "text": "1"}, )"
                   R"({"type": "text", "text": "2"}]}]})"),
            "<|256|>a:1\n2;>");
  const std::string call = R"({"messages": [{"role": "a", "tool_calls": [{"function": {"name": "f", )"
                           R"("arguments": "{\"p\": [1]}"}}]}]})";
  EXPECT_EQ(render(helper, "{{ messages[0].tool_calls[0].function.arguments.p[0] + 1 }}", call), "2")
      << "arguments of tools are objects";
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGHUP}) kill(helper.pid(), number);
  EXPECT_EQ(render(helper, kTemplate), "<|256|>user:hi;>") << "signals of the job are not for it";
}

TEST(ChatRenderer, NamesWhatIsWrong) {
  PythonHelper helper;
  EXPECT_EQ(error_of(helper, "").code, "no_chat_template");
  const HelperError raised = error_of(helper, "{{ raise_exception('no system role') }}");
  EXPECT_EQ(raised.code, "chat_template_error");
  EXPECT_NE(raised.message.find("no system role"), std::string::npos) << raised.message;
  EXPECT_NE(error_of(helper, "a\n{% if %}").message.find("line 2"), std::string::npos);
  EXPECT_NE(error_of(helper, "{{ 1 + 'a' }}").message.find("TypeError"), std::string::npos);
  EXPECT_EQ(error_of(helper, "{{ messages.append(1) }}").code, "chat_template_error") << "a sandbox";
  EXPECT_EQ(error_of(helper, "{{ ''.__class__.__mro__ }}").code, "chat_template_error");
  EXPECT_EQ(error_of(helper, "{{ '\\ud800' }}").code, "chat_template_error");
  const auto none = R"({"messages": [{"role": "a"}], "continue_final_message": true})";
  EXPECT_EQ(error_of(helper, kTemplate, none).code, "invalid_request");

  ModelConfig without = small_config();
  without.bos_token_id.reset();
  ChatRenderer renderer(helper, "{{ bos_token }}", "2026-02-28", without, small_tokenizer());
  try {
    ADD_FAILURE() << renderer.render(kLine, false);
  } catch (const HelperError& error) {
    EXPECT_NE(error.message.find("bos_token"), std::string::npos) << error.message;
  }
}

TEST(ChatRenderer, OutlivesTemplatesThatDoNotEnd) {
  PythonHelper::Limits limits;
  limits.processor_s = 0.3;
  limits.answer_bytes = 1 << 20;
  limits.memory_bytes = std::int64_t{512} << 20;
  PythonHelper helper(limits);
  const std::string loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
  EXPECT_NE(error_of(helper, loop).message.find("0.3 s"), std::string::npos);
  EXPECT_EQ(helper.pid(), -1);
  EXPECT_EQ(render(helper, kTemplate), "<|256|>user:hi;>");
  EXPECT_NE(error_of(helper, "{{ 'ab' * 1000000 }}").message.find("1048576 bytes"), std::string::npos);
  EXPECT_NE(error_of(helper, "{{ 'ab' * 1000000000 }}").message.find("memory"), std::string::npos);
  kill(helper.pid(), SIGKILL);  // by the host, say, which has no memory left
  EXPECT_EQ(render(helper, kTemplate), "<|256|>user:hi;>");
}

TEST(ChatRenderer, AStopEndsTheWait) {
  std::atomic<bool> stop = false;
  PythonHelper helper({}, [&] { return stop.load(); });
  EXPECT_EQ(render(helper, kTemplate), "<|256|>user:hi;>");
  kill(helper.pid(), SIGSTOP);
  stop = true;
  EXPECT_THROW(render(helper, kTemplate), HelperStopped);
  EXPECT_EQ(helper.pid(), -1);
}

TEST(ChatRenderer, NoAnswerIsAnErrorOfTheHost) {
  PythonHelper::Limits limits;
  limits.answer_s = 0.3;
  PythonHelper helper(limits);
  ASSERT_THROW(render(helper, ""), HelperError);
  const std::string slow = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
  const HelperError error = error_of(helper, slow);
  EXPECT_EQ(error.code, "chat_template_unavailable");
  EXPECT_TRUE(is_error_of_host(error.code));
  EXPECT_NE(error.message.find("longer than 0.3 s"), std::string::npos) << error.message;
}

TEST(ChatRenderer, LeavesNoProcessBehind) {
  pid_t pid = -1;
  {
    PythonHelper helper;
    render(helper, kTemplate);
    pid = helper.pid();
    ASSERT_EQ(kill(pid, 0), 0);
  }
  EXPECT_NE(kill(pid, 0), 0);
}

// Sets a variable of the environment, and restores it.
class Variable {
 public:
  explicit Variable(const char* name, const std::string& value = "") : name_(name) {
    if (const char* set = getenv(name)) before_ = set;
    if (!value.empty()) setenv(name, value.c_str(), 1);
  }
  ~Variable() { before_.empty() ? unsetenv(name_) : setenv(name_, before_.c_str(), 1); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::string before_;
};

// An interpreter that is this shell script.
std::string interpreter_of(const TempFolder& folder, const std::string& script) {
  const std::string path = folder / "python3";
  std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
  EXPECT_EQ(std::system(("chmod +x " + path).c_str()), 0);
  return path;
}

TEST(ChatRenderer, HearsNothingThatWasNotAsked) {
  TempFolder folder;
  std::ofstream(folder / "sitecustomize.py") << "print('hello', flush=True)\nraise SystemExit\n";
  const Variable path("PYTHONPATH", folder.path());
  const Variable python("PTRT_PYTHON", interpreter_of(folder, "echo hello\nexec /usr/bin/python3 \"$@\""));
  PythonHelper helper;
  EXPECT_EQ(render(helper, kTemplate), "<|256|>user:hi;>") << "what is printed is no answer";
  EXPECT_EQ(render(helper, "{{ messages[0].role }}"), "user");
  const char* keys =
      "{% for key in {'a': 1, 'b': 1, 'c': 1, 'd': 1, 'e': 1}.keys() - ['x'] %}{{ key }}{% endfor %}";
  PythonHelper another;
  EXPECT_EQ(render(helper, keys), render(another, keys)) << "sets have one order";
}

TEST(ChatRenderer, TakesNoAnswerToAnotherQuestion) {
  TempFolder folder;
  const std::string ready = "echo '{\"ready\": true}' >&0\n";
  const auto error_with = [&](const std::string& script) {
    const Variable python("PTRT_PYTHON", interpreter_of(folder, script));
    PythonHelper helper;
    const HelperError error = error_of(helper, kTemplate);
    EXPECT_EQ(helper.pid(), -1) << "it is ended";
    return error;
  };
  for (const char* answer : {"2 {\"text\": \"x\"}", "{\"text\": \"x\"}", "10 {}", "1 {}\n2 {}"}) {
    const HelperError error =
        error_with(ready + "read line\nprintf '%s\\n' '" + answer + "' >&0\nexec sleep 60");
    EXPECT_EQ(error.code, "chat_template_error") << answer;
    EXPECT_NE(error.message.find("not asked"), std::string::npos) << error.message;
  }
  const HelperError error = error_with("echo hello >&0\n" + ready + "exec sleep 60");
  EXPECT_EQ(error.code, "chat_template_unavailable");
  EXPECT_NE(error.message.find("ready"), std::string::npos) << error.message;
}

TEST(ChatRenderer, SaysWhatIsNotInstalled) {
  const Variable restored("PTRT_PYTHON");
  for (const char* python : {"/nowhere/python3", "/bin/false"}) {
    setenv("PTRT_PYTHON", python, 1);
    PythonHelper helper;
    const HelperError error = error_of(helper, kTemplate);
    EXPECT_EQ(error.code, "chat_template_unavailable");
    EXPECT_NE(error.message.find(python), std::string::npos) << error.message;
  }
  // An interpreter without Jinja.
  TempFolder folder;
  setenv("PTRT_PYTHON", interpreter_of(folder, "exec /usr/bin/python3 -S \"$@\"").c_str(), 1);
  PythonHelper helper;
  const HelperError error = error_of(helper, kTemplate);
  EXPECT_EQ(error.code, "chat_template_unavailable");
  EXPECT_NE(error.message.find("python3-jinja2"), std::string::npos) << error.message;
}

TEST(ChatFields, EveryProblemIsNamed) {
  const auto problem = [](const char* body) -> std::string {
    const auto object = nlohmann::json::parse(body);
    try {
      check_chat(Fields(object, kPlain, Task::generate));
      return "";
    } catch (const BadRequest& bad) {
      return bad.error.message;
    }
  };
  EXPECT_EQ(problem(kLine), "");
  EXPECT_EQ(problem(R"({"messages": [{"role": "a", "content": null}], "tools": null})"), "");
  const std::pair<const char*, const char*> bad[] = {
      {R"({})", "needs 'messages'"},
      {R"({"messages": "hi"})", "array"},
      {R"({"messages": []})", "empty"},
      {R"({"messages": ["hi"]})", "message 0"},
      {R"({"messages": [{"role": "a"}, {"content": "x"}]})", "message 1 has no 'role'"},
      {R"({"messages": [{"role": 1}]})", "'role'"},
      {R"({"messages": [{"role": "a", "content": 1}]})", "'content'"},
      {R"({"messages": [{"role": "a", "content": ["x"]}]})", "'type'"},
      {R"({"messages": [{"role": "a", "content": [{"type": "image_url"}]}]})", "image_url"},
      {R"({"messages": [{"role": "a", "content": [{"type": "text"}]}]})", "'text'"},
      {R"({"messages": [{"role": "a", "tool_calls": {}}]})", "'tool_calls'"},
      {R"({"messages": [{"role": "a"}], "tools": {}})", "'tools'"},
      {R"({"messages": [{"role": "a"}], "tools": [1]})", "'tools'"},
      {R"({"messages": [{"role": "a"}], "documents": 1})", "'documents'"},
      {R"({"messages": [{"role": "a"}], "add_generation_prompt": 1})", "'add_generation_prompt'"},
      {R"({"messages": [{"role": "a"}], "add_generation_prompt": true, "continue_final_message": true})",
       "both"},
      {R"({"messages": [{"role": "a"}], "chat_template_kwargs": []})", "'chat_template_kwargs'"},
      {R"({"messages": [{"role": "a"}], "tool_choice": "required"})", "'tool_choice'"},
  };
  for (const auto& [body, words] : bad)
    EXPECT_NE(problem(body).find(words), std::string::npos) << body << ": " << problem(body);
}

TEST(ChatRequest, BecomesAPromptWithoutAnotherBos) {
  PythonHelper helper;
  const ModelConfig config = small_config();
  ChatRenderer renderer(helper, kTemplate, "2026-02-28", config, small_tokenizer());
  const auto parse = [&](const std::string& text, const RequestHelpers& helpers) {
    return parse_requests(text, "r", Task::generate, config, small_tokenizer(), {1000}, helpers);
  };
  const RequestFile file = parse(
      std::string(kLine) +
          "\n{\"custom_id\": \"c\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", "
          "\"body\": {\"messages\": [{\"role\": \"u\", \"content\": \"<|258|>\"}], \"max_tokens\": 3}}\n"
          "{\"messages\": []}\n{\"prompt\": \"a\", \"messages\": [{\"role\": \"u\"}]}\n",
      {&renderer});
  ASSERT_EQ(file.requests.size(), 2u) << file.lines[0].error.message << file.lines[1].error.message;
  const std::string text = "user:hi;>";
  std::vector<std::int32_t> expected = {256};
  expected.insert(expected.end(), text.begin(), text.end());
  EXPECT_EQ(file.requests[0].tokens, expected);
  EXPECT_TRUE(file.lines[0].chat);
  EXPECT_EQ(file.requests[0].max_tokens, 64 - 10) << "what the context leaves";
  EXPECT_EQ(file.requests[1].tokens, (std::vector<std::int32_t>{256, 'u', ':', 258, ';', '>'}));
  EXPECT_EQ(file.requests[1].max_tokens, 3);
  EXPECT_TRUE(file.lines[1].chat && file.lines[1].openai);
  EXPECT_EQ(file.lines[2].error.code, "invalid_request");
  EXPECT_NE(file.lines[3].error.message.find("'prompt'"), std::string::npos) << file.lines[3].error.message;
  EXPECT_EQ(parse(kLine, {}).lines[0].error.code, "unsupported");
}

ModelSource model_with(const std::string& chat_template) {
  ModelSource model;
  model.config = small_config();
  model.tokenizer = make_tokenizer({"bytes", {}, "m.h5"}, model.config);
  model.chat_template = chat_template;
  return model;
}

TEST(ChatLines, KeepTheDateOfTheFirstStart) {
  TempFolder folder;
  BatchOptions options;
  options.output = folder / "out.jsonl";
  const ModelSource dated = model_with("{{ strftime_now('%F') }}"), plain = model_with("x");
  EXPECT_EQ(ChatLines(options, dated, false).identity(), "") << "no chat line, no difference";
  EXPECT_EQ(chat_date_of(ChatLines(options, plain, true).identity()), std::nullopt);
  EXPECT_NE(ChatLines(options, plain, true).identity(), ChatLines(options, model_with("y"), true).identity());
  options.chat_date = "2024-05-06";
  const std::string identity = ChatLines(options, dated, true).identity();
  EXPECT_EQ(chat_date_of("generate-0123" + identity + "-4567-0/4"), "2024-05-06");
  { Journal journal(options.output, "generate-0123" + identity + "-4567", 2, false); }
  options.chat_date.clear();
  EXPECT_NE(ChatLines(options, dated, true).identity(), identity) << "today";
  options.resume = true;
  EXPECT_EQ(ChatLines(options, dated, true).identity(), identity);
  EXPECT_EQ(ChatLines(options, dated, true).renderer().render(kLine, false), "2024-05-06");
  options.chat_date = "2024-05-07";
  EXPECT_NE(ChatLines(options, dated, true).identity(), identity) << "asked for";

  options.chat_date.clear();
  std::filesystem::remove(journal_path(options.output));
  write_finished(options.output, {.digest = "generate-0123" + identity + "-4567", .requests = 2});
  EXPECT_EQ(ChatLines(options, dated, true).identity(), identity);

  options.shard = "0/2";
  EXPECT_THROW(ChatLines(options, dated, true), Error) << "shards may start on different days";
  EXPECT_NO_THROW(ChatLines(options, plain, true));
}

TEST(ChatLines, TakeTheTemplateOfTheCommandLine) {
  TempFolder folder;
  BatchOptions options;
  options.chat_template = folder / "t.jinja";
  EXPECT_THROW(ChatLines(options, model_with("x"), true), Error);
  std::ofstream(options.chat_template) << "from the file";
  EXPECT_EQ(ChatLines(options, model_with("x"), true).renderer().render(kLine, false), "from the file");
}

}  // namespace
}  // namespace ptrt
