"""In which order a plan's steps are played where that depends on data.

Control flow splits a model into runs of steps, each compiled like a model of its own, and a small
program over them, which the host plays (or, in WebAssembly, the module itself). Data reach the
program in one way: the one element of an i32 buffer is looked at. A `Read` makes it a size, from
there on as good as any other; a `Loop` and a `Branch` decide by it.

A plan without a program plays its steps in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .dims import Dim, dim_from_json, dim_json

LOOP_LIMIT = 1 << 16
"""Turns after which a loop whose end only its data know is given up."""


STACK_LIMIT = 1 << 12
"""Likewise, where every turn adds a row to an output: there is memory for so many."""


@dataclass(frozen=True, slots=True)
class Range:
    """Steps first .. end - 1, in order."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Read:
    """`symbol` becomes the element of `buffer`, which has to lie in 0 .. most."""

    symbol: str
    buffer: int
    most: Dim
    where: str


@dataclass(frozen=True, slots=True)
class Loop:
    """The body `trips` times, or less: it ends before a turn when the element of `going` is 0.

    Where `limited`, the model gives no number of trips, and reaching `trips` is an error.
    """

    trips: Dim
    going: int | None
    limited: bool
    body: tuple[Item, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Branch:
    """`then` where the element of `condition` is not 0, else `otherwise`."""

    condition: int
    then: tuple[Item, ...]
    otherwise: tuple[Item, ...]


Item = Range | Read | Loop | Branch
Program = tuple[Item, ...]


def bodies(item: Item) -> tuple[Program, ...]:
    """The programs inside an item."""
    if isinstance(item, Loop):
        return (item.body,)
    return (item.then, item.otherwise) if isinstance(item, Branch) else ()


def walk(program: Sequence[Item]) -> Iterator[Item]:
    """Every item, those inside others after them."""
    for item in program:
        yield item
        for body in bodies(item):
            yield from walk(body)


def reads(program: Sequence[Item]) -> list[Read]:
    return [item for item in walk(program) if isinstance(item, Read)]


def span(program: Sequence[Item]) -> tuple[int, int] | None:
    """The first step in a program and the one past the last; None without any."""
    found = [(i.first, i.end) for i in walk(program) if isinstance(i, Range)]
    return (min(a for a, _ in found), max(b for _, b in found)) if found else None


def renumbered(program: Sequence[Item], starts: Sequence[int]) -> Program:
    """The same program over other steps: step i has become steps starts[i] .. starts[i + 1] - 1."""
    found: list[Item] = []
    for item in program:
        if isinstance(item, Range):
            item = Range(starts[item.first], starts[item.end])
        elif isinstance(item, Loop):
            item = replace(item, body=renumbered(item.body, starts))
        elif isinstance(item, Branch):
            then, otherwise = (renumbered(p, starts) for p in (item.then, item.otherwise))
            item = replace(item, then=then, otherwise=otherwise)
        found.append(item)
    return tuple(found)


def looked_at(program: Sequence[Item]) -> list[int]:
    """The buffers that decide, each once."""
    found: dict[int, None] = {}
    for item in walk(program):
        if isinstance(item, Read):
            found[item.buffer] = None
        elif isinstance(item, Loop) and item.going is not None:
            found[item.going] = None
        elif isinstance(item, Branch):
            found[item.condition] = None
    return list(found)


def program_json(program: Sequence[Item]) -> list[dict[str, Any]]:
    """The program's items: each an object with one key, which says what it is."""
    found: list[dict[str, Any]] = []
    for item in program:
        if isinstance(item, Range):
            found.append({"steps": [item.first, item.end]})
        elif isinstance(item, Read):
            content = {"symbol": item.symbol, "buffer": item.buffer, "most": dim_json(item.most)}
            found.append({"read": {**content, "where": item.where}})
        elif isinstance(item, Loop):
            loop = {
                "trips": dim_json(item.trips),
                "limited": item.limited,
                "body": program_json(item.body),
                "where": item.where,
            }
            found.append({"loop": loop if item.going is None else {**loop, "going": item.going}})
        else:
            then, otherwise = program_json(item.then), program_json(item.otherwise)
            branch = {"condition": item.condition, "then": then, "else": otherwise}
            found.append({"branch": branch})
    return found


def program_from_json(data: list[dict[str, Any]]) -> Program:
    """The inverse of `program_json`."""
    found: list[Item] = []
    for item in data:
        ((kind, content),) = item.items()
        if kind == "steps":
            found.append(Range(*content))
        elif kind == "read":
            most = dim_from_json(content["most"])
            found.append(Read(content["symbol"], content["buffer"], most, content["where"]))
        elif kind == "loop":
            trips, body = dim_from_json(content["trips"]), program_from_json(content["body"])
            going, limited = content.get("going"), content["limited"]
            found.append(Loop(trips, going, limited, body, content["where"]))
        else:
            then, otherwise = (program_from_json(content[k]) for k in ("then", "else"))
            found.append(Branch(content["condition"], then, otherwise))
    return tuple(found)
