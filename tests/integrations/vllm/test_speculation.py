"""Speculative decoding with drafts from the prompt. In a process of its own: vLLM can start no other engine after such a one."""

import unittest

import engines


class Speculation(unittest.TestCase):

    def test_drafts_change_nothing(self) -> None:
        """Most drafts are wrong here."""
        drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
        with engines.engine(engines.DEMO, speculative_config=drafts, disable_log_stats=False) as llm:
            engines.check_demo(self, llm)
            self.assertGreater(engines.counter(llm, "vllm:spec_decode_num_draft_tokens"), 0)


if __name__ == "__main__":
    unittest.main(verbosity=1)
