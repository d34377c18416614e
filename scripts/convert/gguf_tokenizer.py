"""Rebuilds a tokenizer.json from the metadata of a GGUF file: byte-level BPE (tokenizer.ggml.model "gpt2")."""

import json
import re
import sys
from pathlib import Path

from .errors import BadInput, brief
from .layout import Tokenizer

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# llama.cpp cuts a text like this where the file names no pre-tokenizer, or "default".
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


def _byte_level(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _cuts(*steps: dict) -> dict:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_DIGITS = {"type": "Digits", "individual_digits": True}
_PRE = {  # name in GGUF: pre-tokenizer, normalizer, ignore_merges
    "default": (_cuts(*map(_split, _DEFAULT), _byte_level(False)), None, False),
    "gpt-2": (_byte_level(True), None, False),
    "smollm": (_cuts(_DIGITS, _byte_level(True)), None, False),
    "llama-bpe": (_cuts(_split(_LLAMA3), _byte_level(False)), None, True),
    "qwen2": (_cuts(_split(_QWEN2), _byte_level(False)), {"type": "NFC"}, False),
}
_PRE["llama3"] = _PRE["llama-v3"] = _PRE["llama-bpe"]
_PRE["deepseek-r1-qwen"] = _PRE["qwen2"]
_BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")

_KNOWN = re.compile(r"(model|pre|tokens|token_type|merges|scores|add_bos_token|add_eos_token|add_sep_token"
                    r"|add_space_prefix|remove_extra_whitespaces|\w+_token_id|\w+_token_ids|token_type_count)")


def _list(metadata: dict, name: str, kind: type, where: str, length: int | None = None) -> list:
    values = metadata.get(_PREFIX + name)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values) or (
            length is not None and len(values) != length):
        raise BadInput(f"{where}: key \"{_PREFIX}{name}\" is missing or damaged")
    return values


def _pre(metadata: dict, where: str) -> str:
    name = metadata.get(_PREFIX + "pre")
    if name is None:
        print(f"note: {where} names no pre-tokenizer (tokenizer.ggml.pre); \"default\" is taken, as llama.cpp does",
              file=sys.stderr)
        return "default"
    if name not in _PRE:
        raise BadInput(f"{where}: key \"{_PREFIX}pre\": {brief(name)} is not supported; {', '.join(_PRE)} can be "
                       "converted. --tokenizer FILE takes the model's own tokenizer.json")
    return name


def build(metadata: dict, where: str) -> dict:
    """tokenizer.json as an object."""
    pre_tokenizer, normalizer, ignore_merges = _PRE[_pre(metadata, where)]
    tokens = _list(metadata, "tokens", str, where)
    kinds = metadata.get(_PREFIX + "token_type", [_NORMAL] * len(tokens))
    merges = _list(metadata, "merges", str, where)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise BadInput(f"{where}: key \"{_PREFIX}token_type\" is damaged")
    vocab: dict[str, int] = {}
    added = []
    for number, (token, kind) in enumerate(zip(tokens, kinds)):
        if kind == _UNUSED:  # fills the vocabulary up; no text gives it
            continue
        if token in vocab:
            raise BadInput(f"{where}: token {brief(token)} is there twice: {vocab[token]} and {number}")
        vocab[token] = number
        if kind in (_CONTROL, _USER, _UNKNOWN):
            added.append({"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": kind != _USER})
        elif kind != _NORMAL:
            raise BadInput(f"{where}: token {brief(token)}: type {brief(kind)} is none of a byte-level BPE")
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
             "vocab": vocab, "merges": merges}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": _byte_level(True), "model": model}


def _check_keys(metadata: dict, where: str, ignored: set[str]) -> None:
    for name in metadata:
        if name.startswith(_PREFIX) and not _KNOWN.fullmatch(name[len(_PREFIX):]) and name not in ignored:
            raise BadInput(f"{where}: key \"{name}\": not understood, and it might change the result; --ignore-key "
                           f"{name} converts without it")
    for name in ("add_eos_token", "add_space_prefix", "add_sep_token"):
        if metadata.get(_PREFIX + name) and _PREFIX + name not in ignored:
            raise BadInput(f"{where}: key \"{_PREFIX}{name}\": true is not supported")


def _template(metadata: dict) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def read_tokenizer(metadata: dict, where: str, file: Path | None, ignored: set[str]) -> Tokenizer | None:
    """The tokenizer of the metadata, or that of a file."""
    if file is not None:
        if not file.is_file():
            raise BadInput(f"{file}: no such file")
        kind = {".json": "huggingface", ".model": "sentencepiece"}.get(file.suffix)
        if kind is None:
            raise BadInput(f"{file}: expected a tokenizer.json or a tokenizer.model")
        return Tokenizer(kind, file.read_bytes(), _template(metadata))
    kind = metadata.get(_PREFIX + "model")
    if kind is None or kind == "none":
        print(f"note: {where} has no tokenizer: the model file takes token ids only", file=sys.stderr)
        return None
    if kind != "gpt2":
        raise BadInput(f"{where}: key \"{_PREFIX}model\": {brief(kind)}, a tokenizer that cannot be rebuilt exactly; "
                       "give the model's own with --tokenizer tokenizer.json (or tokenizer.model), or convert the "
                       "Hugging Face checkpoint with convert_hf.py")
    _check_keys(metadata, where, ignored)
    return Tokenizer("huggingface", json.dumps(build(metadata, where), ensure_ascii=False).encode(),
                     _template(metadata))


def _token_id(metadata: dict, name: str, vocab_size: int, where: str) -> int | None:
    number = metadata.get(f"{_PREFIX}{name}_token_id")
    if number is not None and not (isinstance(number, int) and 0 <= number < vocab_size):
        raise BadInput(f"{where}: key \"{_PREFIX}{name}_token_id\": expected an id below {vocab_size}, found "
                       f"{brief(number)}")
    return number


def bos_and_eos(metadata: dict, vocab_size: int, where: str) -> tuple[int | None, list[int]]:
    """The bos that is put before a text, and the tokens that end one (end of sequence, of turn, of message)."""
    ends = [_token_id(metadata, name, vocab_size, where) for name in ("eos", "eot", "eom")]
    sentencepiece = metadata.get(_PREFIX + "model") == "llama"
    adds = metadata.get(_PREFIX + "add_bos_token", sentencepiece or metadata.get(_PREFIX + "pre") in _BOS_BY_DEFAULT)
    bos = _token_id(metadata, "bos", vocab_size, where) if adds else None
    return bos, list(dict.fromkeys(number for number in ends if number is not None))
