"""tokenizer_mode "ptrt": the tokenizer and chat template inside a model file."""

from ptrt_torch import BadInput
from ptrt_torch.tokenizer import hf_tokenizer

from . import hooks


class PTTokenizer:
    """What vLLM's registry of tokenizers calls. It gives a fast tokenizer of transformers: structured outputs take no other."""

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        try:
            return hooks.cached_tokenizer(hf_tokenizer(path))
        except BadInput as error:
            raise ValueError(f"{error} (skip_tokenizer_init=True, --skip-tokenizer-init), or name another tokenizer "
                             "(tokenizer=, --tokenizer)") from None
