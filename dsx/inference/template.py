"""How what a person writes is put to a model."""

from collections.abc import Sequence
import dataclasses

from dsx.data import chat as chat_lib
from dsx.data import vocab as vocab_lib
from dsx.inference import completion
from dsx.inference import prompts_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """A text to be continued, or words in a chat.

  Attributes:
    chat: a prompt is what the user says, in the template of `data.chat`; else
      it is a text to be continued.
    system: what the model is told before, in a chat.
    think: have answers begin with reasoning, in a chat.
  """

  chat: bool = False
  system: str = ""
  think: bool = True

  def __post_init__(self):
    if not self.chat and (self.system or not self.think):
      raise ValueError(
        f"system={self.system!r}, think={self.think}: expected these of a chat "
        "only; set chat, or leave them out"
      )

  @property
  def opens_reasoning(self) -> bool:
    """Whether prompts end inside of reasoning."""
    return self.chat and self.think

  def prompt(
    self, vocabulary: vocab_lib.Vocabulary, prompt: prompts_file.Prompt
  ) -> list[int]:
    """The token ids of a prompt.

    Raises:
      ValueError: it cannot be encoded, and where it comes from.
    """
    try:
      if self.chat:
        return self.conversation(vocabulary, [("user", prompt.text)])
      return completion.prompt_tokens(vocabulary, prompt.text)
    except ValueError as error:
      raise ValueError(f"{prompt.place}: {error}") from None

  def conversation(
    self,
    vocabulary: vocab_lib.Vocabulary,
    turns: Sequence[tuple[str, str]],
  ) -> list[int]:
    """The token ids of a conversation after the system's words.

    Args:
      vocabulary: of a chat model.
      turns: role and words of each.

    Raises:
      ValueError: see `data.chat.encode`.
    """
    said = [("system", self.system)] if self.system else []
    messages = [
      {"role": role, "content": content} for role, content in (*said, *turns)
    ]
    return chat_lib.encode(vocabulary, messages, think=self.think)
