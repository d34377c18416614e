"""The program's Python process without the program, and the automata that it gives."""

import json
import random
import socket
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "launch" / "python"
PARTS = ("start", "chat", "output", "schema", "serve")


class Helper:
    def __init__(self, python: str = sys.executable) -> None:
        script = "".join((FOLDER / f"helper_{part}.py").read_text(encoding="utf-8") for part in PARTS)
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen([python, "-c", script, "30", str(2 << 30)], stdin=theirs, stdout=subprocess.DEVNULL)
        self.answers, self.asked = self.socket.makefile("r", encoding="ascii"), 0
        assert json.loads(self.answers.readline()) == {"ready": True}

    def ask_text(self, question: str) -> dict:
        self.asked += 1
        self.socket.sendall(f"{self.asked} {question}\n".encode())
        number, _, answer = self.answers.readline().partition(" ")
        assert number == str(self.asked), number
        return json.loads(answer)

    def ask(self, question: dict) -> dict:
        return self.ask_text(json.dumps(question))

    def output(self, line: dict) -> dict:
        return self.ask({"kind": "output", "openai": False, "line": line})

    def close(self) -> int:
        self.answers.close()
        self.socket.close()
        return self.process.wait(timeout=60)


class Automaton:
    def __init__(self, answer: dict) -> None:
        self.accept, self.edges, self.jumps = answer["accept"], {}, {}
        for i in range(0, len(answer["edges"]), 4):
            start, low, high, end = answer["edges"][i:i + 4]
            self.edges.setdefault(start, []).append((low, high, end))
        for i in range(0, len(answer["jumps"]), 2):
            self.jumps.setdefault(answer["jumps"][i], []).append(answer["jumps"][i + 1])

    def reach(self, states: set) -> set:
        reached, found = set(states), list(states)
        while found:
            for state in self.jumps.get(found.pop(), ()):
                if state not in reached:
                    reached.add(state)
                    found.append(state)
        return reached

    def step(self, states: set, byte: int) -> set:
        return self.reach({end for state in states for low, high, end in self.edges.get(state, ()) if low <= byte <= high})

    def takes(self, text: bytes) -> bool:
        states = self.reach({0})
        for byte in text:
            states = self.step(states, byte)
        return self.accept in states

    def sample(self, rng: random.Random) -> bytes:
        """A text that it takes, at random; empty where none was found within some hundred bytes."""
        states, text = self.reach({0}), b""
        while len(text) < 400:
            edges = [edge for state in sorted(states) for edge in self.edges.get(state, ())]
            if self.accept in states and (not edges or rng.random() < 0.3):
                return text
            low, high, _ = rng.choice(edges)
            text += bytes([rng.randint(low, high)])
            states = self.step(states, text[-1])
        return b""
