#!/usr/bin/env python3
"""Trains the demo model: a small Parallel Track transformer that answers short questions.

Needs torch, numpy and h5py; for --compile a C++ compiler as well.

    python scripts/train_demo.py --compile           train, then write model, log and graded questions
    python scripts/train_demo.py --stages export     write them from the last checkpoint

Training has two stages. First a single track learns alone, at an eighth of the cost. Then every track
starts from a copy of it with its own noise, strong enough to spoil most answers. All tracks are then
trained together and meet at the sync layers as they do when served.

The model is scripts/pt_model.py, with a start and an optimizer of its own. Only the answers' tokens count in
the loss.

Output in examples/demo: demo.h5 (the model), train.log, heldout.jsonl, answers.jsonl, prompts.jsonl.
"""

import argparse
import json
import math
import os
import platform
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import demo_tasks
from pt_model import ParallelTrack

CONFIG = {
    "name": "pt-demo", "tracks": 8, "layers": 8, "sync_layers": [4, 8],
    "fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": False},
    "hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_size": 128,
    "vocab_size": 259, "max_context": 512, "norm_eps": 1e-5, "norm_placement": ["pre"], "qk_norm": False,
    "attention_pattern": ["global_rope"], "attention_window": 0, "rope_theta": 10000.0,
    "ffn_pattern": ["dense"], "moe": None,
    "tie_embeddings": True, "bos_token_id": 256, "eos_token_ids": [257],
}
BOS, EOS, PAD = 256, 257, 258
LENGTH = 36  # of every training row, padded: one shape, so that the compiled step is fast
MAX_REPLY = 7  # tokens of the longest answer with its end token
MAX_TOKENS = 16  # asked for in the graded requests; no answer is longer than 7 with its end token


MATRICES = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


def new_model(config):
    """A model that starts with a larger embedding, and larger matrices at the end of each sublayer, than usual."""
    model = ParallelTrack(config)
    with torch.no_grad():
        model.embedding.normal_(0, 0.25)
        for layer in model.layers:
            for name in ("wo", "w_down"):
                layer[name].normal_(0, 0.5 / math.sqrt(layer[name].shape[-1]))
    return model


