"""Options that bound what a plan may choose: rounding, least counts, positions to keep or drop, layers to leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from streamsparse.solve import Constraints

RoundTo = Annotated[
    int,
    typer.Option(
        "--round-to", help="Keep a multiple of so many channels in every group, or all; 8 suits most hardware."
    ),
]
MinChannels = Annotated[
    str,
    typer.Option("--min-channels", help="Keep at least so many channels in every group: 4, or 0.1 for a tenth."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        help="GROUP=POSITIONS that must stay, such as conv1=0,3-7; repeatable. The group's other positions are "
        "chosen anew around them.",
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option("--drop", help="GROUP=POSITIONS that must go, such as conv1=2,8-11; repeatable."),
]
Leave = Annotated[
    list[str] | None,
    typer.Option(
        "--leave",
        help="Layer, or pattern with * and ?, to leave alone; repeatable. Groups of channels that it produces, "
        "consumes or passes on stay whole: the command names them.",
    ),
]


def parse_constraints(
    round_to: int, min_channels: str, keep: list[str] | None, drop: list[str] | None, leave: list[str] | None
) -> Constraints:
    """The options as typed -> `Constraints`.

    Raises:
        UsageError: one of them does not parse, or contradicts another.
    """
    from streamsparse.solve import Constraints

    try:
        least = float(min_channels)
    except ValueError:
        least = -1.0
    if not least > 0:
        raise UsageError(
            "This least number of channels does not parse.",
            expected="a whole number such as 4, or a fraction such as 0.1",
            got=min_channels,
            where="--min-channels",
        )
    lists = parse_positions(keep, "--keep"), parse_positions(drop, "--drop")
    return Constraints(round_to, least, *lists, tuple(leave or ()))


def parse_positions(texts: list[str] | None, option: str) -> dict[str, tuple[int, ...]]:
    """`["conv1=3-5,12"]` -> {"conv1": (3, 4, 5, 12)}; the lists of one group add up."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        group, _, listed = text.rpartition("=")
        parts = [part.partition("-") for part in listed.split(",")]
        right = all(first.isdecimal() and (last.isdecimal() if dash else not last) for first, dash, last in parts)
        if not group or not right or any(dash and int(last) < int(first) for first, dash, last in parts):
            raise UsageError(
                "These positions do not parse.",
                expected="GROUP=POSITION,FIRST-LAST,... with positions from 0 up",
                got=text,
                where=option,
                remedy=f"for example {option} conv1=0,3-7",
            )
        own = [position for first, dash, last in parts for position in range(int(first), int(last or first) + 1)]
        found[group] = (*found.get(group, ()), *own)
    return found
