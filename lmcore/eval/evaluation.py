"""An evaluation, as a story: open, compare with simple compressors, score, draw samples, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmcore.data.decoding import Decoder
from lmcore.data.encoding import Encoder
from lmcore.data.tokens import TokenDataset
from lmcore.errors import ConfigError
from lmcore.eval import baselines
from lmcore.eval.generate import DividedGenerator, Generator
from lmcore.eval.held_out import HeldOut
from lmcore.eval.job import EvaluationJob
from lmcore.eval.perplexity import SlidingWindows, score_text
from lmcore.eval.scorer import DividedScorer, Scorer, WholeScorer
from lmcore.eval.set_scores import ScoredSet, Scoring, read_set
from lmcore.model.io import SavedModel, load_model
from lmcore.model.manifest import unverified
from lmcore.parallel.divided import DividedModel
from lmcore.parallel.mesh import World, make_layout
from lmcore.progress import Paced
from lmcore.run_directory import EventLog
from lmcore.store import MANIFEST, write_atomically
from lmcore.units import bits_per_byte
from lmcore.verify import verify_inputs

SAMPLES_FILE = "samples.json"
SET_SAMPLES_FILE = "set-samples.json"
# zstd -19 makes some 3 MB/s, twice, while the other processes wait: the first documents must do.
BASELINE_BYTES = 64_000_000


class Evaluation:
    """One evaluation. Each process scores its share of the text, alone or together with others.

    Args:
        job: What to measure, on what.
        run_dir: Its run directory.
        world: This process among its peers.
        stop_requested: Asked after each batch and sample; when a process says yes, all stop.

    Raises:
        CheckpointError: the model is missing or damaged.
        ConfigError: the windows are longer than the model is made for.
        DataError: the tokens or the tokenizer are missing or damaged, or do not fit each other; or an
            evaluation set cannot be read.
    """

    def __init__(
        self, job: EvaluationJob, run_dir: Path, world: World, stop_requested: Callable[[], bool]
    ) -> None:
        self.job, self.config, self.run_dir, self.world = job, job.evaluation, run_dir, world
        self.stop_requested = stop_requested
        self._verify()
        self.decoder = Decoder(Path(job.tokenizer))
        self.text = HeldOut(Path(job.tokens) / "validation", self.decoder, self.config.max_bytes)
        self.windows = SlidingWindows(self.text.num_tokens, job.seq_len, self.config.stride_tokens)
        self._open_model()
        self.sets = self._read_sets()
        self.set_samples: dict[str, list[dict[str, Any]]] = {}
        self.events = EventLog(run_dir, enabled=world.is_main)

    def _verify(self) -> None:
        used = [(Path(self.job.tokens), ("validation",)), (Path(self.job.tokenizer), ())]
        seconds = self.job.launch.verify_seconds
        verified = self.world.from_main(lambda: verify_inputs(used, self.run_dir, seconds))
        for text in verified.notes():
            self._say(text)

    def _open_model(self) -> None:
        """Divide the model as the job says, or read all of it."""
        if not (Path(self.job.model) / MANIFEST).is_file():
            self._say(f"note: {unverified(Path(self.job.model))}")
        path, tokenizer, parallel = Path(self.job.model), Path(self.job.tokenizer), self.job.parallel
        self.scorer: Scorer
        self.sharing = 1  # processes that have the same losses
        if parallel is None or not parallel.is_sharded:
            model = load_model(path, self.world.device)
            self.scorer = WholeScorer(model, self.world.rank, self.world.size)
            self.generator = Generator(model, tokenizer, self.job.seq_len)
            longest = model.config.max_seq_len
        else:
            saved = SavedModel(path)
            layout = make_layout(parallel, self.world)
            divided = DividedModel(saved.config, saved.vocab_size, layout, "fp32", saved)
            divided.train(False)
            self.scorer = scorer = DividedScorer(divided)
            self.sharing = scorer.sharing
            self.generator = DividedGenerator(scorer, tokenizer, self.job.seq_len)
            longest = saved.config.max_seq_len
        if self.job.seq_len > longest:
            raise ConfigError(
                "the windows are longer than the model is made for",
                expected=f"at most {longest} tokens",
                found=f"{self.job.seq_len}",
            )

    def run(self) -> dict[str, Any]:
        """Measure, and return the result; only the main process's is whole."""
        started = time.time()
        self._say(
            f"{self.text.num_documents:,} documents, {self.text.num_bytes:,} bytes, {self.text.num_tokens:,} "
            f"tokens, {self.world.size} process(es) on {self.world.device.type}"
        )
        simple = self._baselines() if self.world.is_main else {}
        self.world.wait_for_main()  # so that the speed is that of scoring alone
        scoring = time.perf_counter()
        loss_sum, stops = self._score()
        seconds = time.perf_counter() - scoring
        sets: dict[str, Any] = {}
        for one in self.sets:
            if not stops:  # the same on all processes
                sets[one.name], stops = self._score_set(one)
        if not stops and (self.world.is_main or self.generator.is_divided):
            self._samples()
        self.world.wait_for_main()
        (stops,) = self.world.add_up([stops + self.stop_requested()])
        self.events.close()
        if stops:
            return {"status": "preempted", "seconds": time.time() - started}
        result = {
            "status": "completed",
            "bits_per_byte": bits_per_byte(loss_sum, self.text.num_bytes),
            **simple,
            "loss": loss_sum / self.text.num_tokens,
            "num_tokens": self.text.num_tokens,
            "num_bytes": self.text.num_bytes,
            "num_documents": self.text.num_documents,
            **({"sets": sets} if sets else {}),
            "tokens_per_second": self.text.num_tokens / seconds,
            "seconds": time.time() - started,
        }
        if self.world.is_main:  # the others know no baselines
            self._say(_summary(result))
        return result

    def _read_sets(self) -> list[ScoredSet]:
        if not self.config.sets:
            return []
        encoder = Encoder(Path(self.job.tokenizer))
        return [read_set(wanted, self.job.set_files, encoder) for wanted in self.config.sets]

    def _baselines(self) -> dict[str, float]:
        documents = self.text.documents(BASELINE_BYTES)
        paced = Paced(self._progress, "compress for comparison", 3, "methods")
        values = {"zstd_bits_per_byte": baselines.zstd_bits_per_byte(documents)}
        paced.advance(1)
        values["zstd_per_document_bits_per_byte"] = baselines.zstd_per_document_bits_per_byte(documents)
        paced.advance(1)
        counts = baselines.count_bigrams(TokenDataset(Path(self.job.tokens) / "train"), self.decoder)
        values["bigram_bits_per_byte"] = baselines.bigram_bits_per_byte(documents, counts)
        paced.finish()
        return {**values, "baseline_bytes": sum(map(len, documents))}

    def _score(self) -> tuple[float, float]:
        """Return the summed loss (nats) of all processes, and how many of them were asked to stop."""
        paced, on_scored = self._follow("score text", self.text.num_tokens)
        loss_sum = score_text(
            self.scorer,
            self.text.stream,
            self.windows,
            batch_size=self.config.micro_batch_size,
            document_mask=self.job.document_mask,
            on_scored=on_scored,
        )
        loss_sum, stops = self.world.add_up([loss_sum, float(self.stop_requested())])
        paced.finish()
        return loss_sum / self.sharing, stops

    def _score_set(self, one: ScoredSet) -> tuple[dict[str, Any], float]:
        """Return the figures of a set, and how many processes were asked to stop."""
        paced, on_scored = self._follow(f"score {one.name}", one.num_tokens)
        how = Scoring(
            seq_len=self.job.seq_len,
            stride=self.config.stride_tokens,
            batch_size=self.config.micro_batch_size,
            document_mask=self.job.document_mask,
        )
        found = one.losses(self.scorer, how, on_scored)
        *sums, stops = self.world.add_up([*found, float(self.stop_requested())])
        losses = [total / self.sharing for total in sums]
        paced.finish()
        if stops:
            return {}, stops
        self.set_samples[one.name] = one.samples(losses)
        return one.result(losses), stops

    def _follow(self, label: str, num_tokens: int) -> tuple[Paced, Callable[[int], bool]]:
        """Progress over ``num_tokens``, and what is told of each batch and says whether to stop."""
        paced = Paced(self._progress, label, num_tokens, "tokens")
        left = num_tokens

        def on_scored(num_scored: int) -> bool:
            nonlocal left
            # The others are about as far as we are.
            step = min(num_scored * self.scorer.world_size, left)
            left -= step
            paced.advance(step)
            return self.stop_requested()

        return paced, on_scored

    def _samples(self) -> None:
        prompts = self.config.prompts
        paced = Paced(self._progress, "draw samples", len(prompts), "samples")
        samples = []
        for number, prompt in enumerate(prompts, start=1):
            stop = self.stop_requested()
            if self.scorer.agree(stop) if self.generator.is_divided else stop:
                return
            text = self.generator.text(prompt, self.config.sampling)
            samples.append({"prompt": prompt, "text": text})
            self._say(f"--- sample {number} of {len(prompts)} ---\n{prompt}{text}")
            paced.advance(1)
        paced.finish()
        if not self.world.is_main:
            return
        write_atomically(self.run_dir / SAMPLES_FILE, json.dumps(samples, indent=1) + "\n")
        if self.set_samples:
            write_atomically(self.run_dir / SET_SAMPLES_FILE, json.dumps(self.set_samples, indent=1) + "\n")

    def _progress(self, label: str, done: float, total: float, unit: str) -> None:
        self.events.write("progress", label=label, done=done, total=total, unit=unit)

    def _say(self, text: str) -> None:
        if self.world.is_main:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def _summary(result: dict[str, Any]) -> str:
    return (
        f"bits per byte {result['bits_per_byte']:.4f} (zstd -19 {result['zstd_bits_per_byte']:.4f}, "
        f"document by document {result['zstd_per_document_bits_per_byte']:.4f}, "
        f"byte bigrams {result['bigram_bits_per_byte']:.4f}), loss {result['loss']:.4f}, "
        f"{result['tokens_per_second']:,.0f} tokens/s"
        + "".join(f"\n{name}: {_figure(figures)}" for name, figures in result.get("sets", {}).items())
    )


def _figure(figures: dict[str, Any]) -> str:
    if figures["kind"] == "text":
        return f"bits per byte {figures['bits_per_byte']:.4f}"
    return f"{figures['accuracy']:.4f} of {figures['num_pairs']:,} pairs right"
