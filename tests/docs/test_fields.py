"""The table of fields in docs/REQUESTS.md against the program's (launch/requests/field_table.h), and both against the
fields that vLLM's SamplingParams and OpenAI's two request bodies have."""

import json
import os
import re
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FORMS = {"kPlain": {"plain"}, "kCompletions": {"completions"}, "kChat": {"chat"}, "kEnvelope": {"envelope"},
         "kBodies": {"completions", "chat"}, "kLines": {"plain", "completions", "chat"},
         "kPrompts": {"plain", "completions"}, "kMessages": {"plain", "chat"}}
STANDINGS = {"read": "supported", "passes": "no effect", "refused": "refused"}

# vLLM 0.32, vllm/sampling_params.py: the fields that a user sets.
SAMPLING_PARAMS = set("""
    allowed_token_ids bad_words detokenize extra_args flat_logprobs frequency_penalty ignore_eos
    include_stop_str_in_output logit_bias logprob_token_ids logprobs max_tokens min_p min_tokens n output_kind
    presence_penalty prompt_logprobs repetition_detection repetition_penalty seed skip_clone skip_reading_prefix_cache
    skip_special_tokens spaces_between_special_tokens stop stop_token_ids structured_outputs temperature
    thinking_token_budget top_k top_p""".split())
# OpenAI's API reference, "Create completion" and "Create chat completion".
COMPLETIONS_BODY = set("""
    best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed stop stream
    stream_options suffix temperature top_p user""".split())
CHAT_BODY = set("""
    audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages
    metadata modalities model n parallel_tool_calls prediction presence_penalty prompt_cache_key
    prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream
    stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options""".split())


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def of_program():
    """{(name, form): (standing, neutral value as JSON or None, only of score)}"""
    rows = re.findall(r'\{"(\w+)", (\w+), (\w+), Standing::(\w+)(?:, "((?:[^"\\]|\\.)*)")?\}',
                      read("launch/requests/field_table.h"))
    return {(name, form): (STANDINGS[standing], json.loads(f'"{neutral}"') if neutral else None, tasks == "kScore")
            for name, forms, tasks, standing, neutral in rows for form in FORMS[forms]}


def of_document():
    text = read("docs/REQUESTS.md").split("## Every field\n")[1].split("\n## ")[0]
    fields = {}
    for name, forms, what, note in re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| (.*) \|$", text, re.M):
        standing, neutral = re.fullmatch(r"(\w+(?: \w+)?)(?:, except `(.*)`)?", what.strip()).groups()
        for form in FORMS["kLines"] if forms == "all" else forms.split(", "):
            fields[name, form] = (standing, neutral, note.startswith("`score` alone"))
    return fields


class Fields(unittest.TestCase):
    def test_document_has_what_the_program_has(self):
        program, document = of_program(), of_document()
        self.assertGreater(len(program), 200)
        lines = [f"{key}: the program has {program.get(key)}, the document {document.get(key)}"
                 for key in sorted(program.keys() | document.keys()) if program.get(key) != document.get(key)]
        self.assertFalse(lines, "\n" + "\n".join(lines))

    def test_every_row_is_found(self):
        source = read("launch/requests/field_table.h")
        self.assertEqual(len(re.findall(r"Standing::\w+[,}]", source)),
                         len(re.findall(r'^    \{"', source, re.M)))

    def test_fields_of_vllm_and_openai_are_known(self):
        program = of_program()
        for names, form in ((SAMPLING_PARAMS, "plain"), (COMPLETIONS_BODY, "completions"), (CHAT_BODY, "chat")):
            missing = {name for name in names if (name, form) not in program}
            self.assertFalse(missing, form)


if __name__ == "__main__":
    unittest.main()
