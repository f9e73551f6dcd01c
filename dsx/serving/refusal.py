"""What a client is told when it does not get what it asked for."""

from typing import Any

_TYPES = {
  401: "authentication_error",
  404: "not_found_error",
  429: "rate_limit_error",
}


class Refusal(ValueError):
  """A request that is not answered; the message says why and what would be.

  Attributes:
    status: HTTP status.
    param: field of the body that is at fault, or None.
    code: short name of what went wrong, or None.
    retry_after: seconds after which trying again makes sense, or None.
  """

  def __init__(
    self,
    message: str,
    *,
    status: int = 400,
    param: str | None = None,
    code: str | None = None,
    retry_after: int | None = None,
  ):
    """See the class."""
    super().__init__(message)
    self.status = status
    self.param = param
    self.code = code
    self.retry_after = retry_after

  @property
  def body(self) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "server_error" if self.status >= 500 else "invalid_request_error"
    error = {
      "message": str(self),
      "type": _TYPES.get(self.status, kind),
      "param": self.param,
      "code": self.code,
    }
    return {"error": error}

  @property
  def headers(self) -> dict[str, str]:
    """HTTP headers that go with it."""
    headers = {}
    if self.retry_after is not None:
      headers["Retry-After"] = str(self.retry_after)
    if self.status == 401:
      headers["WWW-Authenticate"] = "Bearer"
    return headers


def shown(value: Any) -> str:
  """What came, short enough for one line."""
  text = ascii(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
