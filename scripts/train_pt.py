#!/usr/bin/env python3
"""Trains a Parallel Track model on text files; one GPU, one CPU, or one rank a track under torchrun.

    scripts/train_pt.py TEXT... --config CONFIG.json --out RUN
    scripts/train_pt.py TEXT... --config CONFIG.json --out RUN --resume             continues from RUN/checkpoint.pt
    torchrun --nproc-per-node 8 scripts/train_pt.py TEXT... --config CONFIG.json --out RUN

RUN gets curve.csv and curve.svg (loss by step), checkpoint.pt, and at the end model.h5, which ptrt runs. AdamW, linear warm-up,
cosine decay, products in bfloat16, weights in float32. The batch of a step is a function of seed and step alone: a resumed
run takes the same batches as one that was not interrupted. docs/TRAIN.md has more. Needs torch, numpy, h5py; for the figure
matplotlib, for --tokenizer the tokenizers library.
"""

import csv
import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from convert.errors import BadInput, ConvertError, Parser, run
from convert.layout import Tokenizer
from convert.safetensors import load_object
from pt_model import ParallelTrack

COLUMNS = ("step", "tokens", "learning_rate", "train_loss", "held_out_loss", "seconds")


def arguments():
    parser = Parser(prog="train_pt.py", description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="files; the end of each is held out")
    parser.add_argument("--config", type=Path, required=True, metavar="CONFIG.json", help="docs/SPEC.md, The file")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for all results")
    parser.add_argument("--resume", action="store_true", help="continue from RUN/checkpoint.pt")
    parser.add_argument("--tokenizer", type=Path, metavar="tokenizer.json", help="instead of bytes")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="sequences a step")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, one after the other, to save memory")
    parser.add_argument("--context", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--min-lr", type=float, default=0.1, help="the last learning rate, as a share of --lr")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of matrices")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the loss that keeps experts equally busy")
    parser.add_argument("--held-out", type=float, default=0.05, help="share of each text that is not trained on")
    parser.add_argument("--eval-every", type=int, default=100, help="steps")
    parser.add_argument("--eval-batches", type=int, default=8)
    parser.add_argument("--save-every", type=int, default=500, help="steps")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="save a checkpoint after so many steps and end; --resume")
    parser.add_argument("--save-dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the matrices of model.h5")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of products in training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster steps after a slow first one")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if min(args.steps, args.batch, args.accumulate, args.context, args.eval_every, args.save_every) < 1:
        parser.error("steps, batch, accumulate, context, eval-every and save-every are at least 1")
    if args.batch % args.accumulate:
        parser.error("--accumulate must divide --batch")
    return args


def read_texts(args, config):
    """Token ids to train on and held-out ones. A text begins with bos and ends with eos, where the model has them."""
    encode = lambda text: list(text)
    if args.tokenizer:
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError:
            raise BadInput("--tokenizer needs the tokenizers library: pip install tokenizers") from None
        reader = Reader.from_file(str(args.tokenizer))
        encode = lambda text: reader.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
    first = [] if config["bos_token_id"] is None else [config["bos_token_id"]]
    train, held_out = [], []
    for path in args.texts:
        tokens = np.array([*first, *encode(path.read_bytes()), *config["eos_token_ids"][:1]], np.int32)
        if len(tokens) and tokens.max() >= config["vocab_size"]:
            raise BadInput(f"{path}: token {tokens.max()} is not below the model's vocab_size {config['vocab_size']}")
        cut = len(tokens) - int(len(tokens) * args.held_out)
        train.append(tokens[:cut])
        held_out.append(tokens[cut:])
    train, held_out = np.concatenate(train), np.concatenate(held_out)
    if min(len(train), len(held_out)) <= args.context:
        raise BadInput(f"too little text: {len(train)} tokens to train on, {len(held_out)} held out; both must exceed --context")
    return train, held_out


def windows(tokens, starts, length, device):
    return torch.from_numpy(np.stack([tokens[s:s + length + 1] for s in starts]).astype(np.int64)).to(device)


def batch_of(tokens, args, step, device):
    """The batch of a step: windows at random places."""
    rng = np.random.default_rng((args.seed, step))
    return windows(tokens, rng.integers(0, len(tokens) - args.context, args.batch), args.context, device)


def learning_rate(args, step):
    """Of the step with this number, from 0."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (args.min_lr + (1 - args.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def clip(model, limit):
    """Scales the gradient of the whole model, tracks of other ranks included, to a norm of at most limit."""
    square = {of_tracks: torch.zeros((), device=model.embedding.device) for of_tracks in (False, True)}
    for name, parameter in model.named_parameters():
        square["." in name] += parameter.grad.float().square().sum()
    if model.group is not None:
        dist.all_reduce(square[True], group=model.group)
    scale = (limit / (square[False] + square[True]).sqrt()).clamp(max=1)
    for parameter in model.parameters():
        parameter.grad.mul_(scale)


def make_optimizer(model, args):
    vectors = [p for name, p in model.named_parameters() if p.dim() - ("." in name) == 1]
    matrices = [p for name, p in model.named_parameters() if p.dim() - ("." in name) > 1]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=args.device.startswith("cuda"))


def save_checkpoint(path, model, optimizer, rows, step):
    """All tracks' weights and moments in one file, so that another number of ranks may continue."""
    moments = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        moments[name] = [model.gathered(name, state[key]) for key in ("exp_avg", "exp_avg_sq")]
    model_state = model.full_state()
    if model_state is not None:
        torch.save({"config": model.config, "step": step, "rows": rows, "model": model_state, "moments": moments}, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)


