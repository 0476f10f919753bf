"""What each way to save memory saves, and what it costs: bytes by torch's own tensors, processor seconds.

python tests/benchmarks/memory.py [--vocab 8192] [--width 256] [--layers 4]
"""

import argparse
import gc
import statistics
import time

import torch

from lmcore.config import ModelConfig, ParallelConfig
from lmcore.data.loader import Batch
from lmcore.model.transformer import initial_weight
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.train.loss import loss_sums
from lmcore.train.memory import TensorBytes

CPU = torch.device("cpu")
WAYS = {  # activation_checkpointing, loss_chunk_tokens
    "none, whole logits": ("none", 0),
    "none, chunks": ("none", None),
    "selective, chunks": ("selective", None),
    "full, chunks": ("full", None),
}


def make(options, checkpointing, chunk):
    config = ModelConfig(
        num_layers=options.layers,
        hidden_size=options.width,
        num_heads=options.width // 64,
        max_seq_len=options.seq_len,
        activation="swiglu",
        zero_init_projections=False,
    )
    return DividedModel(
        config,
        options.vocab,
        make_layout(ParallelConfig(dp_replicate=1), World(0, 1, CPU)),
        options.precision,
        lambda name, shape: initial_weight(name, shape, config, 0),
        checkpointing=checkpointing,
        loss_chunk_tokens=chunk,
    )


def main():
    parser = argparse.ArgumentParser()
    for name, value in (("layers", 4), ("width", 256), ("vocab", 8192), ("seq-len", 256), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokens = torch.randint(0, options.vocab, (options.batch, options.seq_len))
    models = {way: make(options, *settings) for way, settings in WAYS.items()}

    def criterion(logits, targets, shard):
        return loss_sums(logits, targets, shard, z_loss=False)[0] / tokens.numel()

    def step(model):
        for _, parameter in model.named_parameters():
            parameter.grad = None
        model.forward_backward(
            [Batch(tokens, tokens)],
            lambda logits, targets, shard: (
                loss_sums(logits, targets, shard, z_loss=False)[0] / tokens.numel()
            ),
        )

    peaks, seconds = {}, {way: [] for way in WAYS}
    for way, model in models.items():
        step(model)
        for _, parameter in model.named_parameters():
            parameter.grad = None
        gc.collect()
        with TensorBytes(CPU, [parameter for _, parameter in model.named_parameters()]) as tensors:
            weights = tensors.now
            step(model)
        peaks[way] = tensors.peak - 2 * weights
    for _ in range(options.rounds):
        for way, model in models.items():
            start = time.process_time()
            step(model)
            seconds[way].append(time.process_time() - start)
    print(f"weights {weights / 1e6:.0f} MB, their gradient as much; {vars(options)}")
    for way in WAYS:
        took = statistics.median(seconds[way])
        print(f"{way:20} {peaks[way] / 1e6:7.1f} MB beside them, {took:.3f} s of a processor")


if __name__ == "__main__":
    main()
