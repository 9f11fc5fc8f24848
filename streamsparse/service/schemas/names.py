"""Texts that clients may send: names by pattern, never paths."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Of runs, checkpoints, files and data sets: no separator, and no dot at the beginning."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@*?-]{1,200}$")]
"""Of channel groups, layers and patterns of them."""
BudgetText = Annotated[str, StringConstraints(pattern=r"^[a-z-]{1,20}=[A-Za-z0-9.+:@-]{1,60}$")]
"""As on the command line; what it means is checked by the solver."""
Position = Annotated[int, Field(ge=0, le=10_000_000)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]


class Body(BaseModel):
    """What a client sends: unknown fields are refused, so that a misspelt option is never passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class View(BaseModel):
    """What the service answers."""

    model_config = ConfigDict(frozen=True)
