"""Continues a text with a trained model.

  python -m experiments.generate --checkpoint=runs/v3_tiny --prompt='def '

The checkpoint is the workdir of a run, or a folder in Hugging Face's layout
(config.json, *.safetensors, tokenizer.json). Prints the prompt and what the
model adds, until it ends the text or has drawn --max_new_tokens; on standard
error, what was read. Every token reads the whole context again, on one device.
--dry_run says what would be read, and the prompt's length in tokens.
"""

import dataclasses
import sys
import time

from absl import flags

from experiments import cli

TARGET = "dsx.inference.sampling.Sampling"
# The workdir's own config.gin is no mistake.
ALSO = ("dsx.training.pretraining.Pretraining",)

CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Workdir or Hugging Face folder; by default --workdir."
)
PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", None, "Most to draw.")
TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the best token.")
WINDOW = flags.DEFINE_integer(
  "window", None, "Tokens of context; by default what it was trained with."
)
STEP = flags.DEFINE_integer("step", None, "Checkpoint, by default the newest.")
AVERAGE = flags.DEFINE_bool(
  "average", False, "Use the moving average of a run's parameters."
)
VOCABULARY = flags.DEFINE_string(
  "vocabulary", None, "'byte' or a tokenizer.json, if it is not where it was."
)
DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "Of parameters and products; by default the run's own, or float32.",
)


def main(argv):
  """Continues the prompt, or says with what it would be continued."""
  del argv
  how = _sampling()
  folder = CHECKPOINT.value or cli.WORKDIR.value
  if not folder:
    raise ValueError("--checkpoint is missing: expected a folder with a model")
  if not PROMPT.value:
    raise ValueError("--prompt is empty: expected text to continue")
  from dsx.inference import completion
  from dsx.training import pretrained

  found = pretrained.find(
    folder,
    step=STEP.value,
    average=AVERAGE.value,
    vocabulary=VOCABULARY.value,
    dtype=DTYPE.value,
  )
  how = dataclasses.replace(how, window=how.window or found.window)
  # What is wrong with the prompt is said before the weights are read.
  tokens = completion.prompt_tokens(found.vocabulary, PROMPT.value)
  completion.context_window(found.model, found.vocabulary, tokens, how)
  plan = f"{found.description}; prompt of {len(tokens)} tokens, {how}"
  if cli.DRY_RUN.value:
    print(plan)
    return
  print(plan, file=sys.stderr)
  variables, start = found.read(), time.monotonic()
  said = completion.complete(
    found.model, variables, found.vocabulary, PROMPT.value, how
  )
  print(PROMPT.value + said.text)
  why = "it ended the text" if said.ended else "as many as asked for"
  seconds = time.monotonic() - start
  print(f"{len(said.tokens)} tokens, {why}, {seconds:.1f} s", file=sys.stderr)


def _sampling():
  """How to sample: the defaults, gin's bindings, then this binary's flags."""
  how = cli.build(TARGET)
  given = {
    "max_new_tokens": MAX_NEW_TOKENS.value,
    "temperature": TEMPERATURE.value,
    "window": WINDOW.value,
  }
  given = {name: value for name, value in given.items() if value is not None}
  return dataclasses.replace(how, **given)


if __name__ == "__main__":
  cli.run(main, target=TARGET, also=ALSO)
