"""What a lenient server says of a request that it has changed."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Note(BaseModel):
    """What was done with a field of a request."""

    param: str
    message: str
    score: float | None = Field(default=None, description="of the class that was found for a prompt, from 0 to 1")
