"""How an exec or attach ended, as the error channel tells it: a Kubernetes Status object, or plain words before v4."""

from __future__ import annotations

import json

from wherry.model import Json

__all__ = ["SUCCESS", "exited", "failed", "told"]

SUCCESS: Json = {"metadata": {}, "status": "Success"}


def exited(code: int) -> Json:
    """The end of a command: `reason` and cause are what clients take their exit code from."""
    if code == 0:
        return SUCCESS
    message = f"command terminated with non-zero exit code: exit status {code}"
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return {"metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
            "details": {"causes": causes}}  # fmt: skip


def failed(message: str) -> Json:
    """What could not be done at all."""
    return {"metadata": {}, "status": "Failure", "message": f"Internal error occurred: {message}",
            "reason": "InternalError", "details": {"causes": [{"message": message}]}, "code": 500}  # fmt: skip


def told(status: Json, *, structured: bool) -> bytes:
    """The bytes for the error channel; in plain words success is none."""
    return json.dumps(status).encode() if structured else str(status.get("message", "")).encode()
