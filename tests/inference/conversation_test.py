"""A chat goes on from what was said."""

import io
import os
import signal
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from dsx.data import vocab
from dsx.inference import conversation
from dsx.inference import generation
from dsx.inference import template
from dsx.inference import terminal
from tests.inference import fake_engine

_BYTE = vocab.ByteVocabulary()
_EOS = _BYTE.special["eos"]
_CLOSE = _BYTE.special["/think"]


class _Screen(io.StringIO):
  def isatty(self):
    return True


class ConversationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.notes = []
    self.seen = []
    self.begun = []

  def engine(self, reasoning="hm", **more):
    """Answers with the length of the prompt."""
    self.made = fake_engine.FakeEngine(
      lambda prompt: [
        *reasoning.encode(),
        _CLOSE,
        *f"\n\n{len(prompt)}".encode(),
        _EOS,
      ],
      eos=_EOS,
      **more,
    )
    return self.made

  def talk(self, engine, *lines, out=None, shows=True, **fields):
    out = out or io.StringIO()
    chat = conversation.Conversation(
      engine,
      _BYTE,
      generation.Generation(seed=5),
      template=template.Template(chat=True, **fields),
    )
    conversation.talk(
      chat,
      lines,
      terminal.Printer(out, shows=shows),
      note=self.notes.append,
      begin=lambda: self.begun.append(len(self.seen)),
      seen=self.seen.append,
    )
    return out.getvalue()

  def prompts(self):
    return [
      _BYTE.decode(request.prompt, specials=True)
      for request in self.made.requests
    ]

  def test_what_was_said_is_said_again_without_reasoning(self):
    out = self.talk(self.engine(), "Hi", "", "And?", system="Be.")
    self.assertEqual(
      out, "<think>\nhm\n</think>\n\n10\n<think>\nhm\n</think>\n\n19\n"
    )
    self.assertEqual(
      self.prompts(),
      [
        "<｜begin▁of▁sentence｜>Be.<｜User｜>Hi<｜Assistant｜><think>\n",
        "<｜begin▁of▁sentence｜>Be.<｜User｜>Hi<｜Assistant｜>10"
        "<｜end▁of▁sentence｜><｜User｜>And?<｜Assistant｜><think>\n",
      ],
    )
    ends = [i for i, news in enumerate(self.seen, 1) if news.done]
    self.assertEqual(self.begun + ends[1:], [0, *ends])

  def test_reasoning_hidden(self):
    self.assertEqual(self.talk(self.engine(), "Hi", shows=False), "7\n")

  def test_without_reasoning(self):
    engine = fake_engine.FakeEngine(lambda _: [*b"yes", _EOS], eos=_EOS)
    self.assertEqual(self.talk(engine, "Hi", think=False), "yes\n")
    self.assertEqual(engine.requests[0].prompt[-1], _CLOSE)

  def test_reset_and_quit(self):
    self.talk(self.engine(), "one", " /reset ", "two", "/quit", "three")
    self.assertLen(self.prompts(), 2)
    self.assertNotIn("one", self.prompts()[1])
    self.assertEqual(self.notes, ["forgotten"])

  def test_every_turn_has_its_seed(self):
    self.talk(self.engine(), "one", "/reset", "one")
    seeds = [r.sampling.seed for r in self.made.requests]
    self.assertEqual(seeds, [5, generation.folded(5, 1, 0)])

  def test_what_cannot_be_said_is_not_said(self):
    out = self.talk(
      self.engine(context=20), "a" * 15, "b\udcff", "Hi", shows=False
    )
    self.assertEqual(out, "7\n")
    self.assertEqual(
      self.notes,
      [
        "the conversation of 20 tokens: expected fewer than window=20; shorten "
        "it, or forget it with /reset",
        "messages[0].content: text: character 1 is a lone surrogate "
        "('\\udcff'), expected Unicode text that UTF-8 can hold; replace or "
        "drop that character",
      ],
    )

  def test_why_an_answer_broke_off_is_noted(self):
    self.talk(self.engine(context=9), "Hi")
    self.assertEqual(
      self.notes,
      ["the context is full; /reset forgets what was said, /quit ends"],
    )

  @parameterized.parameters((True, 1), (True, 2), (False, 1))
  def test_ctrl_c_breaks_off_an_answer_on_a_screen(self, screen, times):
    def interrupting(news):
      self.seen.append(news)
      if len(self.seen) == 2:
        for _ in range(times):
          signal.raise_signal(signal.SIGINT)

    engine = self.engine(reasoning="", chunk=2)
    chat = conversation.Conversation(
      engine,
      _BYTE,
      generation.Generation(),
      template=template.Template(chat=True),
    )

    def talk():
      conversation.talk(
        chat,
        ["x" * 100, "go on"],
        terminal.Printer(_Screen() if screen else io.StringIO()),
        note=self.notes.append,
        begin=lambda: None,
        seen=interrupting,
      )

    # A job that a shell put into the background ignores it.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, outside)
    before = signal.getsignal(signal.SIGINT)
    with mock.patch.dict(os.environ, {"TERM": "xterm"}):
      if screen and times == 1:
        talk()
        self.assertEqual(self.notes[0], "broken off")
        # As far as it came, it was said.
        self.assertIn(
          "<｜Assistant｜>1<｜end▁of▁sentence｜>", self.prompts()[1]
        )
      else:
        self.assertRaises(KeyboardInterrupt, talk)
    self.assertEqual(engine.cancelled[0], 0)
    self.assertEqual(signal.getsignal(signal.SIGINT), before)


if __name__ == "__main__":
  absltest.main()
