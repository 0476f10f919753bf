"""Training on one CUDA device; run with ``pytest tests/gpu`` on a machine that has one."""

import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmcore.config import ModelConfig, OptimizerConfig, TrainConfig
from lmcore.data.loader import Batch
from lmcore.data.prefetch import Prefetcher
from lmcore.data.token_writer import TokenWriter
from lmcore.errors import ConfigError
from lmcore.model.attention import Attention, Context, KVCache, attention_mask
from lmcore.model.float8 import Float8Linear
from lmcore.model.transformer import Transformer
from lmcore.parallel.mesh import World
from lmcore.train.energy import open_gpu
from lmcore.train.job import TrainJob
from lmcore.train.optim import Optimizers
from lmcore.train.peaks import measure_peak, vendor_peak
from lmcore.train.precision import FP8_CAPABILITY
from lmcore.train.trace import exposed_communication, largest_operators, read_trace
from lmcore.train.trainer import Trainer

VOCAB = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        steps = rng.integers(1, 4, 40_000)
        tokens = (np.cumsum(steps) % (VOCAB - 1) + 1).astype(np.int32)
        tokens[99::100] = 0
        with TokenWriter(root / split, eos_id=0, vocab_size=VOCAB) as writer:
            names = [f"{split}-{i}" for i in range(400)]
            writer.add(names, names, tokens, np.full(400, 100), 120_000)
    vocabulary = {f"t{i}": i for i in range(VOCAB)}
    (root / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return root


def make_trainer(corpus, run_dir, device="cuda", model=(), **settings):
    job = TrainJob(
        model=ModelConfig(num_layers=2, hidden_size=64, num_heads=2, max_seq_len=64, **dict(model)),
        train=TrainConfig(
            **{
                "steps": 30,
                "seq_len": 64,
                "global_batch_tokens": 1024,
                "micro_batch_size": 8,
                "parallel": {"dp_replicate": 1, "dp_shard": 1},
                **settings,
            }
        ),
        tokens=str(corpus),
        tokenizer=str(corpus),
    )
    job.write(run_dir)
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    return Trainer(job, run_dir, World(0, 1, place), lambda: False)


def train(corpus, run_dir, device, **settings):
    result = make_trainer(corpus, run_dir, device, **settings).run()
    rows = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    return result, [row["values"]["train/loss"] for row in rows if row["kind"] == "step"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_a_gpu_trains_like_a_cpu(corpus, tmp_path, precision, document_mask):
    _, expected = train(corpus, tmp_path / "cpu", "cpu", document_mask=document_mask)
    result, found = train(corpus, tmp_path / "gpu", "cuda", document_mask=document_mask, precision=precision)
    assert result["device"] == "cuda"
    # Rounding grows from step to step, more so in 16 bits; the first steps are the telling ones.
    assert found[:5] == pytest.approx(expected[:5], rel=1e-3 if precision == "fp32" else 2e-2)
    assert found[-1] < found[0] - 0.5


def test_a_gpu_in_fp8_trains_like_a_cpu_in_fp32(corpus, tmp_path):
    if torch.cuda.get_device_capability() < FP8_CAPABILITY:
        with pytest.raises(ConfigError, match=r"train\.precision=bf16"):
            train(corpus, tmp_path / "refused", "cuda", precision="fp8")
        pytest.skip("a GPU without products of eight bits: it was refused, as it should be")
    _, expected = train(corpus, tmp_path / "cpu", "cpu")
    _, on_cpu = train(corpus, tmp_path / "cpu-fp8", "cpu", precision="fp8")
    result, found = train(corpus, tmp_path / "gpu", "cuda", precision="fp8")
    assert result["device"] == "cuda"
    assert found[:5] == pytest.approx(expected[:5], rel=2e-2)
    assert found[:5] == pytest.approx(on_cpu[:5], rel=2e-2)
    assert found[-1] < found[0] - 0.5


@pytest.mark.parametrize("rows", [16, 37])  # tokens need not be a multiple of 16
def test_a_layer_in_fp8_is_near_the_same_in_fp32(rows):
    if torch.cuda.get_device_capability() < FP8_CAPABILITY:
        pytest.skip("a GPU without products of eight bits")
    plain, eight = torch.nn.Linear(96, 48, device="cuda"), torch.nn.Linear(96, 48, device="cuda")
    eight.load_state_dict(plain.state_dict())
    eight.__class__ = Float8Linear
    x = torch.randn(rows, 96, device="cuda")
    results = []
    for layer in (plain, eight):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad, layer.weight.grad))
    for expected, found in zip(*results, strict=True):
        assert (found.float() - expected).norm() < 0.12 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_document_mask_and_shared_heads_need_no_scores_of_all_pairs(dtype):
    config = ModelConfig(num_layers=1, hidden_size=64, num_heads=4, num_kv_heads=2, max_seq_len=64)
    attention = Attention(config, 0).to("cuda", dtype)
    documents = torch.arange(64, device="cuda")[None] // 20
    mask = attention_mask(64, 0, documents, torch.device("cuda"))
    x = torch.randn(1, 64, 64, device="cuda", dtype=dtype, requires_grad=True)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        attention(x, Context(None, mask, causal=False)).sum().backward()


