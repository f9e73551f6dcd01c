"""Converts weights between Hugging Face's layout and dsx, bfloat16 and FP8.

  python -m experiments.convert --source=DIR --target=DIR --target_format=hf

--source is a folder in Hugging Face's layout (config.json, *.safetensors) or
the workdir of a run; --target is new or empty. The formats: `hf`, Hugging
Face's layout in one dtype; `hf_fp8`, the same with linear layers in FP8;
`orbax`, a workdir. The whole source is checked before anything is written.
The same command goes on after an interruption. --dry_run says what would be
written.
"""

import dataclasses
import os
import pathlib

from absl import flags

from experiments import cli

TARGET = "dsx.convert.conversion.Conversion"
ALSO = ("dsx.training.pretraining.Pretraining",)

SOURCE = flags.DEFINE_string(
  "source", None, "Hugging Face folder or workdir to read.", required=True
)
GOAL = flags.DEFINE_string("target", None, "Folder to write.", required=True)
TARGET_FORMAT = flags.DEFINE_enum(
  "target_format", None, ["hf", "hf_fp8", "orbax"], "By default hf."
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["bfloat16", "float32", "float16"],
  "Of weights that are not FP8; by default bfloat16, or for orbax as they are.",
)
SCALE_FORMAT = flags.DEFINE_enum(
  "scale_format",
  None,
  ["float32", "ue8m0", "e8m0"],
  "Of FP8: any scales, powers of two, or powers of two in one byte; by default"
  " the source's, or float32.",
)
SHARD_BYTES = flags.DEFINE_integer(
  "shard_bytes", None, "Bytes of a file; by default 5 GB."
)
STEP = flags.DEFINE_integer(
  "step", None, "Checkpoint of a workdir, by default the newest."
)
AVERAGE = flags.DEFINE_bool(
  "average", False, "Take the moving average of a run's parameters."
)


def main(argv):
  """Converts, or says what would be written."""
  del argv
  given = {
    "target_format": TARGET_FORMAT.value,
    "dtype": DTYPE.value,
    "scale_format": SCALE_FORMAT.value,
    "shard_bytes": SHARD_BYTES.value,
  }
  given = {name: value for name, value in given.items() if value is not None}
  os.environ["JAX_PLATFORMS"] = "cpu"  # leave accelerators to others
  options = dataclasses.replace(cli.build(TARGET), **given)
  from dsx.convert import byte_progress

  source = pathlib.Path(SOURCE.value).expanduser()
  with byte_progress.ByteProgress() as progress:
    print(_convert(source, GOAL.value, options, progress))


def _convert(source: pathlib.Path, target: str, options, progress) -> str:
  """Converts from either kind of source to either kind of target."""
  from dsx.convert import conversion
  from dsx.convert import huggingface_source
  from dsx.training import checkpoint_source
  from dsx.training import exported
  from dsx.training import restore

  is_run = restore.is_workdir(source)
  if not is_run and (STEP.value is not None or AVERAGE.value):
    raise ValueError(
      f"{source}: not a workdir: expected neither --step nor --average"
    )
  if options.target_format == "orbax":
    return _to_workdir(source, target, options, is_run, progress)
  which = {"step": STEP.value, "average": AVERAGE.value}
  if cli.DRY_RUN.value:
    find = checkpoint_source.find if is_run else huggingface_source.find
    found = find(source, **(which if is_run else {}))
    return conversion.plan(found, options).description
  if is_run:
    return exported.write(source, target, options, progress=progress, **which)
  found = huggingface_source.find(source)
  return conversion.write(found, target, options, progress=progress)


def _to_workdir(source, target: str, options, is_run: bool, progress) -> str:
  """Imports a Hugging Face folder."""
  from dsx.training import imported

  if is_run:
    raise ValueError(f"{source}: a workdir already; give --target_format=hf")
  if options.scale_format is not None:
    raise ValueError(
      f"--scale_format={options.scale_format}: a workdir keeps the source's; "
      "leave it out"
    )
  if cli.DRY_RUN.value:
    return imported.plan(source, dtype=options.dtype)
  return imported.write(source, target, dtype=options.dtype, progress=progress)


if __name__ == "__main__":
  cli.run(main, target=TARGET, also=ALSO)
