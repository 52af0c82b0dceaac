"""Refusals, as OpenAI's API words them: a status, and JSON with one sentence."""

from starlette.responses import JSONResponse

# The type that OpenAI's API gives to errors of a status; any other is the server's own.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that is refused.

    Args:
        status (`int`): HTTP status.
        message (`str`): What is wrong, the value seen, what to do.
        param (`str`, *optional*): The field of the request that is wrong.
        code (`str`, *optional*): A name of the error, for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def as_json(self) -> dict:
        """The body of the response."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def as_response(self) -> JSONResponse:
        """The response."""
        headers = {"Retry-After": "1"} if self.status in (429, 503) else None
        return JSONResponse(self.as_json(), self.status, headers)
