"""What a trained workdir scores on held-out text."""

import dataclasses
import json
import os

import numpy as np

from dsx import cost
from dsx.data import pipeline
from dsx.evals import text
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from dsx.training import pretraining
from dsx.training import restore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Scores of one checkpoint on one validation split.

  Attributes:
    step: optimizer steps that the model has taken.
    trained_tokens: tokens that it was trained on.
    data: what it was scored on.
    records: sequences scored.
    scores: by parameters, `raw` and, where the run keeps it, `average`.
    bigram_bits_per_byte: of a bigram model of the data, for comparison.
    notes: what else a person should know.
    layers: names of the layers with experts.
    load: float [batches, layers, E], tokens at each expert, by `raw`.
  """

  step: int
  trained_tokens: int
  data: pipeline.Data
  records: int
  scores: dict[str, text.TextScore]
  bigram_bits_per_byte: float | None
  notes: tuple[str, ...]
  layers: list[str]
  load: np.ndarray

  def to_json(self) -> str:
    """Everything but loads, as indented JSON."""
    fields = dataclasses.asdict(self)
    del fields["layers"], fields["load"]
    return json.dumps(fields, indent=1)

  def loads(self) -> str:
    """Loads of each batch, a line of JSON for each (`expert_loads.py`)."""
    rows = self.load.astype(int).tolist()
    lines = ({"kind": "load", "layers": self.layers, "load": x} for x in rows)
    return "".join(json.dumps(line) + "\n" for line in lines)

  def table(self) -> str:
    """Everything, for people."""
    scored = next(iter(self.scores.values()))
    depths = range(1, len(scored.mtp_loss) + 1)
    rows: list[tuple[str, ...]] = [
      ("parameters", "bits/byte", "nats/token", *map("MTP {}".format, depths))
    ]
    for name, score in self.scores.items():
      losses = (score.bits_per_byte, score.loss, *score.mtp_loss)
      rows.append((name, *(f"{number:.4f}" for number in losses)))
    if self.bigram_bits_per_byte is not None:
      bits = f"{self.bigram_bits_per_byte:.4f}"
      rows.append(("(bigram model)", bits, *("" for _ in rows[0][2:])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
      f"step {self.step:,}, trained on {self.trained_tokens:,} tokens",
      f"{self.data.task} validation: {self.records:,} sequences, "
      f"{scored.tokens:,} tokens",
      *self.notes,
      "",
    ]
    for row in rows:
      cells = zip(row, widths, strict=True)
      lines.append("  ".join(cell.rjust(width) for cell, width in cells))
    return "\n".join(lines)


def evaluate(
  run: pretraining.Pretraining,
  workdir: str | os.PathLike[str],
  *,
  step: int | None = None,
) -> Evaluation:
  """Scores a checkpoint on the first validation sequences of `run.data`.

  Args:
    run: the run of the workdir, perhaps with other data. Its
      `final_evaluation_records` are scored; the data must be prepared.
    workdir: has the checkpoint.
    step: which one, by default the newest good one.

  Raises:
    ValueError: checkpoint, data or mesh do not fit.
  """
  mesh = mesh_lib.make(run.mesh)
  run.check_batch(mesh_lib.batch_shards(mesh))
  source = pipeline.open_split(run.data, "validation", shuffle=False)
  size = source.metadata["vocab_size"]
  if size > run.config.vocab_size:
    raise ValueError(
      f"vocabulary {run.data.vocabulary!r} has {size} ids, the model "
      f"{run.config.vocab_size}: bind pipeline.Data.vocabulary to the one it "
      "was trained with"
    )
  trained = restore.load(workdir, run=run, step=step, average=True)
  evaluator = text.Evaluator(
    trained.model,
    source,
    mesh,
    batch_size=run.micro_batch,
    records=run.final_evaluation_records,
  )
  bias = trained.variables.get("router_bias", {})
  with sharding_lib.use(mesh, run.sharding):
    score, load = evaluator.measure(trained.variables["params"], bias)
    scores = {"raw": score}
    if trained.average is not None:
      scores["average"] = evaluator.score(trained.average, bias)
  return Evaluation(
    step=trained.step,
    trained_tokens=trained.tokens,
    data=run.data,
    records=evaluator.records,
    scores=scores,
    bigram_bits_per_byte=source.metadata.get("bigram_bits_per_byte"),
    notes=trained.notes,
    layers=run.config.expert_layers,
    load=load,
  )


def plan(
  run: pretraining.Pretraining,
  workdir: str | os.PathLike[str],
  *,
  step: int | None = None,
) -> str:
  """What `evaluate` would do, read from files alone; see there."""
  with restore.checkpoints(workdir) as checkpointer:
    metadata = checkpointer.metadata(step)
  total = cost.parameters(run.config) + cost.mtp_parameters(run.config)
  average = metadata["run"]["ema_decay"] is not None
  prepared = pipeline.is_prepared(run.data)
  records = run.final_evaluation_records
  if prepared:
    source = pipeline.open_split(run.data, "validation", shuffle=False)
    records = min(records, len(source))
  length = run.data.sequence_length
  flops = cost.flops_per_token(run.config, length, mtp=True) / 3  # no backward
  return "\n".join(
    (
      f"step {metadata['step']:,} of {workdir}: {total:,} parameters"
      + (" and their average" if average else ""),
      f"{run.data.task} validation: {records:,} sequences of {length} tokens, "
      f"batches of {run.micro_batch}, "
      f"{flops * records * length * (1 + average):.2e} FLOPs",
      f"{'prepared' if prepared else 'to be prepared'} in "
      f"{pipeline.prepared_directory(run.data)}",
    )
  )
