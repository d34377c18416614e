"""A model file's config as vLLM asks for it."""

from pathlib import Path

from ptrt_torch import read_config
from transformers import PretrainedConfig
from vllm.transformers_utils.config_parser_base import ConfigParserBase


class PTConfig(PretrainedConfig):
    """`pt` holds the config of docs/SPEC.md, checked and complete; the rest is what vLLM reads of any model.

    Heads are those of all tracks together, so that heads / tensor_parallel_size is what a rank holds, whether it has one
    track or several. Nothing is called sliding_window: vLLM would apply that to all layers.
    """

    model_type = "parallel_track"

    def __init__(self, pt: dict | None = None, **kwargs):
        self.pt = pt
        if pt is not None:
            self.vocab_size = pt["vocab_size"]
            self.hidden_size = pt["hidden_size"]
            self.num_hidden_layers = pt["layers"]
            self.num_attention_heads = pt["heads"] * pt["tracks"]
            self.num_key_value_heads = pt["kv_heads"] * pt["tracks"]
            self.head_dim = pt["head_dim"]
            self.intermediate_size = pt["ffn_size"]
            self.max_position_embeddings = pt["max_context"]
            eos = pt["eos_token_ids"]
            kwargs = {"architectures": ["PTForCausalLM"], "bos_token_id": pt["bos_token_id"],
                      "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
                      "tie_word_embeddings": pt["tie_embeddings"], **kwargs}
        super().__init__(**kwargs)


class PTConfigParser(ConfigParserBase):

    def parse(self, model: str | Path, trust_remote_code: bool, revision=None, code_revision=None, **kwargs):
        config = PTConfig(read_config(model))
        return config.to_dict(), config
