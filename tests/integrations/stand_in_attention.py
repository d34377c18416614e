"""Attention with a KV cache, as an engine has it, in the plainest PyTorch: what ptrt_torch's models are tested around.

A step runs tokens of several sequences, side by side; each sequence has a cache of K and V a layer.
"""

import torch
from torch._dynamo.testing import CompileCounterWithBackend


class Step:
    """Which rows of a step belong to which sequence; shared by the layers of a model."""

    def __init__(self):
        self.rows: list[tuple[str, int]] = []  # of each sequence in this step: its name, and how many rows

    def positions(self, cache: dict) -> torch.Tensor:
        places = []
        for name, count in self.rows:
            start = cache[name][0].shape[0] if name in cache else 0
            places += range(start, start + count)
        return torch.tensor(places)


class Attention(torch.nn.Module):
    """Causal grouped-query attention of one layer; q, k, v [n, heads * head_dim]."""

    def __init__(self, step: Step, layer: int, heads: int, kv_heads: int, head_dim: int, scale: float, window: int | None):
        super().__init__()
        self.step, self.layer, self.scale, self.window = step, layer, scale, window
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.cache: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, q, k, v):
        assert q.shape[-1] == self.heads * self.head_dim and k.shape == v.shape == (*q.shape[:-1], self.kv_heads * self.head_dim)
        out, first = [], 0
        for name, count in self.step.rows:
            rows = slice(first, first + count)
            out.append(self.sequence(name, *(x[rows].unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))))
            first += count
        assert first == len(q), "rows of no sequence"
        return torch.cat(out).flatten(1)

    def sequence(self, name: str, q, k, v):
        if name in self.cache:
            k, v = (torch.cat((old, new)) for old, new in zip(self.cache[name], (k, v)))
        self.cache[name] = k.clone(), v.clone()  # a compiled model uses their memory again
        place = torch.arange(len(k))
        query = place[len(k) - len(q):, None]
        seen = place <= query if self.window is None else (place <= query) & (place > query - self.window)
        k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
        scores = torch.einsum("qhc,khc->hqk", q, k) * self.scale
        return torch.einsum("hqk,khc->qhc", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


# As engines have it, attention is an operation of its own to torch.compile, found by the number of its layer.
LAYERS: list[Attention] = []


@torch.library.custom_op("ptrt_tests::attend", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, number: int) -> torch.Tensor:
    return LAYERS[number](q, k, v)


@attend.register_fake
def _(q, k, v, number):
    return q.new_empty(q.shape)


class Engine:
    """A model around stand-in attention: runs steps and gives log-probabilities."""

    def __init__(self, make_model):
        """make_model(attention) -> model, as FoldedModel takes attention."""
        self.step, self.layers = Step(), []

        def attention(*sizes):
            number = len(LAYERS)
            LAYERS.append(Attention(self.step, *sizes))
            self.layers.append(LAYERS[-1])
            return lambda q, k, v: attend(q, k, v, number)

        self.model = make_model(attention)
        self.forward = self.model

    def compile(self, backend: str) -> CompileCounterWithBackend:
        """Compiles the model as one graph for any number of tokens; gives the count of its graphs."""
        count = CompileCounterWithBackend(backend)
        self.forward = torch.compile(self.model, backend=count, fullgraph=True, dynamic=True)
        return count

    @torch.no_grad()
    def run(self, rows: dict[str, list[int]]) -> torch.Tensor:
        """The next tokens of some sequences -> the log-probabilities [rows, vocab_size] of what follows each."""
        self.step.rows = [(name, len(tokens)) for name, tokens in rows.items()]
        tokens = torch.tensor([token for part in rows.values() for token in part])
        hidden = self.forward(tokens, self.step.positions(self.layers[0].cache))
        logits = torch.nn.functional.linear(hidden, self.model.head_weight())
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def score(self, tokens: list[int], chunk: int | None = None, name: str = "text") -> torch.Tensor:
        """Log-probabilities [len(tokens), vocab_size], fed in chunks."""
        for layer in self.layers:
            layer.cache.pop(name, None)
        chunk = chunk or len(tokens)
        return torch.cat([self.run({name: tokens[at:at + chunk]}) for at in range(0, len(tokens), chunk)])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        new = [int(self.score(prompt)[-1].argmax())]
        while len(new) < count and new[-1] not in self.model.config["eos_token_ids"]:
            new.append(int(self.run({"text": new[-1:]})[-1].argmax()))
        return new
