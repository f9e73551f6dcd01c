"""A chat with a model, turn by turn."""

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterable
import contextlib
import dataclasses
import signal

from dsx.data import vocab as vocab_lib
from dsx.inference import continuation
from dsx.inference import engine as engine_lib
from dsx.inference import generation as generation_lib
from dsx.inference import request as request_lib
from dsx.inference import template as template_lib
from dsx.inference import terminal
from dsx.inference import thinking

HELP = "/reset forgets what was said, /quit ends"


class Conversation:
  """What was said so far, and the model that goes on.

  An answer that was broken off stays as far as it came. Of an answer, only
  what follows its reasoning is said to the model again, as R1's template has
  it.
  """

  def __init__(
    self,
    engine: engine_lib.Engine,
    vocabulary: vocab_lib.Vocabulary,
    how: generation_lib.Generation,
    *,
    template: template_lib.Template,
  ):
    """Nothing is said yet.

    Args:
      engine: of the model.
      vocabulary: of the model.
      how: length, temperature and seed; every turn has a seed of its own.
      template: what comes before what is said, and whether to reason.
    """
    self._engine = engine
    self._vocabulary = vocabulary
    self._how = how
    self._template = template
    self._turns: list[tuple[str, str]] = []
    self._asked = 0

  def reset(self) -> None:
    """Forgets what was said, but not the system's words."""
    self._turns = []

  def say(self, text: str) -> Generator[continuation.News, None, None]:
    """Asks something; yields the answer as it comes.

    Raises:
      ValueError: it is empty or no Unicode text, or with what was said before
        it does not fit into the context. It counts as not said.
    """
    turns = (*self._turns, ("user", text))
    prompt = self._template.conversation(self._vocabulary, turns)
    context = self._engine.context
    if len(prompt) >= context:
      raise ValueError(
        f"the conversation of {len(prompt)} tokens: expected fewer than "
        f"window={context}; shorten it, or forget it with /reset"
      )
    seed = generation_lib.folded(self._how.seed, self._asked, 0)
    sampling = dataclasses.replace(self._how.sampling, seed=seed)
    self._asked += 1
    return self._answer(
      turns, request_lib.Request(prompt=tuple(prompt), sampling=sampling)
    )

  def _answer(self, turns, request) -> Generator[continuation.News, None, None]:
    said = thinking.Part("", "")
    with contextlib.closing(
      continuation.run(
        self._engine,
        self._vocabulary,
        [request],
        chat=True,
        opened=self._template.think,
      )
    ) as news:
      try:
        for item in news:
          said += item.part
          yield item
      finally:
        self._turns = [*turns, ("assistant", said.answer)]


def talk(
  conversation: Conversation,
  lines: Iterable[str],
  printer: terminal.Printer,
  *,
  note: Callable[[str], None],
  begin: Callable[[], None],
  seen: Callable[[continuation.News], None],
) -> None:
  """Answers line by line, until there are no more or one says /quit.

  On a screen, Ctrl-C during an answer breaks off that answer only.

  Args:
    conversation: goes on.
    lines: what is said; empty ones say nothing.
    printer: of the answers.
    note: prints a line that is no part of an answer, such as why something
      cannot be said.
    begin: called before an answer.
    seen: gets what came, after it was printed.
  """
  for line in map(str.strip, lines):
    if line == "/quit":
      return
    if line == "/reset":
      conversation.reset()
      note("forgotten")
    elif line:
      try:
        news = conversation.say(line)
      except ValueError as error:
        note(str(error))
        continue
      begin()
      _print(news, printer, note, seen)


def _print(news, printer, note, seen) -> None:
  """Prints an answer."""
  with contextlib.closing(news), _Break(watches=printer.is_screen) as asked:
    for item in news:
      printer.part(item.part)
      seen(item)
      if item.done:
        printer.end()
        _note_end(item.done, note)
      elif asked.for_it:
        printer.end()
        note("broken off")
        return


class _Break:
  """Ctrl-C between two pieces of an answer, not in the middle of a step.

  An engine that is interrupted while it decodes could not go on. A second
  Ctrl-C interrupts it all the same.

  Attributes:
    for_it: whether a break was asked for.
  """

  def __init__(self, *, watches: bool):
    """Takes the signal over for the length of the context if it `watches`."""
    self._watches = watches
    self.for_it = False

  def __enter__(self) -> "_Break":
    if self._watches:
      self._before = signal.signal(signal.SIGINT, self._ask)
    return self

  def __exit__(self, *unused) -> None:
    if self._watches:
      signal.signal(signal.SIGINT, self._before)

  def _ask(self, *unused) -> None:
    if self.for_it:
      raise KeyboardInterrupt
    self.for_it = True


def _note_end(done: continuation.Continuation, note) -> None:
  if done.end == "context":
    note(f"the context is full; {HELP}")
  elif done.end == "max_new_tokens":
    note(f"broken off after {len(done.tokens)} tokens, as asked for")