def load_checkpoint(path, model, optimizer):
    """Continues from a checkpoint: rows of the curve so far, and the steps done."""
    if not path.is_file():
        raise BadInput(f"{path}: no checkpoint to resume from")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever type torch's unpickler raises
        raise BadInput(f"{path}: no checkpoint that torch can load: {str(error).splitlines()[0]}") from None
    if saved["config"] != model.config:
        raise BadInput(f"{path}: was trained with another configuration")
    model.load_full_state(saved["model"])
    for name, parameter in model.named_parameters():
        own = [m[model.own] if "." in name else m for m in saved["moments"][name]]
        optimizer.state[parameter] = {"step": torch.tensor(float(saved["step"])).to(
            parameter.device if optimizer.defaults["fused"] else "cpu"),
            "exp_avg": own[0].to(parameter.device), "exp_avg_sq": own[1].to(parameter.device)}
    return saved["rows"], saved["step"]


@torch.no_grad()
def held_out_loss(model, autocast, tokens, args, device):
    """Over windows at equal distances."""
    starts = np.linspace(0, len(tokens) - args.context - 1, args.eval_batches * args.batch).astype(int)
    losses = []
    for part in np.split(starts, args.eval_batches):
        with autocast():
            losses.append(model.loss(windows(tokens, part, args.context, device)).item())
    return sum(losses) / len(losses)


def write_curve(folder, rows):
    with open(folder / "curve.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def draw_curve(folder, rows):
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for column in (3, 4):
        axes.plot([row[0] for row in rows], [row[column] for row in rows], label=COLUMNS[column].replace("_", " "))
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.legend()
    figure.savefig(folder / "curve.svg", bbox_inches="tight")
    pyplot.close(figure)


def train(model, args, train_tokens, held_out, device, first):
    """Whether all steps are done. first: whether this rank writes."""
    autocast = lambda: torch.autocast(device.type, torch.bfloat16) if args.dtype == "bfloat16" else nullcontext()
    if device.type == "cpu" and args.dtype == "bfloat16":  # where the fused attention's gradient is several times slower
        torch.backends.cuda.enable_flash_sdp(False)
    optimizer = make_optimizer(model, args)
    path = args.out / "checkpoint.pt"
    rows, done = load_checkpoint(path, model, optimizer) if args.resume else ([], 0)
    loss_of = torch.compile(model.loss) if args.compile else model.loss
    start, losses = time.monotonic() - (rows[-1][5] if rows else 0), []
    for step in range(done, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, step)
        for part in batch_of(train_tokens, args, step, device).chunk(args.accumulate):
            with autocast():
                loss = loss_of(part, args.balance) / args.accumulate
            loss.backward()
            losses.append(loss.detach())
        clip(model, args.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done, last = step + 1, step + 1 == args.steps
        if done % args.eval_every == 0 or last:
            mean = torch.stack(losses).mean().item() * args.accumulate
            losses = []
            rows.append([done, done * args.batch * args.context, learning_rate(args, step), round(mean, 5),
                         round(held_out_loss(model, autocast, held_out, args, device), 5), round(time.monotonic() - start, 1)])
            if not math.isfinite(mean):
                raise ConvertError(f"the loss is {mean} at step {done}: try a lower --lr")
            if first:
                print(" ".join(f"{name} {value:g}" for name, value in zip(COLUMNS, rows[-1])), flush=True)
                write_curve(args.out, rows)
        if done % args.save_every == 0 or last or done == args.stop_after:
            save_checkpoint(path, model, optimizer, rows, done)
        if done == args.stop_after:
            break
    if first:
        draw_curve(args.out, rows)
    return done == args.steps


def main():
    args = arguments()
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        values, device = load_object(args.config), torch.device(args.device)
        first = ranks == 1 or dist.get_rank() == 0
        torch.manual_seed(args.seed)
        try:
            model = ParallelTrack(values, dist.group.WORLD if ranks > 1 else None).to(device)
        except BadInput as error:
            raise BadInput(f"{args.config}: {error}") from None
        if args.context > model.config["max_context"]:
            raise BadInput(f"--context {args.context} exceeds max_context {model.config['max_context']} of {args.config}")
        train_tokens, held_out = read_texts(args, model.config)
        if first:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            count = sum(p.numel() * (ranks if "." in name else 1) for name, p in model.named_parameters())
            print(f"{count} parameters, {len(train_tokens)} tokens of text, {ranks} ranks, {device.type}, {args.dtype}", flush=True)
        if train(model, args, train_tokens, held_out, device, first):
            tokenizer = Tokenizer("huggingface", args.tokenizer.read_bytes()) if args.tokenizer else "bytes"
            model.save_ptrt(args.out / "model.h5", args.save_dtype, tokenizer)
        if ranks > 1:
            dist.barrier()  # nobody leaves while another still receives
    finally:
        if ranks > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    run("train_pt.py", main)
