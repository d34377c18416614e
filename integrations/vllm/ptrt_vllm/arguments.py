"""Engine arguments of a model file: what `auto` means for one, and what is refused, by name, before a worker starts."""

from pathlib import Path

from ptrt_torch import BadInput, read_config, tracks_of_rank

from .hooks import FORMAT, is_model_file

# Engine argument, whether its value asks for the feature, and how a message calls it.
_REFUSED = (
    ("pipeline_parallel_size", lambda value: value > 1, "pipeline parallelism"),
    ("enable_lora", bool, "LoRA"),
    ("quantization", lambda value: value is not None, "quantisation by vLLM"),
    ("enable_expert_parallel", bool, "expert parallelism"),
    ("prefill_context_parallel_size", lambda value: value > 1, "prefill context parallelism"),
    ("decode_context_parallel_size", lambda value: value > 1, "decode context parallelism"),
    ("hf_overrides", bool, "another config than the file's"),
    ("hf_config_path", lambda value: value is not None, "another config than the file's"),
)


def _make_absolute(engine_args) -> None:
    """vLLM would look a relative path up on the hub. What was given stays the name that requests call the model by."""
    if engine_args.served_model_name is None:
        engine_args.served_model_name = str(engine_args.model)
    for name in ("model", "tokenizer"):
        value = getattr(engine_args, name)
        if value is not None and is_model_file(value):
            setattr(engine_args, name, str(Path(value).absolute()))


def prepare(engine_args) -> None:
    """Fills in the formats and checks the file's config; raises ValueError with the whole story."""
    for name, asked, feature in _REFUSED:
        value = getattr(engine_args, name)
        if asked(value):
            raise ValueError(f"{engine_args.model}: {name}={value}: {feature} is not supported for Parallel Track models")
    try:
        tracks_of_rank(read_config(engine_args.model), engine_args.tensor_parallel_size, 0)
    except BadInput as error:
        path = str(engine_args.model)
        raise ValueError(str(error) if path in str(error) else f"{path}: tensor_parallel_size: {error}") from None
    _make_absolute(engine_args)
    if engine_args.config_format == "auto":
        engine_args.config_format = FORMAT
    if engine_args.load_format == "auto":
        engine_args.load_format = FORMAT
