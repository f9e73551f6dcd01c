"""Answers to whatever was planned, brought to people.

One answer streams to standard output, many come in the order of their prompts,
to standard output or to a file. What else there is to say goes to standard
error.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import sys
from typing import Any

from dsx.data import vocab as vocab_lib
from dsx.inference import answers_file
from dsx.inference import continuation
from dsx.inference import conversation
from dsx.inference import engine as engine_lib
from dsx.inference import plan as plan_lib
from dsx.inference import tally as tally_lib
from dsx.inference import terminal
from dsx.inference import thinking

Seen = Callable[[continuation.News], None]


def generate(
  plan: plan_lib.Plan,
  engine: engine_lib.Engine,
  vocabulary: vocab_lib.Vocabulary,
  *,
  writer: answers_file.Writer | None = None,
  shows: bool = True,
) -> None:
  """Generates all that is planned.

  Args:
    plan: what.
    engine: of the model, for nobody else.
    vocabulary: of the model.
    writer: of a file, instead of standard output.
    shows: whether to print reasoning.
  """
  for stream in (sys.stdout, sys.stderr):
    # No model should end a run with a character that a terminal lacks.
    stream.reconfigure(errors="replace")
  printer = terminal.Printer(sys.stdout, shows=shows)
  tally = tally_lib.Tally()
  try:
    if not plan.prompts:
      _talk(plan, engine, vocabulary, printer, tally)
      return
    news = continuation.run(
      engine,
      vocabulary,
      plan.how.requests(plan.tokens),
      chat=plan.template.chat,
      opened=plan.template.opens_reasoning,
    )
    with contextlib.closing(news):
      _answer(plan, news, printer, writer, tally)
  finally:
    stats = engine.stats
    line = tally.line(
      asked=len(plan.prompts) * plan.how.samples,
      drafted=stats.drafted,
      accepted=stats.accepted,
    )
    _note(line)


def _note(words: str) -> None:
  print(words, file=sys.stderr, flush=True)


def _talk(plan, engine, vocabulary, printer, tally) -> None:
  """A chat with whoever is on standard input."""
  chat = conversation.Conversation(
    engine, vocabulary, plan.how, template=plan.template
  )
  if sys.stdin.isatty():
    _note(conversation.HELP)
  # What is no UTF-8 is refused where it is put to the model, in one line.
  sys.stdin.reconfigure(errors="surrogateescape")
  lines = terminal.lines(sys.stdin)
  conversation.talk(
    chat, lines, printer, note=_note, begin=tally.begin, seen=tally.add
  )


def _answer(plan, news, printer, writer, tally) -> None:
  """Answers to the prompts of a plan."""
  if writer is None and len(plan.prompts) * plan.how.samples == 1:
    prompt = "" if plan.template.chat else plan.prompts[0].text
    print_one(news, prompt, printer, tally.add)
    return
  total = len(plan.prompts) * plan.how.samples
  progress = terminal.Progress(total, sys.stderr)

  def seen(item: continuation.News) -> None:
    tally.add(item)
    progress.update(tally.texts, tally.tokens)

  with contextlib.closing(progress):
    for place, done in enumerate(in_order(news, seen)):
      if writer is not None:
        writer.write(record(plan, place, done))
      else:
        progress.close()
        printer.write(heading(plan, place))
        printer.part(thinking.Part(done.reasoning, done.text))
        printer.end()


def print_one(
  news: Iterator[continuation.News],
  prompt: str,
  printer: terminal.Printer,
  seen: Seen,
) -> None:
  """Prints a prompt, and its answer as it comes.

  Args:
    news: of one request.
    prompt: what to print before.
    printer: of both.
    seen: gets all that comes.
  """
  printer.part(thinking.Part("", prompt))
  try:
    for item in news:
      printer.part(item.part)
      seen(item)
  finally:
    printer.end()


def in_order(
  news: Iterator[continuation.News], seen: Seen
) -> Iterator[continuation.Continuation]:
  """Whole answers in the order of their requests, each as soon as it can be.

  Args:
    news: of `continuation.run`.
    seen: gets all that comes.
  """
  waiting: dict[int, continuation.Continuation] = {}
  turn = 0
  for item in news:
    if item.done:
      waiting[item.index] = item.done
    seen(item)
    while turn in waiting:
      yield waiting.pop(turn)
      turn += 1


def heading(plan: plan_lib.Plan, place: int) -> str:
  """What to print before an answer: where it stands, and the prompt.

  Args:
    plan: of the prompts.
    place: of the answer among all.
  """
  index, sample = divmod(place, plan.how.samples)
  words = f"=== prompt {index + 1} of {len(plan.prompts)}"
  if plan.how.samples > 1:
    words += f", sample {sample + 1} of {plan.how.samples}"
  between = "\n\n" if plan.template.chat else ""
  return f"{words} ===\n{plan.prompts[index].text}{between}"


def record(
  plan: plan_lib.Plan, place: int, done: continuation.Continuation
) -> dict[str, Any]:
  """An answer as an object of JSON.

  Args:
    plan: of the prompts.
    place: of the answer among all.
    done: the answer.

  Returns:
    `prompt`; `sample`, its number among those of the prompt; `reasoning`, in a
    chat; `text`; `token_ids`, EOS and those of a stop string included;
    `logprobs` of each under the model itself; `finish_reason`, `stop` or
    `length`.
  """
  index, sample = divmod(place, plan.how.samples)
  reasoning = {"reasoning": done.reasoning} if plan.template.chat else {}
  return {
    "prompt": plan.prompts[index].text,
    "sample": sample,
    **reasoning,
    "text": done.text,
    "token_ids": done.tokens,
    "logprobs": done.logprobs,
    "finish_reason": done.finish_reason,
  }
