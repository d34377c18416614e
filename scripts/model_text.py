"""What a model file says about text: its special tokens, its context, and its tokenizer, for tools in Python."""

import json
from collections.abc import Callable

import h5py
import numpy as np


CONTINUED = "\N{OBJECT REPLACEMENT CHARACTER}continued"  # marks in a rendered chat where its last message ends


class NoTokenizer(Exception):
    """The model takes token ids only, or the package for its tokenizer is missing."""


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


class ModelText:
    """`encode` gives ids without bos, `name_of` the text of one token, special tokens included."""

    def __init__(self, path: str):
        try:
            opened = h5py.File(path, "r")
        except OSError as error:
            raise OSError(f"{path}: no model file: {error}") from error
        with opened as file:
            self.config = json.loads(_text(file.attrs["config"]))
            group = file.get("tokenizer")
            if group is None:
                raise NoTokenizer(f"{path}: the model file has no tokenizer")
            self.kind = _text(group.attrs["kind"])
            template = group.attrs.get("chat_template")
            self.chat_template = None if template is None else _text(template)
            data = np.asarray(group["model"], dtype=np.uint8).tobytes() if "model" in group else b""
        makers: dict[str, Callable[[bytes], None]] = {
            "bytes": self._use_bytes, "huggingface": self._use_huggingface, "sentencepiece": self._use_sentencepiece}
        if self.kind not in makers:
            raise NoTokenizer(f"{path}: unknown kind of tokenizer '{self.kind}'")
        try:
            makers[self.kind](data)
        except ImportError as error:
            raise NoTokenizer(f"{path}: its tokenizer needs a Python package: {error}") from error

    @property
    def bos(self) -> int | None:
        return self.config["bos_token_id"]

    @property
    def eos(self) -> list[int]:
        return self.config["eos_token_ids"]

    @property
    def max_context(self) -> int:
        return self.config["max_context"]

    def render(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """The chat as text. Without a generation prompt the last message is left open, to be continued.

        Raises ValueError for a chat that the template refuses.
        """
        import jinja2
        import jinja2.meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        if self.chat_template is None:
            raise ValueError("the model file has no chat template")

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                    extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = refuse
        special = {"bos_token": self.bos, "eos_token": self.eos[0] if self.eos else None}
        names = {name: self.name_of(token) for name, token in special.items() if token is not None}
        if not add_generation_prompt:
            messages = [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + CONTINUED}]
        try:
            used = jinja2.meta.find_undeclared_variables(environment.parse(self.chat_template))
            if missing := sorted((used & set(special)) - set(names)):
                raise ValueError(f"the chat template uses {', '.join(missing)}, which the model does not have")
            text = environment.from_string(self.chat_template).render(
                messages=messages, add_generation_prompt=add_generation_prompt, **names)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat template: {error}") from error
        return text if add_generation_prompt else text[:text.rindex(CONTINUED)]

    def _use_bytes(self, _: bytes) -> None:
        self.encode: Callable[[str], list[int]] = lambda text: list(text.encode("utf-8"))
        self.name_of: Callable[[int], str] = lambda token: chr(token) if token < 128 else ""

    def _use_huggingface(self, data: bytes) -> None:
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.name_of = lambda token: tokenizer.decode([token], skip_special_tokens=False)

    def _use_sentencepiece(self, data: bytes) -> None:
        from sentencepiece import SentencePieceProcessor
        processor = SentencePieceProcessor(model_proto=data)
        self.encode = processor.encode
        self.name_of = processor.id_to_piece
