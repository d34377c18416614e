"""Parallel Track models (ptrt model files) in vLLM, as a plug-in: see README.md.

Nothing of vLLM is imported here: vLLM calls register() in each of its processes.
"""


def register() -> None:
    """Entry point `vllm.general_plugins`. May run several times in a process.

    It raises nothing, since vLLM would then run no model at all: where this vLLM is not supported, it says so and a model file
    is refused (hooks.refuse_model_files).
    """
    from . import hooks

    try:
        hooks.install()
    except Exception as error:
        hooks.refuse_model_files(error)
