#!/usr/bin/python3
"""No command writes over a file that it reads, by whatever name; what it cannot write it says at once."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PTRT, SANITIZERS, CliTest, Outcome, Running, ptrt, write_requests  # noqa: E402
from model_maker import make_config  # noqa: E402

REQUEST = {"id": "a", "tokens": [5, 6, 7], "max_tokens": 3}
GPU = {"memory_gib": 8, "memory_gb_per_s": 20, "gemm_tflops": 0.3, "bandwidth_efficiency": 1, "gemm_efficiency": 1,
       "layer_overhead_us": 1}
LINK = {"latency_us": 5, "gb_per_s": 1, "ranks": 0}
BENCH = ("--input-len", "4", "--output-len", "2", "--requests", "1", "--warmup", "0")

# Command, what it reads, and the option of each file that it writes.
COMMANDS: list[tuple[list[str], list[str], list[str]]] = [
    (["generate", "MODEL", "REQUESTS"], ["MODEL", "SHARD", "REQUESTS"], ["-o"]),
    (["score", "MODEL", "REQUESTS"], ["MODEL", "SHARD", "REQUESTS"], ["-o"]),
    (["score", "MODEL", "--text", "TEXT"], ["MODEL", "SHARD", "TEXT"], ["-o"]),
    (["bench", "MODEL", *BENCH], ["MODEL", "SHARD"], ["--json", "--csv"]),
    (["bench", "MODEL", "--dataset", "REQUESTS"], ["MODEL", "SHARD", "REQUESTS"], ["--json", "--csv"]),
    (["bench", "--random-weights", "CONFIG", *BENCH], ["CONFIG"], ["--json", "--csv"]),
    (["init", "CONFIG"], ["CONFIG"], ["-o"]),
    (["quantize", "MODEL", "--weights", "int8"], ["MODEL", "SHARD"], ["-o"]),
    (["pack", "MODEL"], ["MODEL", "SHARD"], ["-o"]),
    (["plan", "CONFIG", "--gpu", "GPU", "--link", "LINK"], ["CONFIG", "GPU", "LINK"], ["--json"]),
]
# Files about a run, that any command with a model writes.
OBSERVED: list[tuple[list[str], list[str], list[str]]] = [
    (["generate", "MODEL", "REQUESTS", "-o", "results"], ["MODEL", "SHARD", "REQUESTS"], []),
    (["score", "MODEL", "--text", "TEXT"], ["MODEL", "SHARD", "TEXT"], []),
    (["bench", "MODEL", *BENCH], ["MODEL", "SHARD"], []),
]
for _, _, files in OBSERVED:
    files += ["--trace", "--metrics", "--log-file"]


class Outputs(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.source = cls.dir / "source"
        cls.source.mkdir()
        config = make_config(tracks=2, hidden_size=32, ffn_size=32)
        (cls.source / "config.json").write_text(json.dumps(config))
        (cls.source / "gpu.json").write_text(json.dumps(GPU))
        (cls.source / "link.json").write_text(json.dumps(LINK))
        write_requests(cls.source / "requests.jsonl", [REQUEST])
        (cls.source / "text.txt").write_text("a text")
        made = ptrt("init", cls.source / "config.json", "-o", cls.source / "model.h5", "--split")
        assert made.status == 0, made.output
        cls.files = {"MODEL": "model.h5", "SHARD": "model.track01.h5", "REQUESTS": "requests.jsonl", "TEXT": "text.txt",
                     "CONFIG": "config.json", "GPU": "gpu.json", "LINK": "link.json"}

    def setUp(self) -> None:
        self.folder = self.fresh("-case")
        shutil.copytree(self.source, self.folder)

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}

    def run_here(self, command: list[str], *options, **keywords) -> Outcome:
        arguments = [self.files.get(word, word) for word in command]
        return ptrt(*arguments, *options, cwd=self.folder, **keywords)

    def assert_refused(self, outcome: Outcome, *words: str, status: int = 2) -> None:
        self.assertFalse(outcome.timed_out, outcome.output)
        self.assertEqual(outcome.status, status, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        self.assertNotRegex(outcome.output, r"filesystem error|json\.exception|bad_alloc|std::|internal error")
        for word in words:
            self.assertRegex(outcome.output, word)

    def names_of(self, name: str) -> list[str]:
        """Other names of a file in the folder: made anew."""
        (self.folder / "soft").symlink_to(name)
        (self.folder / "chain").symlink_to(self.folder / "soft")
        os.link(self.folder / name, self.folder / "hard")
        (self.folder / "inner").mkdir()
        return [name, f"./{name}", f"inner/../{name}", str(self.folder / name), "soft", "chain", "hard"]

    def test_no_output_is_an_input(self) -> None:
        for command, inputs, outputs in [*COMMANDS, *OBSERVED]:
            for read in inputs:
                self.setUp()
                names = self.names_of(self.files[read])
                before = self.contents()
                for option in outputs:
                    for name in names:
                        with self.subTest(command=" ".join(command), option=option, name=name):
                            outcome = self.run_here(command, option, name)
                            self.assert_refused(outcome, "would overwrite|one file|is no log")
                            self.assertEqual(self.contents(), before)

    def test_split_files_are_no_inputs(self) -> None:
        """model.track01.h5 of the new model is a file that is read."""
        before = self.contents()
        for command in (["quantize", "MODEL", "--weights", "int8"], ["pack", "MODEL"]):
            self.assert_refused(self.run_here(command, "--split", "-o", "model.hdf5"), "would overwrite")
            self.assertEqual(self.contents(), before)
        config = self.folder / "new.track00.h5"
        (self.folder / "config.json").rename(config)
        self.assert_refused(ptrt("init", config, "--split", "-o", self.folder / "new.h5"), "would overwrite")

    def test_two_outputs_are_two_files(self) -> None:
        (self.folder / "soft").symlink_to("one")
        for names in (("one", "one"), ("one", "./one"), ("one", "soft")):
            outcome = self.run_here(["bench", "MODEL", *BENCH], "--json", names[0], "--csv", names[1])
            self.assert_refused(outcome, "one file")
            self.assertFalse((self.folder / "one").exists())

    def test_names_beside_an_output_are_kept(self) -> None:
        """A file that has a name like a temporary one is the user's."""
        for command, inputs, outputs in COMMANDS:
            if command[0] in ("generate", "score"):
                continue  # test_journal
            for suffix in (".tmp", ".partial"):
                self.setUp()
                names = {read: f"out{suffix}" if read == inputs[-1] and read != "SHARD" else self.files[read]
                         for read in inputs}
                if "SHARD" not in inputs[-1:]:
                    (self.folder / self.files[inputs[-1]]).rename(self.folder / f"out{suffix}")
                arguments = [names.get(word, self.files.get(word, word)) for word in command]
                before = self.contents()
                victim = self.folder / "victim"
                victim.write_text("mine")
                for option in outputs:
                    with self.subTest(command=" ".join(command), option=option, suffix=suffix):
                        other = self.folder / ("out.partial" if suffix == ".tmp" else "out.tmp")
                        other.unlink(missing_ok=True)
                        other.symlink_to(victim)
                        self.assert_done(ptrt(*arguments, option, "out", cwd=self.folder))
                        (self.folder / "out").unlink()
                        other.unlink()
                        self.assertEqual(victim.read_text(), "mine")
                        self.assertEqual({name: self.contents()[name] for name in before}, before)
                        self.assertEqual(set(self.contents()), {*before, "victim"}, "nothing is left behind")

    def test_a_link_stays(self) -> None:
        for command, _, outputs in COMMANDS:
            for option in outputs:
                for exists in (True, False):
                    self.setUp()
                    with self.subTest(command=" ".join(command), option=option, exists=exists):
                        (self.folder / "elsewhere").mkdir()
                        target, link = self.folder / "elsewhere" / "target", self.folder / "out"
                        if exists:
                            target.write_text("old")
                        link.symlink_to("elsewhere/target")
                        self.assert_done(self.run_here(command, option, "out"))
                        self.assertTrue(link.is_symlink())
                        self.assertGreater(target.stat().st_size, 10)
                        self.assertEqual([path.name for path in (self.folder / "elsewhere").iterdir()], ["target"])

    def test_what_cannot_be_written_is_said_at_once(self) -> None:
        """Before a model is loaded: a report after hours of measuring would be lost."""
        before = self.contents()
        for command, _, outputs in COMMANDS:
            for option in outputs:
                for path in ("none/out", ".", str(self.folder), "config.json/out", "out/"):
                    with self.subTest(command=" ".join(command), option=option, path=path):
                        outcome = self.run_here(command, option, path)
                        self.assert_refused(outcome)
                        self.assertNotIn("TTFT", outcome.output, "nothing has been measured")
                        self.assertEqual(self.contents(), before)

    def test_devices(self) -> None:
        """Reports may go to a device or a descriptor; a model may not."""
        for command, _, outputs in COMMANDS:
            if command[0] in ("bench", "plan"):
                for option in outputs:
                    self.assert_done(self.run_here(command, option, "/dev/null"))
                    self.assert_refused(self.run_here(command, option, "/dev/full"), "No space", status=1)
            elif not command[0] in ("generate", "score"):
                for device in ("/dev/null", "/dev/full"):
                    self.assert_refused(self.run_here(command, "-o", device), "no regular file|cannot write")
        self.assertTrue(Path("/dev/null").is_char_device())
        told = self.run_here(["plan", "CONFIG"], "--json", "/dev/stdout")
        self.assert_done(told)
        table, _, report = told.stdout.partition("{")
        self.assertIn("PREDICTED", table)
        self.assertIn("runs", json.loads("{" + report))

    def test_no_name(self) -> None:
        for command, inputs, outputs in COMMANDS:
            for option in outputs:
                self.assert_refused(self.run_here(command, option, ""), "name of a file")
            for read in {*inputs} - {"SHARD"}:
                empty = ["" if word == read else word for word in command]
                self.assert_refused(self.run_here(empty, outputs[0], "out"), "name of a file")
        self.assert_refused(self.run_here(["inspect", ""]), "name of a file")

    def test_working_folder_that_is_gone(self) -> None:
        gone = self.fresh("-gone")
        for command, _, outputs in [*COMMANDS, (["inspect", "MODEL"], [], [None])]:
            for option in outputs:
                for absolute in (False, True):
                    with self.subTest(command=" ".join(command), option=option, absolute=absolute):
                        words = [str(self.folder / self.files[word]) if absolute and word in self.files
                                 else self.files.get(word, word) for word in command]
                        if option is not None:
                            words += [option, "out"]
                        elif absolute:
                            continue
                        gone.mkdir()
                        leave = f'rmdir "{gone}"; exec "$0" "$@"'
                        outcome = run_command(["/bin/sh", "-c", leave, PTRT, *words], cwd=gone)
                        self.assert_refused(outcome, "No such file|cannot|does not exist")

    def test_a_signal_leaves_nothing(self) -> None:
        """A model that is being written when SIGTERM comes: nothing under its name, nothing beside it."""
        big = {**json.loads((self.folder / "config.json").read_text()), "vocab_size": 200000, "hidden_size": 256}
        (self.folder / "config.json").write_text(json.dumps(big))
        before = self.contents()
        running = Running(["init", "config.json", "-o", "out.h5", "--split"], cwd=self.folder)
        deadline = time.monotonic() + 60
        while len(list(self.folder.glob("*.tmp"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        running.process.terminate()
        self.assertEqual(running.finish(60).status, -signal.SIGTERM)
        self.assertEqual(self.contents(), before)

    def test_limit_of_a_files_size(self) -> None:
        """ulimit -f: a message and status 1, nothing half written; a journal that --resume continues."""
        rows = [{**REQUEST, "id": f"request {index} " + "x" * 100} for index in range(200)]
        write_requests(self.folder / "many.jsonl", rows)
        (self.folder / "many.txt").write_text("many windows" * 20)
        before = self.contents()
        for command, _, outputs in COMMANDS:
            many = {**self.files, "REQUESTS": "many.jsonl", "TEXT": "many.txt"}
            command = [many.get(word, word) for word in command]
            if "--text" in command:
                command += ["--window", "4", "--stride", "1"]
            if command[0] == "bench":
                command += ["--requests", "1"] if "--dataset" in command else ["--input-len", "1,2,3,4,5"]
            for option in outputs:
                with self.subTest(command=" ".join(command), option=option):
                    outcome = run_command([PTRT, *command, option, "out"], cwd=self.folder,
                                          limits={resource.RLIMIT_FSIZE: 300 if option == "--csv" else 1024})
                    self.assert_refused(outcome, "out", "[Tt]oo large", status=1)
                    left = {name: data for name, data in self.contents().items() if name not in before}
                    self.assertEqual(set(left), {"out.partial"} if command[0] in ("generate", "score") else set())
                    if not left:
                        continue
                    self.assert_done(ptrt(*command, option, "out", "--resume", cwd=self.folder))
                    lines = 1 if "--text" in command else len(rows)
                    self.assertEqual(len((self.folder / "out").read_bytes().splitlines()), lines)
                    for name in self.contents().keys() - before.keys():
                        (self.folder / name).unlink()

    @unittest.skipIf(SANITIZERS, "sanitizers reserve more address space")
    def test_limit_of_memory(self) -> None:
        """ulimit -v: from nothing at all to enough, the program runs or says what it lacks."""
        done = 0
        commands = [[self.files.get(word, word) for word in command] + [outputs[0], "out"]
                    for command, _, outputs in COMMANDS] + [["inspect", "model.h5", "--verify"]]
        for command in commands:
            for mib in (96, 160, 256, 400, 800, 4000):
                with self.subTest(command=" ".join(command), mib=mib):
                    outcome = run_command([PTRT, *command], cwd=self.folder,
                                          limits={resource.RLIMIT_AS: mib << 20})
                    for left in ("out", "out.partial"):
                        (self.folder / left).unlink(missing_ok=True)
                    if outcome.status == 127 and "shared libraries" in outcome.output:
                        continue  # the loader had no room for them
                    done += outcome.status == 0
                    if outcome.status != 0:
                        self.assertIn(outcome.status, (1, 2), outcome.output)
                        self.assertRegex(outcome.output, "memory|thread|address space")
                        self.assertNotRegex(outcome.output, r"bad_alloc|terminate|std::")
        self.assertGreaterEqual(done, len(commands), "4000 MiB are enough for each")

    def test_a_share_of_a_limit(self) -> None:
        """The line about the run says what limits the KV cache; a size that is given is taken as it is."""
        limits = {resource.RLIMIT_AS: 3 << 30}
        command = [PTRT, "generate", "model.h5", "requests.jsonl", "-o", "out", "--max-batch", "65536"]
        told = run_command(command, cwd=self.folder, limits=limits)
        self.assert_done(told)
        self.assertRegex(told.output, r"KV cache limited by ulimit -v")
        self.assert_done(told := run_command([*command, "--kv-cache-bytes", "1M"], cwd=self.folder, limits=limits))
        self.assertNotIn("limited", told.output)
        job = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "512"}
        self.assert_done(told := run_command(command, cwd=self.folder, env=job))
        self.assertRegex(told.output, r"KV cache limited by SLURM_MEM_PER_NODE")
        kv_mib = float(re.search(r"([0-9.]+) MiB KV", told.output).group(1))
        self.assertLessEqual(kv_mib, 128)
        refused = run_command(command, cwd=self.folder, env={**job, "SLURM_MEM_PER_NODE": "48"})
        self.assert_refused(refused, "SLURM_MEM_PER_NODE", "not enough memory", "--kv-cache-bytes")


def run_command(command: list, cwd: Path, limits: dict[int, int] | None = None,
                env: dict[str, str] | None = None) -> Outcome:
    """Any command, under limits of setrlimit()."""
    def restrict() -> None:
        for what, value in (limits or {}).items():
            resource.setrlimit(what, (value, value))

    start = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, preexec_fn=restrict, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=120, check=False)
    return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"),
                   time.monotonic() - start)


if __name__ == "__main__":
    unittest.main(verbosity=1)
