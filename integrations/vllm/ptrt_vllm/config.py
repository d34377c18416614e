"""A model file's config as vLLM asks for it."""

from pathlib import Path

from ptrt_torch import main_type, read_config
from ptrt_torch.hf_config import hf_fields
from transformers import PretrainedConfig
from vllm.transformers_utils.config_parser_base import ConfigParserBase


class PTConfig(PretrainedConfig):
    """`pt` holds the config of docs/SPEC.md, checked and complete; the rest is what vLLM reads of any model."""

    model_type = "parallel_track"

    def __init__(self, pt: dict | None = None, **kwargs):
        self.pt = pt
        if pt is not None:
            kwargs = {**hf_fields(pt), **kwargs}
        super().__init__(**kwargs)


class PTConfigParser(ConfigParserBase):

    def parse(self, model: str | Path, trust_remote_code: bool, revision=None, code_revision=None, **kwargs):
        config = PTConfig(read_config(model), dtype=main_type(model))
        return config.to_dict(), config