def test_a_gpu_goes_on_from_a_checkpoint(corpus, tmp_path):
    short = {"schedule": {"name": "wsd", "warmup_steps": 2, "decay_fraction": 0}}
    train(corpus, tmp_path / "run", "cuda", steps=10, **short)
    _, resumed = train(corpus, tmp_path / "run", "cuda", steps=20, **short)
    _, straight = train(corpus, tmp_path / "straight", "cuda", steps=20, **short)
    assert resumed[-10:] == pytest.approx(straight[-10:], rel=1e-3)


def test_decoding_with_a_cache_equals_the_full_forward_pass():
    config = ModelConfig(num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2, max_seq_len=64)
    model = Transformer(config, VOCAB)
    model.init_weights(0)
    model.to("cuda").eval()
    tokens = torch.randint(0, VOCAB, (3, 40), device="cuda")
    cache = KVCache(config, 3, 40, "cuda")
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in (tokens[:, :30], *tokens[:, 30:].split(1, dim=1))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-3, rtol=1e-3)


def test_no_step_waits_for_the_gpu(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path / "run", precision="bf16", ema_decay=0.9, z_loss=1e-3)
    for step in range(3):
        trainer.steps.launch(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        readings = [trainer.steps.launch(step) for step in range(3, 8)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.batches.close()
    assert [reading.facts.step for reading in readings] == [4, 5, 6, 7, 8]
    assert all(reading.values()["loss"] > 0 and reading.seconds > 0 for reading in readings)


@pytest.mark.parametrize("name", ["math", "efficient", "flash", "cudnn", "flex", "auto"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_attention_is_the_same_by_every_kernel(corpus, tmp_path, name, document_mask):
    settings = {"document_mask": document_mask, "precision": "bf16", "steps": 12}
    _, expected = train(corpus, tmp_path / "sdpa", "cuda", attention="sdpa", **settings)
    try:
        _, found = train(corpus, tmp_path / name, "cuda", attention=name, **settings)
    except ConfigError as error:
        pytest.skip(str(error))  # a kernel that this GPU, or a mask, has not
    assert found[:5] == pytest.approx(expected[:5], rel=1e-2)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("grad_accum_steps", [1, 2, 4])
def test_compiled_blocks_train_the_same(corpus, tmp_path, cuda_graphs, document_mask, grad_accum_steps):
    settings = {
        "document_mask": document_mask,
        "steps": 12,
        "micro_batch_size": 16 // grad_accum_steps,
        "validate_every": 5,
    }
    _, expected = train(corpus, tmp_path / "eager", "cuda", compile="off", **settings)
    _, found = train(
        corpus, tmp_path / "compiled", "cuda", compile="blocks", cuda_graphs=cuda_graphs, **settings
    )
    assert found[:5] == pytest.approx(expected[:5], rel=1e-3)


@pytest.mark.parametrize("compiling", ["off", "blocks"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpoints_with_documents_train_the_same(corpus, tmp_path, mode, compiling):
    settings = {"document_mask": True, "steps": 12}
    _, expected = train(corpus, tmp_path / "plain", "cuda", compile="off", **settings)
    _, found = train(
        corpus, tmp_path / "saving", "cuda", compile=compiling, activation_checkpointing=mode, **settings
    )
    assert found[:5] == pytest.approx(expected[:5], rel=1e-3)


def test_added_rows_of_the_vocabulary_change_nothing(corpus, tmp_path):
    _, expected = train(corpus, tmp_path / "plain", "cuda", steps=12)
    _, found = train(corpus, tmp_path / "added", "cuda", model={"vocab_multiple": 128}, steps=12)
    assert found[:5] == pytest.approx(expected[:5], rel=1e-3)


SAVING = {
    "selective": {"activation_checkpointing": "selective"},
    "full": {"activation_checkpointing": "full"},
    "chunks": {"loss_chunk_tokens": 100},
    "offloaded adamw": {"optimizer": {"name": "adamw", "offload": True}},
    "offloaded muon": {"optimizer": {"name": "muon", "offload": True}},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("way", SAVING)
def test_ways_to_save_memory_change_nothing_on_a_gpu(corpus, tmp_path, way, precision, monkeypatch):
    monkeypatch.setattr("lmcore.train.offload.RUN_ELEMENTS", 10_000)  # several runs, on streams of their own
    settings = {"steps": 10, "precision": precision, "compile": "off"}
    plain = (
        {"optimizer": {**SAVING[way]["optimizer"], "offload": False}} if "optimizer" in SAVING[way] else {}
    )
    _, expected = train(corpus, tmp_path / "plain", "cuda", **settings, **plain)
    _, found = train(corpus, tmp_path / "saving", "cuda", **settings, **SAVING[way])
    rel = {"fp32": 1e-5, "bf16": 5e-3, "fp16": 5e-3}[precision] if way == "chunks" else 1e-6
    assert found == pytest.approx(expected, rel=rel)


def test_offloaded_state_lies_in_pinned_memory():
    model = Transformer(ModelConfig(num_layers=2, hidden_size=64, num_heads=2, max_seq_len=64), VOCAB)
    model.init_weights(0)
    model.to("cuda")
    optimizers = Optimizers(
        model.named_parameters(), OptimizerConfig(name="adamw", offload=True), torch.float32
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(1.0)
    state = optimizers.state()
    assert all(slot.is_pinned() for slot in state.values() if slot.ndim)
    assert all(slot.any() for name, slot in state.items() if name.endswith("exp_avg"))


def test_three_runs_of_offloaded_state_are_on_the_device_at_most(monkeypatch):
    size, count = 1 << 20, 24
    monkeypatch.setattr("lmcore.train.offload.RUN_ELEMENTS", size)
    parameters = [torch.nn.Parameter(torch.ones(1024, 1024, device="cuda")) for _ in range(count)]
    names = [(f"blocks.{index}.mlp.up.weight", p) for index, p in enumerate(parameters)]
    optimizers = Optimizers(names, OptimizerConfig(name="adamw", offload=True), torch.float32)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(1.0)  # which creates the state
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    torch.cuda._sleep(10**8)  # the host is far ahead
    for _ in range(3):
        optimizers.step(1.0)
    torch.cuda.synchronize()
    # Memory that waits for a stream counts as active.
    assert torch.cuda.memory_stats()["active_bytes.all.peak"] - before <= 3 * 2 * 4 * size + (1 << 20)


def test_the_micro_batch_that_fits_is_found_by_trial(corpus, tmp_path, monkeypatch):
    _, expected = train(corpus, tmp_path / "told", "cuda", steps=3)
    result, found = train(corpus, tmp_path / "found", "cuda", steps=3, micro_batch_size=0)
    assert result["micro_batch_size"] == 16  # all there is
    assert found == pytest.approx(expected, rel=1e-4)
    # Room for the weights and little else: a part of the batch at a time.
    monkeypatch.setattr("lmcore.train.fitting.free_memory", lambda device: 12_000_000.0)
    result, found = train(corpus, tmp_path / "little", "cuda", steps=3, micro_batch_size=0)
    assert 1 <= result["micro_batch_size"] < 16
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_gpu_says_what_its_steps_cost(corpus, tmp_path):
    size = {"seq_len": 64, "global_batch_tokens": 8192, "micro_batch_size": 64, "steps": 60}
    costs = {"every_steps": 20, "price_per_device_hour": 2.0, "grams_co2_per_kwh": 400}
    profile = {"start_step": 30, "steps": 2}
    result, _ = train(
        corpus, tmp_path / "run", "cuda", precision="bf16", costs=costs, profile=profile, **size
    )
    lines = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    start, *rows = [row for row in lines if row["kind"] == "costs"]
    assert start["steps"] == 0 < start["seconds"]
    assert [row["step"] for row in rows] == [20, 40, 60]
    for row in rows:
        found = {name: value for name, value in row["values"].items() if name.startswith("perf/share/")}
        assert sum(found.values()) == pytest.approx(1)
        assert found["perf/share/forward"] > 0 < found["perf/share/backward"]
        assert row["values"]["perf/peak_memory_bytes"] <= torch.cuda.max_memory_allocated()
        if row["energy"] != "not measured":
            assert 10 < row["values"]["energy/gpu_joules"] / row["seconds"] < 1500  # watts of one GPU
    assert 0 < result["mfu"] < 1
    assert result["peak_tflops"] > 1
    meter = open_gpu(torch.device("cuda", 0))
    assert (meter is None) == (result["costs"]["energy"] == "not measured")
    events = read_trace(tmp_path / "run" / "profile" / "rank0-steps30-31.json.gz")
    parts = exposed_communication(events)
    # Its kernels are launched by autograd's own thread, and are of the backward pass all the same.
    assert parts["backward"].seconds > parts["forward"].seconds / 2
    assert largest_operators(events, 1)[0][1] > 0


@pytest.mark.parametrize("device", [torch.device("cuda"), torch.device("cuda", 0)])
def test_batches_are_read_ahead_for_a_gpu_with_a_number_or_without(device):
    class Steps:
        def num_targets(self, step):
            return step

        def micro_batches(self, step):
            yield Batch(torch.full((1, 3), step), torch.full((1, 3), step))

    batches = Prefetcher(Steps(), 5, 2, device)
    found = [batches.take(step).batches[0] for step in range(5)]
    batches.close()
    assert [int(batch.tokens[0, 0]) for batch in found] == [0, 1, 2, 3, 4]
    assert all(batch.tokens.is_pinned() for batch in found)


def test_a_gpu_is_measured_where_its_vendor_is_not_asked():
    device = torch.device("cuda", 0)
    peak = measure_peak(device, torch.bfloat16)
    told = vendor_peak(torch.cuda.get_device_name(device), "16-bit")
    assert told is None or 0.4 * told.flops < peak.flops < 1.05 * told.flops
