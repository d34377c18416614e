#!/usr/bin/env python3
"""What is installed and packaged: the files, the program run from there, and the recipes for clusters.

The build folder is $PTRT_BUILD_DIR; the program in it must be built.
"""

import ast
import os
import re
import shutil
import subprocess
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PTRT_BUILD_DIR", ROOT / "build")).resolve()
PACKAGING = ROOT / "scripts" / "packaging"

FILES = [
    "bin/ptrt",
    "share/doc/ptrt/README.md",
    "share/doc/ptrt/docs/INSTALL.md",
    "share/doc/ptrt/docs/MODEL_FILE.md",
    "share/ptrt/examples/demo/demo.h5",
    "share/ptrt/examples/demo/prompts.jsonl",
    "share/ptrt/examples/demo/heldout.jsonl",
    "share/ptrt/examples/demo/answers.jsonl",
    "share/ptrt/scripts/run_demo.sh",
    "share/ptrt/scripts/show_results.py",
    "share/ptrt/scripts/grade_demo.py",
    "share/ptrt/scripts/train_demo.py",
    "share/ptrt/scripts/train_pt.py",
    "share/ptrt/scripts/pt_model.py",
    "share/ptrt/scripts/convert_pt.py",
    "share/ptrt/scripts/convert/tensors.py",
    "share/ptrt/scripts/demo_tasks.py",
    "share/ptrt/scripts/slurm/array.sbatch",
    "share/ptrt/scripts/slurm/cpu_many_nodes.sbatch",
    "share/ptrt/scripts/slurm/cpu_one_node.sbatch",
    "share/ptrt/scripts/slurm/gpu.sbatch",
    "share/ptrt/scripts/slurm/gpu_all_visible.sbatch",
    "share/ptrt/scripts/slurm/merge.sbatch",
    "share/ptrt/scripts/slurm/mpirun.sbatch",
    "share/ptrt/scripts/slurm/replicas.sbatch",
]


def run(*command, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=600, **options)
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


# What CMakeLists.txt looks for, by the names of Spack; None: part of the system or of CMake.
SPACK_NAMES = {
    "Threads": None, "PkgConfig": None, "MPI": "mpi", "ICU": "icu4c", "fmt": "fmt", "nlohmann_json": "nlohmann-json",
    "CLI11": "cli11", "hwloc": "hwloc", "libhwy": "highway", "libxxhash": "xxhash", "libisal": "isa-l",
    "libzstd": "zstd", "ZLIB": "zlib-api", "sentencepiece": "sentencepiece", "oniguruma": "oniguruma",
}


