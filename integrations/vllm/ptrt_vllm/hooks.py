"""All that ptrt_vllm takes from vLLM beyond its documented interface for plug-ins, and the releases it was tested with.

vLLM changes these places between releases. check_version() refuses a release outside the range; the tests run with the one of
requirements.lock. Everything else in this package uses vLLM's public interface: models, attention, weight loaders.
"""

import functools
import logging
import re
from pathlib import Path

FORMAT = "ptrt"  # the name of our config format, load format, tokenizer mode and renderer
FIRST, BEYOND = (0, 32), (0, 33)  # vLLM releases: FIRST <= release < BEYOND
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_installed = _refused = False


def check_version(version: str) -> None:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or not FIRST <= tuple(map(int, found.groups())) < BEYOND:
        first, beyond = (".".join(map(str, each)) for each in (FIRST, BEYOND))
        raise RuntimeError(f"ptrt-vllm supports vLLM >= {first}, < {beyond}, found {version}. Install such a vLLM or "
                           "another ptrt-vllm")


def is_model_file(model) -> bool:
    """Whether an engine's argument `model` is ours: an HDF5 file by its name or by its first bytes."""
    path = Path(str(model))
    if path.suffix in (".h5", ".hdf5"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE
    except OSError:
        return False


def install() -> None:
    """Registers everything, once a process; raises RuntimeError, with nothing registered, where this vLLM is not supported."""
    global _installed
    if _installed:
        return
    import vllm

    check_version(vllm.__version__)
    try:
        steps = [_formats(), _tokenizer(), _arguments()]  # each finds its places in vLLM before any changes one
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"ptrt-vllm: vLLM {vllm.__version__} has changed where the plug-in joins it: {error}") from error
    for step in steps:
        step()
    _installed = True


def refuse_model_files(error: Exception) -> None:
    """In place of install(), once a process: a warning, and engines of model files end with it. Others are left alone."""
    global _refused
    if _refused:
        return
    _refused = True
    reason = f"Parallel Track model files do not run: {error}"
    logging.getLogger("vllm.ptrt_vllm").warning(reason)  # of this name, so that vLLM's handlers print it
    try:
        from vllm.engine.arg_utils import EngineArgs

        create_engine_config = EngineArgs.create_engine_config
    except (ImportError, AttributeError):  # then vLLM fails by itself, after the warning
        return

    @functools.wraps(create_engine_config)
    def create(self, *args, **kwargs):
        if is_model_file(self.model):
            raise RuntimeError(f"{self.model}: {reason}") from error
        return create_engine_config(self, *args, **kwargs)

    EngineArgs.create_engine_config = create


def _formats():
    """Our config and load formats, and the model's class."""
    from vllm import ModelRegistry
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.transformers_utils.config import register_config_parser

    from .config import PTConfigParser
    from .loader import PTModelLoader

    def register() -> None:
        register_config_parser(FORMAT)(PTConfigParser)
        register_model_loader(FORMAT)(PTModelLoader)
        # By name: vLLM looks at the class in a process of its own before any worker imports it.
        ModelRegistry.register_model("PTForCausalLM", "ptrt_vllm.model:PTForCausalLM")

    return register


def _tokenizer():
    """Our tokenizer mode, which is what `auto` means for a model file, wherever vLLM makes a tokenizer (`vllm bench` too).

    vLLM wants a renderer (what makes a prompt of chat messages) for each mode. Ours gives a tokenizer of transformers with the
    file's chat template, so the renderer is vLLM's own for such tokenizers.
    """
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers import TokenizerRegistry, registry

    add_renderer, add_tokenizer = RENDERER_REGISTRY.register, TokenizerRegistry.register
    resolve = registry.cached_resolve_tokenizer_args

    @functools.wraps(resolve)
    def resolve_arguments(tokenizer_name, *args, tokenizer_mode="auto", **kwargs):
        if tokenizer_mode == "auto" and is_model_file(tokenizer_name):
            tokenizer_mode = FORMAT
        return resolve(tokenizer_name, *args, tokenizer_mode=tokenizer_mode, **kwargs)

    def register() -> None:
        add_renderer(FORMAT, "vllm.renderers.hf", "HfRenderer")
        add_tokenizer(FORMAT, "ptrt_vllm.tokenizer", "PTTokenizer")
        registry.cached_resolve_tokenizer_args = resolve_arguments

    return register


def cached_tokenizer(tokenizer):
    """The same tokenizer with what vLLM's engine asks for at each step worked out once."""
    from vllm.tokenizers.hf import get_cached_tokenizer

    return get_cached_tokenizer(tokenizer)


def _arguments():
    """Engine arguments of a model file: our formats in place of `auto`, and refusals before any process starts."""
    from vllm.engine import arg_utils

    create_engine_config = arg_utils.EngineArgs.create_engine_config
    override_with_speculators = arg_utils.maybe_override_with_speculators
    local_path = arg_utils.get_model_path

    @functools.wraps(create_engine_config)
    def create(self, *args, **kwargs):
        if is_model_file(self.model):
            from .arguments import prepare

            prepare(self)
        return create_engine_config(self, *args, **kwargs)

    @functools.wraps(override_with_speculators)
    def override(model, tokenizer, *args, vllm_speculative_config=None, **kwargs):
        # It reads the model as a config.json whatever the config format is.
        if is_model_file(model):
            return model, tokenizer, vllm_speculative_config
        return override_with_speculators(model, tokenizer, *args, vllm_speculative_config=vllm_speculative_config, **kwargs)

    @functools.wraps(local_path)
    def path_of(model, *args, **kwargs):
        # Offline, it looks for a model that is no path in the cache of the hub; a missing file is reported by prepare().
        return model if is_model_file(model) else local_path(model, *args, **kwargs)

    def register() -> None:
        arg_utils.EngineArgs.create_engine_config = create
        arg_utils.maybe_override_with_speculators = override
        arg_utils.get_model_path = path_of

    return register
