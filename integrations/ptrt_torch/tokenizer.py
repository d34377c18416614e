"""The tokenizer in a model file as a fast tokenizer of Hugging Face, which engines take. Needs transformers."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .convert.errors import BadInput
from .convert.ptrt_reader import ModelReader

BYTES = 256


def byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies: its own, or the next one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(BYTES + place): byte for place, byte in enumerate(others)}


def _of_bytes(vocab_size: int) -> Tokenizer:
    """Kind "bytes": ids 0 to 255 are the bytes; <|N|> stands for any further id N, which is special."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_characters(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|{number}|>" for number in range(BYTES, vocab_size)])
    return tokenizer


def hf_tokenizer(path) -> PreTrainedTokenizerFast:
    """Puts bos before a text as ptrt does: as the config says, whatever a post_processor in the file says.

    Raises BadInput where the file has no tokenizer, or one of kind "sentencepiece", which is no fast tokenizer.
    """
    with ModelReader(path) as reader:
        config, stored = reader.config, reader.tokenizer()
    if stored is None:
        raise BadInput(f"{path}: the model file has no tokenizer: give token ids")
    if stored.kind == "sentencepiece":
        raise BadInput(f"{path}: /tokenizer: kind \"sentencepiece\" is not supported here: give token ids, or convert the "
                       "model with a tokenizer.json")
    if stored.kind == "bytes":
        if config["vocab_size"] < BYTES:
            raise BadInput(f"{path}: /tokenizer: kind \"bytes\" needs a vocab_size of at least {BYTES}")
        tokenizer = _of_bytes(config["vocab_size"])
    else:
        try:
            tokenizer = Tokenizer.from_str(stored.model.decode("utf-8"))
        except Exception as error:  # the library raises no narrower type
            raise BadInput(f"{path}: /tokenizer: no tokenizer.json: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > config["vocab_size"]:
        raise BadInput(f"{path}: /tokenizer: token {size - 1} is not below vocab_size {config['vocab_size']}")
    special = {"bos_token": config["bos_token_id"], "eos_token": next(iter(config["eos_token_ids"]), None)}
    names = {}
    for name, token in special.items():
        if token is not None:
            names[name] = tokenizer.id_to_token(token)
            if names[name] is None:
                raise BadInput(f"{path}: /tokenizer: no token has the id {token} of the config's {name}")
    bos = names.get("bos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" if bos else "$A", special_tokens=[(bos, special["bos_token"])] if bos else [])
    result = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=config["max_context"],
                                     truncation_side="left", clean_up_tokenization_spaces=False, **names)
    result.chat_template = stored.chat_template
    result.name_or_path = str(path)
    return result