def spack_names_of_cmake_packages() -> set[str]:
    """Fails on a package of CMakeLists.txt that has no line in SPACK_NAMES."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.findall(r"find_package\((\w+)", text) + re.findall(r"pkg_check_modules\(\w+ REQUIRED IMPORTED_TARGET (\w+)", text)
    return {SPACK_NAMES[name] for name in found} - {None}


class Packaging(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)


class Install(Packaging):
    def setUp(self) -> None:
        super().setUp()
        self.prefix = self.dir / "opt" / "ptrt"
        run("cmake", "--install", BUILD, "--prefix", self.prefix)
        self.ptrt = self.prefix / "bin" / "ptrt"
        self.shared = self.prefix / "share" / "ptrt"

    def test_files(self) -> None:
        for name in FILES:
            self.assertTrue((self.prefix / name).is_file(), name)

    def test_runs_the_demo(self) -> None:
        self.assertRegex(run(self.ptrt, "--version").stdout, r"^ptrt \d+\.\d+\.\d+\n$")
        demo, results = self.shared / "examples" / "demo", self.dir / "results.jsonl"
        run(self.ptrt, "generate", demo / "demo.h5", demo / "prompts.jsonl", "-o", results)
        shown = run("python3", self.shared / "scripts" / "show_results.py", demo / "prompts.jsonl", results).stdout
        self.assertIn("What is 40 + 17?", shown)
        self.assertRegex(shown, r"What is 40 \+ 17\?\s+57\n")
        run("python3", self.shared / "scripts" / "grade_demo.py", "--help")

    def test_finds_its_plugin(self) -> None:
        demo = self.shared / "examples" / "demo"

        def missing() -> str:
            done = subprocess.run(
                [self.ptrt, "generate", demo / "demo.h5", demo / "prompts.jsonl", "-o", self.dir / "x.jsonl",
                 "--backend", "cuda"], capture_output=True, text=True, check=False,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PTRT_PLUGIN_DIR": ""})
            self.assertEqual(done.returncode, 2, done.stderr)
            return done.stderr

        libraries = next(self.prefix.glob("lib*/**/ptrt"), self.prefix / "lib" / "ptrt")
        plugin = libraries / "libptrt_cuda.so"
        plugin.unlink(missing_ok=True)
        self.assertIn("there is no", missing())
        plugin.parent.mkdir(parents=True, exist_ok=True)
        plugin.write_text("no library")
        self.assertNotIn("there is no", missing())  # the driver's or the loader's word


class DebianPackage(Packaging):
    def test_content(self) -> None:
        for tool in ("dpkg-deb", "dpkg-shlibdeps", "file"):
            if shutil.which(tool) is None:
                self.skipTest(f"no {tool} (apt-get install dpkg-dev file)")
        run("cpack", "-G", "DEB", "-D", "CPACK_COMPONENTS_ALL=program", "-B", self.dir, "--config", BUILD / "CPackConfig.cmake", cwd=BUILD)
        packages = sorted(self.dir.glob("ptrt_*.deb"))
        self.assertEqual(len(packages), 1, packages)
        listed = {line.split()[5].removeprefix("./usr/") for line in
                  run("dpkg-deb", "-c", packages[0]).stdout.splitlines()}
        for name in FILES:
            self.assertIn(name, listed)
        for name in listed:
            self.assertNotRegex(name, r"_tests|libptrt_cuda|\.pyc$|__pycache__")
        depends = run("dpkg-deb", "-f", packages[0], "Depends").stdout
        for library in ("libc6", "libopenmpi3", "libhwloc15", "libfmt9", "openmpi-bin"):
            self.assertRegex(depends, rf"\b{library}\b")


class Recipes(Packaging):
    """Spack and Apptainer are not run here: the files are checked as far as Python and a shell can."""

    def test_spack_recipe(self) -> None:
        source = (PACKAGING / "spack" / "package.py").read_text()
        said: dict[str, list] = {name: [] for name in ("version", "depends_on", "variant", "license", "conflicts")}
        directives = {name: (lambda *a, _name=name, **k: said[_name].append((a, k))) for name in said}
        base = type("CMakePackage", (), {"define": lambda self, name, value: f"-D{name}={value}",
                                         "define_from_variant": lambda self, name, variant: f"-D{name}={variant}"})
        spack = types.ModuleType("spack.package")
        vars(spack).update(directives, CMakePackage=base, CudaPackage=type("CudaPackage", (), {}))
        with mock.patch.dict("sys.modules", {"spack": types.ModuleType("spack"), "spack.package": spack}):
            scope: dict = {}
            exec(compile(source, "package.py", "exec"), scope)  # noqa: S102
        recipe = scope["Ptrt"]
        for text in ast.walk(ast.parse(source)):
            self.assertNotIsInstance(text, ast.Global)
        self.assertTrue(said["version"])
        names = {re.split("[@+~]", arguments[0])[0] for arguments, _ in said["depends_on"]}
        self.assertLessEqual(spack_names_of_cmake_packages() | {"hdf5", "cmake"}, names)
        recipe.spec = mock.MagicMock()
        options = recipe().cmake_args()
        declared = "".join(path.read_text() for path in [ROOT / "CMakeLists.txt", *(ROOT / "scripts/cmake").glob("*.cmake")])
        for option in options:
            name = re.match(r"-D(\w+)=", option).group(1)
            self.assertTrue(name == "BUILD_TESTING" or name in declared, name)

    def test_apptainer_definition(self) -> None:
        definition = (PACKAGING / "ptrt.def").read_text()
        self.assertRegex(definition, r"(?m)^Bootstrap: docker\nFrom: debian:bookworm")
        sections = re.split(r"(?m)^%(\w+)[^\n]*\n", definition)
        bodies = dict(zip(sections[1::2], sections[2::2]))
        self.assertLessEqual({"files", "post", "runscript", "test", "help"}, bodies.keys())
        for name in ("post", "runscript", "test"):
            run("bash", "-n", "-c", bodies[name])
        for line in bodies["files"].strip().splitlines():
            self.assertTrue((ROOT / line.split()[0]).exists() or "*" in line, line)

    def test_documents_name_what_was_not_run(self) -> None:
        told = (ROOT / "docs" / "INSTALL.md").read_text()
        for name in ("Spack", "Apptainer"):
            self.assertIn(name, told)
        self.assertIn("not run", told)


if __name__ == "__main__":
    unittest.main()
