"""One rank of test_pt_model.py: its track's loss and gradients, of the model and tokens in a folder, written there."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from pt_model import ParallelTrack  # noqa: E402

folder = Path(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo")
model = ParallelTrack.load_ptrt(folder / "model.h5", dist.group.WORLD)
tokens = torch.load(folder / "tokens.pt")
loss = model.loss(tokens, balance=0.1)
loss.backward()
gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
generated = model.generate(tokens[0, :9].tolist(), 8)
torch.save({"loss": loss.item(), "gradients": gradients, "generated": generated}, folder / f"rank{dist.get_rank()}.pt")
model.save_ptrt(folder / "saved.h5")
dist.barrier()
dist.destroy_process_group()
