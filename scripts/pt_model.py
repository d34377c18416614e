"""The Parallel Track model of docs/SPEC.md as one plain PyTorch module: forward, loss, generate, model files.

    model = ParallelTrack(config)                    config: a dict, docs/SPEC.md "The file"
    model.loss(tokens).backward()                    tokens [batch, length + 1]
    model.save_ptrt("model.h5"); model = ParallelTrack.load_ptrt("model.h5")

Every weight has the tracks as its first dimension; a product of all tracks is one batched product. With a process group of
as many ranks as tracks (torchrun) each rank holds one track. Ranks then meet at the sync layers only, in one all-reduce there
and in one on the way back. Shared weights get the same gradient on every rank.

Shapes: T tracks of this process, B batch, n tokens of a sequence, d hidden_size.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

from convert.errors import BadInput
from convert.layout import layer_shapes
from convert.pt_config import NORM_NAMES, block_norms, check_config, shared_shapes
from convert.pt_math import activate, rms_norm, rotate, route, wide
from convert.pt_state import read_config, read_state, write_state
from convert.rope import rope_frequencies


class _Sum(torch.autograd.Function):
    """The sum over ranks of what each adds; every rank continues with the same sum, so the gradient passes as it is."""

    @staticmethod
    def forward(ctx, x, group):
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _Spread(torch.autograd.Function):
    """What all ranks hold alike and each uses for its track; the gradient is the sum over ranks."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class ParallelTrack(torch.nn.Module):

    def __init__(self, config, group=None):
        """group: a process group of as many ranks as tracks; without one, this process holds all tracks."""
        super().__init__()
        self.config, self.group = check_config(config), group
        c, tracks = self.config, self.config["tracks"]
        if group is not None and dist.get_world_size(group) != tracks:
            raise BadInput(f"{dist.get_world_size(group)} ranks cannot hold {tracks} tracks, one each")
        self.own = slice(0, tracks) if group is None else slice(dist.get_rank(group), dist.get_rank(group) + 1)

        def parameter(shape, name):
            if name[0] == "b" or name.endswith("norm"):
                return torch.full(shape, 0.0 if name[0] == "b" else 1.0)
            # Embeddings small, so that the first logits are; what adds to the residual stream less with depth.
            gain = 0.02 if name in ("embedding", "lm_head") else shape[-1] ** -0.5
            return torch.randn(shape) * gain / (math.sqrt(2 * c["layers"]) if name in ("wo", "w_down") else 1)

        def of_tracks(shapes):
            # Drawn for all tracks, so that a rank starts as its track does in a process that holds all.
            return torch.nn.ParameterDict({name.replace("/", "_"): torch.nn.Parameter(
                parameter((tracks, *shape), name.split("/")[-1])[self.own].clone()) for name, shape in shapes.items()})

        for name, shape in shared_shapes(c).items():
            self.register_parameter(name, torch.nn.Parameter(parameter(shape, name)))
        norms = {name: (c["hidden_size"],) for name in block_norms(c)}
        self.blocks = torch.nn.ModuleList([of_tracks(norms) for _ in c["sync_layers"]])
        self.layers = torch.nn.ModuleList([of_tracks(layer_shapes(c, i)) for i in range(c["layers"])])
        self.balance = []  # of each mixture, from the last forward pass

    def norm(self, place, name, x, weights):
        """The norm of that name where the model has it; x [T, tokens, d]."""
        if name not in weights:
            return x
        return rms_norm(x, weights[name][:, None], self.config["norm_eps"], place in self.config["pre_scale_norms"])

    def attention(self, x, i, batch, turns, seen, cache):
        """x [T, B * n, d]; seen: which keys a query sees, None for all before it; cache: K and V of earlier tokens."""
        c, w = self.config, self.layers[i]
        tracks, tokens, _ = x.shape

        def heads(name):  # [T, B, heads, n, head_dim]
            y = torch.bmm(x, w["w" + name].mT)
            y = y + w["b" + name][:, None] if "b" + name in w else y
            return y.view(tracks, batch, tokens // batch, -1, c["head_dim"]).transpose(2, 3)

        q, k, v = heads("q"), heads("k"), heads("v")
        steps = [lambda y, _: rotate(y, *turns)] if turns else []
        if c["qk_norm"]:
            steps.insert(len(steps) if c["qk_norm_order"] == "after_rope" else 0,
                         lambda y, name: rms_norm(y, w[name][:, None, None, None], c["norm_eps"]))
        for step in steps:
            q, k = step(q, "q_norm"), step(k, "k_norm")
        if cache is not None:
            if i in cache:
                k, v = torch.cat((cache[i][0], k), 3), torch.cat((cache[i][1], v), 3)
            cache[i] = k, v
        k, v = (y.repeat_interleave(c["heads"] // c["kv_heads"], 2) for y in (k, v))
        a = F.scaled_dot_product_attention(*(y.flatten(0, 1).to(v.dtype) for y in (q, k, v)), attn_mask=seen,
                                           is_causal=seen is None, scale=c["attention_scale"])
        a = torch.bmm(a.transpose(1, 2).reshape(tracks, tokens, -1), w["wo"].mT)
        return a + w["bo"][:, None] if "bo" in w else a

    def gated(self, x, gate, up, down):
        gate = activate(torch.bmm(x, gate.mT), self.config["ffn_activation"])
        return torch.bmm(gate * torch.bmm(x, up.mT), down.mT)

    def mixture(self, x, w):
        """Each token's top_k experts: the tokens of every expert side by side, padded, in one batched product."""
        moe = self.config["moe"]
        (tracks, tokens, _), experts, top_k = x.shape, moe["experts"], moe["top_k"]
        with torch.autocast(x.device.type, enabled=False):
            logits = torch.bmm(wide(x), w["router"].mT)
        share, chosen, chance = route(logits, moe)
        expert = (chosen + experts * torch.arange(tracks, device=x.device)[:, None, None]).flatten()
        count = expert.bincount(minlength=tracks * experts)
        order = expert.argsort(stable=True)
        expert, token = expert[order], order // top_k
        place = torch.arange(len(order), device=x.device) - (count.cumsum(0) - count)[expert]
        rows = x.new_zeros(tracks * experts, int(count.max()), x.shape[-1])
        rows[expert, place] = x.flatten(0, 1)[token]
        done = self.gated(rows, *(w["experts_" + name].flatten(0, 1) for name in ("w_gate", "w_up", "w_down")))
        y = wide(done[expert, place]) * share.flatten()[order][:, None]
        # The loss of Switch Transformers that keeps experts equally busy: 1 where they are.
        used = count.view(tracks, experts) / (tokens * top_k)
        self.balance.append(experts * (used * chance.mean(1)).sum(-1).mean())
        return torch.zeros_like(x.flatten(0, 1), dtype=y.dtype).index_add(0, token, y).view(x.shape)

    def layer(self, h, i, *how):
        w, attention, ffn = self.layers[i], *zip(*(NORM_NAMES[place] for place in ("pre", "output", "post")))
        a = self.attention(self.norm("pre", attention[0], h, w), i, *how)
        h = self.norm("post", attention[2], h + self.norm("output", attention[1], a, w), w)
        x = self.norm("pre", ffn[0], h, w)
        f = self.mixture(x, w) if "router" in w else self.gated(x, w["w_gate"], w["w_up"], w["w_down"])
        return self.norm("post", ffn[2], h + self.norm("output", ffn[1], f, w), w)

    def over_tracks(self, y):
        """The sum over all tracks of y [T, ...]."""
        y = wide(y).sum(0)
        return y if self.group is None else _Sum.apply(y, self.group)

    def hidden(self, tokens, cache=None):
        """What the head takes, [B, n, d]. cache: a dict that this model fills and reads, of the tokens before these."""
        c, (batch, length) = self.config, tokens.shape
        start = cache["length"] if cache else 0
        place = torch.arange(start + length, device=tokens.device)
        future = place > place[start:, None]
        past = place <= place[start:, None] - c["attention_window"]
        turns, x = {}, F.embedding(tokens.flatten(), self.embedding) * c["embedding_scale"]
        for local in {kind == "local_rope" for kind in c["attention_pattern"] if kind.endswith("_rope")}:
            frequency, factor = rope_frequencies(c, local)
            angle = place[start:, None].double() * torch.from_numpy(frequency).to(tokens.device)
            turns[local] = (angle.cos() * factor).to(x.dtype), (angle.sin() * factor).to(x.dtype)
        self.balance, first = [], 0
        for weights, last in zip(self.blocks, c["sync_layers"]):
            entry = x if self.group is None else _Spread.apply(x, self.group)
            h = entry.expand(self.own.stop - self.own.start, -1, -1)
            h = self.norm("dispatch", "dispatch_norm", h, weights)
            for i in range(first, last):
                kind = c["attention_pattern"][i % len(c["attention_pattern"])]
                local = kind.startswith("local")
                seen = ~(future | past) if local else ~future if start else None
                h = self.layer(h, i, batch, turns[local] if kind.endswith("_rope") else None, seen, cache)
            y, first = self.norm("combine", "combine_norm", h, weights), last
            if c["fusion"]["op"] == "delta_sum":
                x = x + self.over_tracks(y - entry)
            else:
                x = self.over_tracks(y) / (c["tracks"] if c["fusion"]["op"] == "mean" else 1)
        if cache is not None:
            cache["length"] = start + length
        return rms_norm(x, self.final_norm, c["norm_eps"]).view(batch, length, -1)

    def forward(self, tokens, cache=None):
        """Logits [B, n, vocab_size] of the token after each of tokens [B, n]."""
        return F.linear(self.hidden(tokens, cache), self.embedding if self.config["tie_embeddings"] else self.lm_head)

    def loss(self, tokens, balance=0.0):
        """The mean cross-entropy of tokens [B, n + 1] after the first; balance: the weight of the loss of mixtures."""
        logits = wide(self(tokens[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        if balance and self.balance:
            uneven = torch.stack(self.balance).mean()[None] * (self.own.stop - self.own.start) / self.config["tracks"]
            loss = loss + balance * self.over_tracks(uneven)
        return loss

    @torch.no_grad()
    def generate(self, tokens, max_tokens, temperature=0.0, generator=None):
        """The tokens after those of one sequence, a list: the likeliest ones, or drawn; until eos."""
        cache, new, device = {}, [], self.embedding.device
        while len(new) < max_tokens and not (new and new[-1] in self.config["eos_token_ids"]):
            logits = wide(self(torch.tensor([new[-1:] or tokens], device=device), cache))[0, -1]
            if temperature > 0:
                new.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)))
            else:
                new.append(int(logits.argmax()))
        return new

    def gathered(self, name, values):
        """A tensor like the parameter of that name, of all tracks, on the first rank; None on the others."""
        if self.group is None or "." not in name:  # tracks share what has no dot in its name
            return values if self.own.start == 0 else None
        parts = [torch.empty_like(values) for _ in range(self.config["tracks"])] if self.own.start == 0 else None
        dist.gather(values.contiguous(), parts, dst=dist.get_global_rank(self.group, 0), group=self.group)
        return torch.cat(parts) if parts else None

    def full_state(self):
        """The state dict of all tracks, on the first rank; None on the others."""
        state = {name: self.gathered(name, values.detach()) for name, values in self.named_parameters()}
        return state if self.own.start == 0 else None

    @torch.no_grad()
    def load_full_state(self, state):
        for name, values in self.named_parameters():
            values.copy_(state[name][self.own] if "." in name else state[name])

    def save_ptrt(self, path, dtype="float32", tokenizer=None, split=False):
        """Writes a model file; dtype: of matrices, vectors stay float32; split: one file a track beside it.

        tokenizer: "bytes" or a convert.layout.Tokenizer. In a group all ranks call this, and the first one writes.
        """
        state = self.full_state()
        if state is not None:
            state = {name: values.float().cpu().numpy() for name, values in state.items()}
            write_state(path, self.config, state, dtype, tokenizer, split)

    @classmethod
    @torch.no_grad()
    def load_ptrt(cls, path, group=None):
        """The model of a file with matrices of float32, bfloat16 or float16, in rows."""
        model = cls(read_config(path), group)
        parameters = dict(model.named_parameters())
        for name, values in read_state(path, model.own):
            parameters[name].copy_(torch.from_numpy(values))
        return model
