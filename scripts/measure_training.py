"""How fast a preset trains: samples a second of forward, backward and optimizer, without data loading.

.venv/bin/python scripts/measure_training.py [--preset nano] [--threads 2] [--batch-size 32] [--passes 10] [--compile]

Printed are the best pass on the clock, and the best by processor time, which other processes disturb less: samples a second that
`threads` processors would reach if each did its part without waiting for the others.
"""

from __future__ import annotations

import argparse
import time

import torch

from bitvla_ros.model import build
from bitvla_ros.model.tokenizer import tokenizer_of
from bitvla_ros.policy.prompt import Prompt
from bitvla_ros.training.objective import Batch, oft_loss
from bitvla_ros.training.trainer import compile_layers

INSTRUCTION = "pick up the red block and place it in the basket"
CAMERAS = 2

parser = argparse.ArgumentParser()
parser.add_argument("--preset", default="nano")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--passes", type=int, default=10)
parser.add_argument("--compile", action="store_true")
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)

model = build(arguments.preset).train()
if arguments.compile:
    compile_layers(model)
config, batch_size = model.config, arguments.batch_size
prompt = Prompt(tokenizer_of(arguments.preset), image_tokens=config.vision.num_patches, cameras=CAMERAS)
ids = torch.tensor(prompt(INSTRUCTION)).expand(batch_size, -1)
size = config.vision.image_size
batch = Batch(
    pixel_values=torch.rand(batch_size, CAMERAS, 3, size, size) * 2 - 1,
    input_ids=ids,
    prompt_lengths=torch.full((batch_size,), ids.shape[1]),  # as in a batch of instructions of several lengths: with a mask
    proprio=torch.rand(batch_size, 8) * 2 - 1,
    actions=torch.rand(batch_size, config.chunk, config.action_dim) * 2 - 1,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
parameters = sum(parameter.numel() for parameter in model.parameters())
tokens = ids.shape[1] + config.action_tokens + 1
print(f"{arguments.preset}: {parameters / 1e6:.2f} M parameters, {tokens} tokens, {arguments.threads} threads")

for dtype in (torch.float32, torch.bfloat16):
    clock, processor = [], []
    for _ in range(arguments.passes + 1):
        began, used = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = oft_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.append(time.perf_counter() - began)
        processor.append((time.process_time() - used) / arguments.threads)
    print(f"  {dtype}: {batch_size / min(clock[1:]):.1f} samples/s on the clock, {batch_size / min(processor[1:]):.1f} by processor time")
