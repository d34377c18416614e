"""Reads a config.json key by key. A key that nobody asked for is an error: it might change the result."""

import math

from .errors import BadInput, brief

REQUIRED = object()
MOST_LAYERS = 1000  # whose names in a model file have three digits

# Keys of transformers' configurations that change no log-probability of a causal model.
WITHOUT_EFFECT = frozenset("""
    _name_or_path _attn_implementation _attn_implementation_autoset attn_implementation architectures attention_dropout
    bad_words_ids begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    hidden_dropout id2label initializer_range is_decoder is_llama_config label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef
    router_jitter_noise sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p unsloth_fixed
    unsloth_version use_bfloat16 use_cache vocab_file
    """.split())

# Keys that are understood with one value only.
FIXED = {
    "add_cross_attention": (False,), "attn_logit_softcapping": (), "cross_attention_hidden_size": (),
    "final_logit_softcapping": (), "is_encoder_decoder": (False,), "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0), "pruned_heads": ({},), "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,), "use_bidirectional_attention": (False,), "use_mrope": (False,),
}


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Keys:
    """The keys of a JSON object. where, e.g. a file, begins every message; null means absent."""

    def __init__(self, values: dict, where: str, ignored: frozenset[str] | set[str] = frozenset()):
        self.where = where
        self._values = {name: value for name, value in values.items() if value is not None}
        self._ignored = ignored
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def fail(self, name: str, message: str):
        raise BadInput(f"{self.where}: key \"{name}\": {message}")

    def raw(self, name: str, default=None):
        """The value as it is; the key is understood from now on."""
        self._taken.add(name)
        value = self._values.get(name, default)
        if value is REQUIRED:
            raise BadInput(f"{self.where}: key \"{name}\" is missing")
        return value

    def integer(self, name: str, default=REQUIRED, least: int = 1, most: int = 2**31 - 1) -> int:
        value = self.raw(name, default)
        if value is default and default is not REQUIRED:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.fail(name, f"expected an integer from {least} to {most}, found {brief(value)}")
        return value

    def number(self, name: str, default=REQUIRED):
        """A positive number."""
        value = self.raw(name, default)
        if value is default and default is not REQUIRED:
            return value
        if not is_number(value) or value <= 0:
            self.fail(name, f"expected a positive number, found {brief(value)}")
        return float(value)

    def boolean(self, name: str, default=REQUIRED) -> bool:
        value = self.raw(name, default)
        if not isinstance(value, bool):
            self.fail(name, f"expected true or false, found {brief(value)}")
        return value

    def choice(self, name: str, accepted: dict, default: str):
        """What accepted has for the value."""
        value = self.raw(name, default)
        if not isinstance(value, str) or value not in accepted:
            self.fail(name, f"{brief(value)} is not supported; {' and '.join(map(brief, accepted))} can be converted")
        return accepted[value]

    def integers(self, name: str, default):
        value = self.raw(name, default)
        if value is default:
            return value
        if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in value):
            self.fail(name, f"expected a list of integers, found {brief(value)}")
        return value

    def strings(self, name: str, length: int):
        """A list of strings of this length, or None."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value) or len(value) != length:
            self.fail(name, f"expected a list of {length} strings, found {brief(value)}")
        return value

    def finish(self) -> None:
        """Refuses what is left. Ends the reading of an object."""
        for name, accepted in FIXED.items():
            if name in self._values and name not in self._taken and name not in self._ignored:
                if not any(self._values[name] == value for value in accepted):
                    only = f"; only {brief(accepted[0])} is" if accepted else ""
                    self.fail(name, f"{brief(self._values[name])} is not supported{only}")
        known = self._taken | WITHOUT_EFFECT | FIXED.keys() | self._ignored
        unknown = sorted(self._values.keys() - known)
        if unknown:
            self.fail(unknown[0], f"not understood, and it might change the result (its value is "
                                  f"{brief(self._values[unknown[0]])}); --ignore-key {unknown[0]} converts without it")
