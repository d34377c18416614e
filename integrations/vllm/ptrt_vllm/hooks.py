"""All that ptrt_vllm takes from vLLM beyond its documented interface for plug-ins, and the releases it was tested with.

vLLM changes these places between releases. check_version() refuses a release outside the range; the tests run with the one of
requirements.lock. Everything else in this package uses vLLM's public interface: models, attention, weight loaders.
"""

import functools
import re
from pathlib import Path

FORMAT = "ptrt"  # the name of our config format, load format, tokenizer mode and renderer
FIRST, BEYOND = (0, 32), (0, 33)  # vLLM releases: FIRST <= release < BEYOND
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_installed = False


def check_version(version: str) -> None:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or not FIRST <= tuple(map(int, found.groups())) < BEYOND:
        first, beyond = (".".join(map(str, each)) for each in (FIRST, BEYOND))
        raise RuntimeError(f"ptrt-vllm supports vLLM >= {first}, < {beyond}, found {version}. Install such a vLLM or "
                           "another ptrt-vllm; to run other models meanwhile, list the plug-ins to load without ptrt in "
                           "VLLM_PLUGINS")


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
    """Registers everything; once a process."""
    global _installed
    if _installed:
        return
    import vllm

    check_version(vllm.__version__)
    from vllm import ModelRegistry
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.transformers_utils.config import register_config_parser

    from .config import PTConfigParser
    from .loader import PTModelLoader

    register_config_parser(FORMAT)(PTConfigParser)
    register_model_loader(FORMAT)(PTModelLoader)
    # By name: vLLM looks at the class in a process of its own before any worker imports it.
    ModelRegistry.register_model("PTForCausalLM", "ptrt_vllm.model:PTForCausalLM")
    try:
        _install_tokenizer()
        _install_arguments()
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"ptrt-vllm: vLLM {vllm.__version__} has changed where the plug-in joins it: {error}") from error
    _installed = True


def _install_tokenizer() -> None:
    """Our tokenizer mode, which is what `auto` means for a model file, wherever vLLM makes a tokenizer (`vllm bench` too).

    vLLM wants a renderer (what makes a prompt of chat messages) for each mode. Ours gives a tokenizer of transformers with the
    file's chat template, so the renderer is vLLM's own for such tokenizers.
    """
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers import TokenizerRegistry, registry

    RENDERER_REGISTRY.register(FORMAT, "vllm.renderers.hf", "HfRenderer")
    TokenizerRegistry.register(FORMAT, "ptrt_vllm.tokenizer", "PTTokenizer")
    resolve = registry.cached_resolve_tokenizer_args

    @functools.wraps(resolve)
    def resolve_arguments(tokenizer_name, *args, tokenizer_mode="auto", **kwargs):
        if tokenizer_mode == "auto" and is_model_file(tokenizer_name):
            tokenizer_mode = FORMAT
        return resolve(tokenizer_name, *args, tokenizer_mode=tokenizer_mode, **kwargs)

    registry.cached_resolve_tokenizer_args = resolve_arguments


def cached_tokenizer(tokenizer):
    """The same tokenizer with what vLLM's engine asks for at each step worked out once."""
    from vllm.tokenizers.hf import get_cached_tokenizer

    return get_cached_tokenizer(tokenizer)


def _install_arguments() -> None:
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

    arg_utils.EngineArgs.create_engine_config = create
    arg_utils.maybe_override_with_speculators = override
    arg_utils.get_model_path = path_of