def logits_at(model, tokens, positions, products=torch.float32):
    """Logits [len(positions), vocab] at the flat positions of tokens [batch, length]; products: type of those in layers."""
    # For such short sequences PyTorch's fused attention is several times slower.
    with torch.autocast("cpu", torch.bfloat16, enabled=products == torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        x = model.hidden(tokens)
    return x.flatten(0, 1)[positions] @ model.embedding.T


class Muon:
    """Momentum, then an orthogonal step: one singular value for all directions of each matrix.

    For groups of parameters [tracks, out, in] of one shape. The orthogonal factor comes from five Newton-Schulz
    iterations with the quintic of Jordan et al. (2024), to the precision of bfloat16, which is enough.
    """

    def __init__(self, groups, momentum=0.95, weight_decay=0.01):
        self.groups, self.momentum, self.weight_decay = groups, momentum, weight_decay
        self.buffers = [torch.zeros_like(torch.cat(list(group))) for group in groups]

    @torch.no_grad()
    def step(self, lr):
        for group, buffer in zip(self.groups, self.buffers):
            gradient = torch.cat([p.grad for p in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = torch.lerp(gradient, buffer, self.momentum).bfloat16()
            wide = update.shape[1] > update.shape[2]
            if wide:
                update = update.mT
            update = update / (update.float().norm(dim=(1, 2), keepdim=True) + 1e-12).bfloat16()
            for _ in range(5):
                square = torch.bmm(update, update.mT)
                square = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
                update = torch.baddbmm(update, square, update, beta=3.4445)
            if wide:
                update = update.mT
            scale = 0.2 * math.sqrt(max(update.shape[1:]))  # about the size of AdamW's updates
            for p, part in zip(group, update.float().split(len(group[0]))):
                p.mul_(1 - lr * self.weight_decay).add_(part, alpha=-lr * scale)


def encode(questions):
    """Tokens [batch, LENGTH], flat positions whose next token belongs to an answer, targets, question numbers.

    Positions are padded to MAX_REPLY a question; the target of padding is -1.
    """
    tokens, positions, targets, owners = [], [], [], []
    for i, (question, reply) in enumerate(questions):
        start = len(question)
        row = [BOS, *question.encode(), *reply.encode(), EOS]
        tokens.append(row[:-1] + [PAD] * (LENGTH + 1 - len(row)))
        positions += range(i * LENGTH + start, i * LENGTH + start + MAX_REPLY)
        targets += (row[start + 1:] + [-1] * MAX_REPLY)[:MAX_REPLY]
        owners += [i] * MAX_REPLY
    positions = torch.tensor(positions).clamp(max=len(questions) * LENGTH - 1)
    return torch.tensor(tokens), positions, torch.tensor(targets), torch.tensor(owners)


def bfloat16_state(state):
    """The weights as stored in the file: matrices and embedding rounded to bfloat16, norms in fp32."""
    return {name: w.detach() if "norm" in name else w.detach().bfloat16().float()
            for name, w in state.items()}


@torch.no_grad()
def evaluate(model, questions):
    """Share of right answers per task. Greedy decoding is right if each answer token is the likeliest."""
    right = {}
    for start in range(0, len(questions), 125):
        chunk = questions[start:start + 125]
        tokens, positions, targets, owners = encode([(q, a) for _, _, q, a in chunk])
        wrong = (logits_at(model, tokens, positions).argmax(-1) != targets) & (targets >= 0)
        bad = set(owners[wrong].tolist())
        for i, (_, task, _, _) in enumerate(chunk):
            right.setdefault(task, []).append(i not in bad)
    accuracy = {task: sum(flags) / len(flags) for task, flags in right.items()}
    accuracy["all"] = sum(map(sum, right.values())) / len(questions)
    return accuracy


def percentages(accuracy):
    return " ".join(f"{task} {100 * share:.1f}" for task, share in accuracy.items())


class Log:
    """Prints lines and appends them to a file."""

    def __init__(self, path, new):
        self.path = path
        if new:
            path.write_text("")

    def __call__(self, text):
        print(text, flush=True)
        with self.path.open("a") as file:
            file.write(text + "\n")


def schedule(step, progress, warmup):
    """The share of the learning rate: linear warmup, constant, then linear to zero from 40 %."""
    return min(1.0, (step + 1) / warmup, (1 - progress) / 0.6)


def train(config, state, minutes, checkpoint, args, log):
    """Trains from a state, or from random weights, for a given time; returns the trained state."""
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed + config["tracks"])
    graded = demo_tasks.graded_questions()
    graded_prompts = {question for _, _, question, _ in graded}
    model = new_model(config)
    exact = ParallelTrack(config)  # grades the rounded weights in fp32
    if state is not None:
        model.load_state_dict(state)
    count = sum(p.numel() for p in model.parameters())
    log(f"tracks {config['tracks']}: {count} parameters, {minutes:g} minutes, batch {args.batch}, "
        f"learning rate {args.lr:g} (Muon) and {args.adam_lr:g} (AdamW), seed {args.seed}")
    muon = Muon([[layer[name] for layer in model.layers] for name in MATRICES])
    others = [p for name, p in model.named_parameters() if name.split(".")[-1] not in MATRICES]
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    forward = torch.compile(logits_at) if args.compile else logits_at
    start, loss_sum, losses, step, progress = time.time(), 0.0, 0, 0, 0.0
    next_log = next_evaluation = start
    while progress < 1:
        batch = []
        for _ in range(args.batch):
            _, _, question, reply = demo_tasks.draw_training_question(rng)
            assert question not in graded_prompts
            batch.append((question, reply))
        tokens, positions, targets, _ = encode(batch)
        loss = F.cross_entropy(forward(model, tokens, positions, torch.bfloat16), targets, ignore_index=-1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = schedule(step, progress, args.warmup)
        muon.step(args.lr * factor)
        for group in adam.param_groups:
            group["lr"] = args.adam_lr * factor
        adam.step()
        model.zero_grad(set_to_none=True)
        loss_sum, losses, step = loss_sum + loss.item(), losses + 1, step + 1
        now = time.time()
        progress = (now - start) / (60 * minutes)
        if now >= next_log or progress >= 1:
            line = (f"step {step} loss {loss_sum / losses:.4f} rate {factor:.3f} "
                    f"{step * args.batch / (now - start):.0f} questions/s {now - start:.0f} s")
            if now >= next_evaluation or progress >= 1:
                exact.load_state_dict(bfloat16_state(model.state_dict()))
                line += f" | held-out %: {percentages(evaluate(exact, graded))}"
                torch.save(model.state_dict(), checkpoint)
                next_evaluation = now + 120
            log(line)
            loss_sum, losses, next_log = 0.0, 0, now + 30
    log(f"tracks {config['tracks']}: {step} steps, {step * args.batch} questions, "
        f"{time.time() - start:.0f} s")
    return model.state_dict()


def widen(state, seed, noise):
    """The start of the PT model: each track is the single track with its own noise in every matrix.

    The noise has the given size relative to each matrix. Without it the tracks would have the same
    gradients and stay equal.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = {}
    for name, w in state.items():
        if "." in name:  # a weight [1, ...] of the track
            w = w.repeat(CONFIG["tracks"], *[1] * (w.dim() - 1))
            if "norm" not in name:
                deviation = noise * w.square().mean((1, 2), keepdim=True).sqrt()
                w = w + deviation * torch.randn(w.shape, generator=generator)
        wide[name] = w
    return wide


def write_questions(folder):
    """The graded requests, their answers, and a dozen of the requests to show."""
    graded = demo_tasks.graded_questions()

    def write(name, objects):
        (folder / name).write_text("".join(json.dumps(o) + "\n" for o in objects))

    requests = [{"id": i, "prompt": q, "max_tokens": MAX_TOKENS} for i, _, q, _ in graded]
    write("heldout.jsonl", requests)
    write("answers.jsonl", [{"id": i, "answer": a} for i, _, _, a in graded])
    by_task = {task: [r for r, g in zip(requests, graded) if g[1] == task] for task in demo_tasks.WORDINGS}
    # A long one of each wording: the wordings of a task take turns.
    write("prompts.jsonl", [max(by_task[task][n + 2:40:2], key=lambda r: len(r["prompt"]))
                            for n in (0, 1) for task in by_task])


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=root / "examples" / "demo", help="folder for the results")
    parser.add_argument("--work", type=Path, default=root / "build" / "demo", help="folder for checkpoints")
    parser.add_argument("--single-minutes", type=float, default=12, help="training of the single track")
    parser.add_argument("--minutes", type=float, default=24, help="training of all tracks")
    parser.add_argument("--batch", type=int, default=64, help="questions a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate of the matrices")
    parser.add_argument("--adam-lr", type=float, default=3e-3, help="learning rate of embedding and norms")
    parser.add_argument("--noise", type=float, default=0.6, help="relative noise of each track at its start")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="faster steps by torch.compile")
    parser.add_argument("--stages", nargs="+", choices=("single", "tracks", "export"),
                        default=("single", "tracks", "export"),
                        help="each continues from the checkpoint of the one before")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    single, tracks = args.work / "single.pt", args.work / "tracks.pt"
    log = Log(args.out / "train.log", new="single" in args.stages)
    if set(args.stages) & {"single", "tracks"}:
        log(f"machine: {os.cpu_count()} cores {platform.machine()}, {args.threads} in use; "
            f"torch {torch.__version__.split('+')[0]}")
    if "single" in args.stages:
        log(f"config: {json.dumps(CONFIG)}")
        train({**CONFIG, "tracks": 1}, None, args.single_minutes, single, args, log)
    if "tracks" in args.stages:
        train(CONFIG, widen(torch.load(single), args.seed, args.noise), args.minutes, tracks, args, log)
    if "export" in args.stages:
        model = ParallelTrack(CONFIG)
        model.load_state_dict(bfloat16_state(torch.load(tracks)))
        model.save_ptrt(args.out / "demo.h5", "bfloat16", tokenizer="bytes")
        write_questions(args.out)
        accuracy = evaluate(model, demo_tasks.graded_questions())
        log(f"exported {sum(p.numel() for p in model.parameters())} parameters, matrices as bfloat16; "
            f"held-out %: {percentages(accuracy)}")


if __name__ == "__main__":
    main()
