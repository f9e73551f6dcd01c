"""A conversation as the tokens that DeepSeek's chat models were trained on.

The templates are those of the published tokenizer_config.json files. With
reasoning, that of DeepSeek-R1:

  BOS system <｜User｜>question<｜Assistant｜>answer EOS <｜User｜>question
  <｜Assistant｜><think>\\n

and without, that of DeepSeek-V3.1, whose empty reasoning is one closing tag
(<｜Assistant｜></think>, before earlier answers too), or that of DeepSeek-V3,
which is without tags, if the vocabulary has no </think>. A vocabulary without
<think> that is asked to reason gets the tag as text.

Special tokens are inserted by id. What people write can never become one.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from dsx.data import special_tokens
from dsx.data import vocab

ROLES = ("system", "user", "assistant")


def encode(
  vocabulary: vocab.Vocabulary,
  messages: Sequence[Mapping[str, str]],
  *,
  think: bool = True,
) -> list[int]:
  """The prompt that asks for the next answer of a conversation.

  Args:
    vocabulary: with tokens for BOS, EOS, the user and the assistant.
    messages: each with a `role` of `ROLES` and a `content`. Those of the
      system, wherever they stand, come first, joined by blank lines. An
      assistant answers a user, and the last to speak is a user. Of an earlier
      answer only what follows </think> is kept.
    think: have the answer begin with reasoning.

  Returns:
    Token ids. With `think` they end inside of reasoning.

  Raises:
    ValueError: a message is not of that kind or stands in a wrong place, or
      the vocabulary has no such tokens.
  """
  special = _special(vocabulary)
  said = [_checked(i, message) for i, message in enumerate(messages)]
  _check_order([role for role, _ in said])
  texts = [vocabulary.encode(content) for _, content in said]
  system = [content for role, content in said if role == "system"]
  tokens = [special["bos"], *vocabulary.encode("\n\n".join(system))]
  closed = [] if think or "/think" not in special else [special["/think"]]
  for (role, _), text in zip(said, texts, strict=True):
    if role == "user":
      tokens += [special["user"], *text]
    elif role == "assistant":
      tokens += [special["assistant"], *closed, *text, special["eos"]]
  tokens += [special["assistant"], *closed]
  return tokens + (_opening(vocabulary) if think else [])


def _special(vocabulary: vocab.Vocabulary) -> dict[str, int]:
  for name in ("bos", "eos", "user", "assistant"):
    if name not in vocabulary.special:
      raise ValueError(
        f"vocabulary {vocabulary.name!r} has no token "
        f"{special_tokens.STRINGS[name]!r}: expected that of a chat model; "
        "continue a plain prompt instead"
      )
  return vocabulary.special


def _opening(vocabulary: vocab.Vocabulary) -> list[int]:
  token = vocabulary.special.get("think")
  if token is None:
    return vocabulary.encode(special_tokens.STRINGS["think"] + "\n")
  return [token, *vocabulary.encode("\n")]


def _checked(i: int, message: Mapping[str, str]) -> tuple[str, str]:
  """Role and content of a message, as far as a prompt takes it."""
  place = f"messages[{i}]"
  if not isinstance(message, Mapping):
    raise ValueError(
      f"{place}={message!r}: expected a role and a content; give both"
    )
  role, content = message.get("role"), message.get("content")
  if role not in ROLES:
    raise ValueError(
      f"{place}.role={role!r}: expected one of {', '.join(ROLES)}; change it"
    )
  if not isinstance(content, str):
    raise ValueError(
      f"{place}.content={content!r}: expected text; give a string"
    )
  if role == "user" and not content:
    raise ValueError(f"{place}.content='': expected text; ask something")
  try:
    vocab.utf8(content)
  except ValueError as error:
    raise ValueError(f"{place}.content: {error}") from None
  if role == "assistant":
    content = content.rpartition(special_tokens.STRINGS["/think"])[2]
  return role, content


def _check_order(roles: Sequence[str]) -> None:
  if "user" not in roles:
    raise ValueError(
      f"messages={list(roles)}: expected at least one user's; ask something"
    )
  before = None
  for i, role in enumerate(roles):
    if role == "assistant" and before != "user":
      raise ValueError(
        f"messages[{i}].role='assistant': expected a user's message before an "
        "answer; add it, or join the two answers"
      )
    before = before if role == "system" else role
  if before != "user":
    raise ValueError(
      f"messages[{len(roles) - 1}].role='assistant': expected a user's message "
      "as the last; ask something"
    )
