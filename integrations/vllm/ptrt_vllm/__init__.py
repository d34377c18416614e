"""Parallel Track models (ptrt model files) in vLLM, as a plug-in: see README.md.

Nothing of vLLM is imported here: vLLM calls register() in each of its processes.
"""


def register() -> None:
    """Entry point `vllm.general_plugins`. May run several times in a process; raises where this vLLM is not supported."""
    from . import hooks

    hooks.install()
