"""The tokenizer of a Hugging Face checkpoint: its file, its chat template, and whether it puts a bos before a text."""

import json
import sys
from pathlib import Path

from .errors import BadInput, brief
from .layout import Tokenizer
from .safetensors import load_object

def content(token) -> str | None:
    """A token of tokenizer_config.json: text, or an object that has it."""
    return token.get("content") if isinstance(token, dict) else token


def _template_tokens(processor: dict, where: str) -> tuple[list[int], list[int]]:
    """Ids that a TemplateProcessing puts before and after a single text."""
    before: list[int] = []
    after: list[int] = []
    side = before
    for piece in processor.get("single") or []:
        if "Sequence" in piece:
            side = after
            continue
        name = piece["SpecialToken"]["id"]
        side += processor["special_tokens"][name]["ids"]
    if side is before:
        raise BadInput(f"{where}: post_processor: a template without the text")
    return before, after


def _post_processor(processor, where: str) -> tuple[list[int], list[int]]:
    """Ids before and after a text, of any post_processor."""
    if processor is None:
        return [], []
    try:
        kind = processor["type"]
        if kind == "ByteLevel":
            return [], []
        if kind == "TemplateProcessing":
            return _template_tokens(processor, where)
        if kind == "Sequence":
            before: list[int] = []
            after: list[int] = []
            for inner in processor["processors"]:
                first, last = _post_processor(inner, where)
                before, after = first + before, after + last
            return before, after
    except (KeyError, TypeError):
        raise BadInput(f"{where}: post_processor is damaged: {brief(processor)}") from None
    raise BadInput(f"{where}: post_processor {brief(kind)} is not supported")


def _fitted(tokenizer: dict, data: bytes, vocab_size: int, where: str) -> bytes:
    """The file, without added tokens beyond the model's vocabulary: Gemma 3 has one for images, and no embedding."""
    try:
        vocab, added = tokenizer["model"]["vocab"], tokenizer.get("added_tokens") or []
        ids = (list(vocab.values()) if isinstance(vocab, dict) else []) + [token["id"] for token in added]
    except (KeyError, TypeError):
        raise BadInput(f"{where}: no tokenizer.json: model or added_tokens are damaged") from None
    if any(type(number) is not int for number in ids):
        raise BadInput(f"{where}: token ids that are no integers")
    beyond = [token for token in added if token["id"] >= vocab_size]
    if isinstance(vocab, dict):
        for token in beyond:
            vocab.pop(token.get("content"), None)
        largest = max(vocab.values(), default=0)
        if largest >= vocab_size:
            raise BadInput(f"{where}: token id {largest}, but the model's vocab_size is {vocab_size}")
    if not beyond:
        return data
    print(f"note: {where}: left out {len(beyond)} tokens beyond the model's vocabulary, the first {brief(beyond[0])}",
          file=sys.stderr)
    tokenizer["added_tokens"] = [token for token in added if token["id"] < vocab_size]
    return json.dumps(tokenizer, ensure_ascii=False).encode()


def _chat_template(folder: Path, config: dict) -> str | None:
    """A file of its own goes before tokenizer_config.json, as in transformers."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if (folder / "chat_template.json").is_file():
        template = load_object(folder / "chat_template.json").get("chat_template", template)
    if isinstance(template, list):  # several: [{"name": ..., "template": ...}]
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise BadInput(f"{folder / 'tokenizer_config.json'}: key \"chat_template\": found {brief(template)}")
    return template


def _bos_id(folder: Path, config: dict) -> int | None:
    """The id of the bos token of a tokenizer.model, from the checkpoint's JSON files."""
    for token, entry in (config.get("added_tokens_decoder") or {}).items():
        if content(entry) == content(config.get("bos_token", "<s>")):
            return int(token)
    return load_object(folder / "config.json").get("bos_token_id")


def read_tokenizer(folder: Path, vocab_size: int) -> tuple[Tokenizer | None, int | None, list[Path]]:
    """The tokenizer, the id of the bos that it puts before a text, and the files read; None where there is none."""
    settings = folder / "tokenizer_config.json"
    config = load_object(settings) if settings.is_file() else {}
    template = _chat_template(folder, config)
    path = folder / "tokenizer.json"
    if path.is_file():
        data = path.read_bytes()
        tokenizer = load_object(path)
        data = _fitted(tokenizer, data, vocab_size, str(path))
        before, after = _post_processor(tokenizer.get("post_processor"), str(path))
        if len(before) > 1 or after:
            raise BadInput(f"{path}: post_processor puts {len(before)} tokens before a text and {len(after)} after it; "
                           "a model file can say one before it")
        asked = config.get("add_bos_token")
        if isinstance(asked, bool) and asked != bool(before):
            print(f"note: {settings} says add_bos_token {json.dumps(asked)}, but tokenizer.json puts "
                  f"{'a' if before else 'no'} bos before a text; tokenizer.json counts", file=sys.stderr)
        return Tokenizer("huggingface", data, template), before[0] if before else None, [path]
    path = folder / "tokenizer.model"
    if not path.is_file():
        print(f"note: {folder} has neither tokenizer.json nor tokenizer.model: the model file takes token ids only",
              file=sys.stderr)
        return None, None, []
    if config.get("add_eos_token"):
        raise BadInput(f"{settings}: key \"add_eos_token\": a model file cannot say that an eos follows each text")
    adds = config.get("add_bos_token")
    if adds is None:  # transformers 4 puts one in some of its classes, version 5 does not
        print(f"note: {settings} does not say add_bos_token: no bos is put before a text", file=sys.stderr)
    return Tokenizer("sentencepiece", path.read_bytes(), template), _bos_id(folder, config) if adds else None, [path]
