"""Texts and conversations of requests to tokens, and special tokens' names."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from dsx.data import chat as chat_lib
from dsx.data import vocab as vocab_lib
from dsx.serving import refusal


class Tokenizing:
  """A vocabulary, for prompts that have to fit into a context."""

  def __init__(
    self, vocabulary: vocab_lib.Vocabulary, context: int, think: bool | None
  ):
    """Reads the special tokens.

    Args:
      vocabulary: of the model.
      context: longest prompt, in tokens.
      think: whether chats begin with reasoning; None if the vocabulary has a
        token for it.
    """
    self._vocabulary = vocabulary
    self._context = context
    has_tag = "think" in vocabulary.special
    self._think = has_tag if think is None else think
    # No text of more bytes fits into the context, however it is cut.
    self._most_bytes = context * int(vocabulary.token_bytes.max())
    self._tokens = {
      vocabulary.decode([token], specials=True): token
      for token in vocabulary.special.values()
    }

  def special(self, name: str) -> str | None:
    """The string of a special token, if there is such a one."""
    token = self._vocabulary.special.get(name)
    if token is None:
      return None
    return self._vocabulary.decode([token], specials=True)

  def text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text, with BOS first if wanted.

    What people write never becomes a special token, but for this: a text that
    is the string of one special token and nothing else, with no BOS wanted, is
    that token. It is how lm-eval learns its id.

    Raises:
      refusal.Refusal: it is too long.
    """
    self._check_size("prompt", [text])
    if not add_special_tokens:
      if text in self._tokens:
        return [self._tokens[text]]
      return self._vocabulary.encode(text)
    bos = self._vocabulary.special.get("bos")
    return ([] if bos is None else [bos]) + self._vocabulary.encode(text)

  def thinks(self, think: bool | None) -> bool:
    """Whether a chat begins with reasoning, if it says `think` itself."""
    return self._think if think is None else think

  def chat(
    self, messages: Sequence[Mapping[str, str]], think: bool | None
  ) -> list[int]:
    """The prompt that asks for the next answer of a conversation.

    Raises:
      refusal.Refusal: it is too long, or no conversation.
    """
    self._check_size("messages", (m["content"] for m in messages))
    try:
      return chat_lib.encode(
        self._vocabulary, messages, think=self.thinks(think)
      )
    except ValueError as error:
      raise refusal.Refusal(str(error), param="messages") from None

  def _check_size(self, param: str, texts: Iterable[str]) -> None:
    """Refuses text that need not be cut into tokens to be too long."""
    size = sum(len(text) for text in texts)
    if size > self._most_bytes:
      raise refusal.Refusal(
        f"{param}: {size} characters; expected no more than fit into the "
        f"model's context of {self._context} tokens; shorten it",
        param=param,
        code="context_length_exceeded",
      )
