"""Both sides of `grpo_step.py`, each a process that takes steps when asked.

A side reads lines with a number of steps from its standard input, takes them,
and writes what each took as one line of JSON; it ends with its input. trl owns
its loop, so its turns are taken in a callback.
"""

from collections.abc import Iterable
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

GIN_FILE = "gin_configs/rl/r1_zero_tiny.gin"
ATTENTION = ("sdpa", "eager")
EXPERTS = ("grouped_mm", "eager")
PHASES = ("generate", "score", "recompute", "update")

_PROMPT = 8  # tokens, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """What both sides do in a step.

  Attributes:
    weights: of the policy, a folder in Hugging Face's layout.
    prompts: of a step.
    group: answers to each.
    longest: tokens of an answer at most.
    kl: coefficient of the divergence from the reference; 0 for no reference.
    learning_rate: of a step.
    attention: trl's model's attention; None for the fastest.
    experts: likewise, how its experts are computed.
    threads: likewise, of PyTorch.
  """

  weights: str
  prompts: int
  group: int
  longest: int
  kl: float
  learning_rate: float = 1e-6
  attention: str | None = None
  experts: str | None = None
  threads: int | None = None

  @functools.cached_property
  def run(self):
    """The run of dsx; its problems, template and rewards are trl's as well."""
    from experiments import configuration

    target = "dsx.rl.reinforcement.Reinforcement"
    row = 1 << (self.longest + _PROMPT).bit_length()
    bindings = {
      # One shape for all steps, and batches that fit into a core's cache.
      "update.Settings.row_length": row,
      "update.Settings.micro_batch_tokens": max(row, 2048),
      "start.Start.path": self.weights,
      "objective.Objective.kl_coefficient": self.kl,
      "sampling.Sampling.max_new_tokens": self.longest,
      "reinforcement.Reinforcement.prompts_per_step": self.prompts,
      "reinforcement.Reinforcement.group_size": self.group,
      "reinforcement.Reinforcement.learning_rate": self.learning_rate,
      "reinforcement.Reinforcement.warmup_steps": 0,
      "reinforcement.Reinforcement.steps": 1_000_000,
    }
    lines = [f"{name} = {value!r}" for name, value in bindings.items()]
    configuration.prepare(target, [GIN_FILE], lines)
    return configuration.build(target)


class Turns:
  """Steps that are asked for, and what they took."""

  def __init__(self, questions, answers):
    """Holds two files of text."""
    self._questions, self._answers = questions, answers
    self._left, self._taken = 0, []

  def wait(self) -> bool:
    """Waits to be asked; False if nobody will."""
    line = self._questions.readline()
    self._left, self._taken = int(line or 0), []
    return bool(line)

  def took(self, facts: dict) -> bool:
    """Tells of a step, and waits if it was the last; whether to go on."""
    self._taken.append(facts)
    self._left -= 1
    if self._left:
      return True
    print(json.dumps(self._taken), file=self._answers, flush=True)
    return self.wait()


def dsx(setting: Setting, turns: Turns) -> None:
  """Steps of `dsx.rl.learner.Learner`, as `dsx.rl.loop` takes them."""
  from dsx.parallel import sharding
  from dsx.rl import learner as learner_lib
  from dsx.rl import rewards

  run = setting.run
  mesh = run.devices()
  opened = run.template.opens_thought
  with (
    tempfile.TemporaryDirectory() as workdir,
    sharding.use(mesh, run.sharding),
    rewards.Grader(run.rewards, opened=opened) as grader,
  ):
    learner = learner_lib.Learner(run, pathlib.Path(workdir), grader, mesh)
    with learner.keeper.checkpoints:
      progress, _ = learner.begin()
      going = turns.wait()
      while going:
        began, tokens = time.perf_counter(), progress.tokens
        learner.explore(progress)
        record = learner.take(progress)
        seconds = time.perf_counter() - began
        going = turns.took(
          {name: record[f"seconds_{name}"] for name in PHASES}
          | {
            "seconds": seconds,
            "tokens": progress.tokens - tokens,
            "reward": record["reward"],
          }
        )


def trl(setting: Setting, turns: Turns) -> None:
  """Steps of trl's `GRPOTrainer`, in the fastest of its settings."""
  setting = _fastest(setting)
  if turns.wait():
    with tempfile.TemporaryDirectory() as folder:
      _trl(setting, folder, turns.took)


def _fastest(setting: Setting) -> Setting:
  """The setting with what it leaves open as it is fastest here.

  First attention and experts on one thread, which suits a model of this size,
  then more threads with the best of them.
  """
  first = setting.threads or 1
  best = _faster(
    dataclasses.replace(setting, attention=a, experts=e, threads=first)
    for a in ([setting.attention] if setting.attention else ATTENTION)
    for e in ([setting.experts] if setting.experts else EXPERTS)
  )
  if setting.threads:
    return best
  cores = len(os.sched_getaffinity(0))
  threads = sorted({1, max(cores // 2, 1), cores})
  return _faster(dataclasses.replace(best, threads=n) for n in threads)


def _faster(settings: Iterable[Setting]) -> Setting:
  """The one whose second step takes the least time."""
  found = list(settings)
  if len(found) == 1:
    return found[0]
  seconds = {}
  for one in found:
    taken = []

    def took(facts, taken=taken):
      taken.append(facts["seconds"])
      return len(taken) < 2

    with tempfile.TemporaryDirectory() as folder:
      _trl(one, folder, took)
    seconds[one] = taken[-1]
    words = f"trl, {one.attention}, {one.experts}, {one.threads} thread(s)"
    print(f"{words}: {taken[-1]:.2f} s", file=sys.stderr, flush=True)
  return min(seconds, key=seconds.__getitem__)


def _trl(setting: Setting, folder: str, took) -> None:
  """Trains until `took`, which is told of every step, says to stop."""
  import datasets
  import torch
  import transformers

  from dsx.data import vocab as vocab_lib
  from dsx.rl import curriculum
  from dsx.rl import rewards

  warnings.filterwarnings("ignore", category=FutureWarning)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  if setting.threads:
    torch.set_num_threads(setting.threads)
  run, vocabulary = setting.run, vocab_lib.ByteVocabulary()
  problems = run.problems.train()
  problems = curriculum.Curriculum(problems, run.seed).take(0, len(problems))
  texts = [f"{problem.prompt}\n" for problem in problems]
  tokenizer = _tokenizer(vocabulary)
  expected = run.template.tokens(vocabulary, problems[0].prompt)
  if tokenizer(texts[0])["input_ids"] != expected:
    raise ValueError(
      f"prompt {texts[0]!r}: tokens of both sides differ: expected {expected};"
      " make the tokenizer like dsx.data.vocab"
    )
  clock: dict[str, float] = {}
  counts: dict[str, float] = {}
  opened = run.template.opens_thought
  with rewards.Grader(run.rewards, opened=opened) as grader:

    def reward(completion_ids, number, **unused):
      del unused
      graded = [
        _response(problems[n], ids, vocabulary)
        for n, ids in zip(number, completion_ids, strict=True)
      ]
      total = grader.grade(graded).total
      counts["tokens"] = sum(map(len, completion_ids))
      counts["reward"] = float(total.mean())
      return total.tolist()

    class Timed(_trl_module().GRPOTrainer):
      """Counts seconds of a step's phases."""

      def _generate(self, *args, **kwargs):
        return _timed(clock, "generate", super()._generate, *args, **kwargs)

      def _calculate_rewards(self, *args, **kwargs):
        inner = super()._calculate_rewards
        return _timed(clock, "score", inner, *args, **kwargs)

      def _generate_and_score_completions(self, *args, **kwargs):
        inner = super()._generate_and_score_completions
        return _timed(clock, "rollout", inner, *args, **kwargs)

    class Steps(transformers.TrainerCallback):
      """Tells of steps."""

      began = 0.0

      def on_train_begin(self, args, state, control, **kwargs):
        del args, state, control, kwargs
        self.began = time.perf_counter()

      def on_step_end(self, args, state, control, **kwargs):
        del args, state, kwargs
        seconds = time.perf_counter() - self.began
        facts = {name: clock[name] for name in ("generate", "score")}
        facts["recompute"] = clock["rollout"] - sum(facts.values())
        facts["update"] = seconds - clock["rollout"]
        clock.clear()
        threads = float(torch.get_num_threads())
        took_all = {"seconds": seconds, "threads": threads}
        going = took(facts | counts | took_all)
        control.should_training_stop = not going
        self.began = time.perf_counter()

    trainer = Timed(
      model=setting.weights,
      reward_funcs=reward,
      args=_arguments(setting, folder),
      train_dataset=datasets.Dataset.from_dict(
        {"prompt": texts, "number": list(range(len(texts)))}
      ),
      processing_class=tokenizer,
      callbacks=[Steps()],
    )
    trainer.train()


def _trl_module() -> Any:
  """trl, which only this measurement needs."""
  return importlib.import_module("trl")


def _timed(clock, name: str, function, *args, **kwargs):
  began = time.perf_counter()
  found = function(*args, **kwargs)
  clock[name] = time.perf_counter() - began
  return found


def _response(problem, ids, vocabulary):
  """What dsx's rewards are told of an answer."""
  from dsx.data import prompt_template
  from dsx.rl import rewards

  text = prompt_template.response_text(vocabulary, ids)
  truncated = not ids or ids[-1] != vocabulary.special["eos"]
  return rewards.Response(problem, text, len(ids), truncated)


def _arguments(setting: Setting, folder: str):
  """trl's settings that do what the run of dsx does, and nothing besides."""
  run = setting.run
  objective, adam = run.update.objective, run.optimizer
  return _trl_module().GRPOConfig(
    output_dir=folder,
    model_init_kwargs={
      "dtype": "float32",
      "attn_implementation": setting.attention,
      "experts_implementation": setting.experts,
    },
    per_device_train_batch_size=setting.prompts * setting.group,
    gradient_accumulation_steps=1,
    num_generations=setting.group,
    max_completion_length=setting.longest,
    temperature=run.sampling.temperature,
    beta=objective.kl_coefficient,
    epsilon=objective.clip_low,
    epsilon_high=objective.clip_high,
    loss_type="grpo",
    scale_rewards="group",
    router_aux_loss_coef=0.0,
    learning_rate=setting.learning_rate,
    lr_scheduler_type="constant",
    optim="adamw_torch_fused",
    adam_beta1=adam.b1,
    adam_beta2=adam.b2,
    weight_decay=adam.weight_decay,
    max_grad_norm=adam.clip_norm,
    max_steps=run.steps,
    shuffle_dataset=False,
    # Its defaults are for accelerators with little memory.
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    dataloader_pin_memory=False,
    report_to="none",
    save_strategy="no",
    logging_strategy="no",
    disable_tqdm=True,
  )


def _tokenizer(vocabulary):
  """The byte vocabulary as `transformers` takes it, for plain ASCII."""
  import tokenizers
  import transformers

  from dsx.data import special_tokens

  ids = {chr(i): i for i in range(128)}
  names = ("bos", "eos", "pad")
  strings = {name: special_tokens.STRINGS[name] for name in names}
  special = {strings[name]: vocabulary.special[name] for name in names}
  model = tokenizers.models.WordLevel(ids | special, unk_token=strings["pad"])
  found = tokenizers.Tokenizer(model)
  found.pre_tokenizer = tokenizers.pre_tokenizers.Split(  # pyright: ignore
    tokenizers.Regex(r"[\s\S]"), "isolated"
  )
  found.post_processor = tokenizers.processors.TemplateProcessing(  # pyright: ignore
    single=f"{strings['bos']} $A",
    special_tokens=[(strings["bos"], special[strings["bos"]])],
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=found,
    **{f"{name}_token": string for name, string in strings.items()},
  )


SIDES = {"dsx": dsx, "trl": trl}


def main():
  """A side: `grpo_step_sides.py SIDE SETTING`, the setting in JSON."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # libraries talk
  side, setting = sys.argv[1:]
  SIDES[side](Setting(**json.loads(setting)), Turns(sys.stdin, answers))


if __name__ == "__main__":
  main()
