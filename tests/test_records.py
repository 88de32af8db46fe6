"""JSON into dataclasses: what is wrong is one line that begins with its path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.records import NEWER, Positive, RecordError, convert, decode, parse, read, to_builtins


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    name: str
    size: Positive = 1
    later: str = field(default="", metadata=NEWER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    schema: Literal[1, 2] = 2
    share: float
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part]
    spare: Part | None
    notes: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share: expected 1 or less, got {self.share}")
        if self.share < 0:
            raise UserError("the share is negative", value=self.share, fix="choose 0 to 1")


WHOLE = Whole(share=0.5, parts=(Part(name="a"),), by_name={"b": Part(name="b", size=2)}, spare=None, notes={"x": [1]})


def text(**change: Any) -> str:
    return json.dumps({**json.loads(json.dumps(to_builtins(WHOLE))), **change})


def test_round_trip() -> None:
    assert decode(Whole, text()) == WHOLE
    assert decode(Whole, text(schema=1)).schema == 1
    assert decode(Whole, text(parts=[{"name": "a", "size": 1}])) == WHOLE


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schema": 3}, "schema: expected 1 or 2, got 3"),
        ({"schema": 3, "unknown": 1}, "schema: expected 1 or 2, got 3"),
        ({"share": "0.5"}, "share: expected float, got str"),
        ({"share": True}, "share: expected float, got bool"),
        ({"share": 2}, "share: expected 1 or less, got 2.0"),
        ({"share": -1}, "the share is negative, got -1.0"),
        ({"parts": {}}, "parts: expected array, got object"),
        ({"parts": [{"name": "a", "size": 0}]}, "parts[0].size: expected int >= 1"),
        ({"parts": [{"name": "a"}]}, "parts[0].size: missing"),
        ({"by_name": {"c": {"name": "a", "size": 1, "more": 1}}}, "by_name[c].more: unknown, expected one of name, size"),
        ({"spare": {"name": "a", "size": 1.5}}, "spare.size: expected int, got float"),
        ({"spare": {"size": 1}}, "spare.name: missing"),
        ({"more": 1}, "more: unknown, expected one of schema, share"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_path(change: dict[str, Any], line: str) -> None:
    with pytest.raises(RecordError) as error:
        decode(Whole, text(**change))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "not JSON: input data was truncated"),
        ("{", "not JSON: input data was truncated"),
        ("[" * 100_000, "not JSON: too deeply nested"),
        ('{"a": NaN}', "not JSON: JSON is malformed"),
        ("[1e999]", "not JSON: number out of range"),
        (b'"\xff\xfe"', "not JSON: 'utf-8' codec can't decode"),
        (b"\0" * 9, "not JSON: JSON is malformed"),
    ],
)
def test_what_is_not_json(content: str | bytes, line: str) -> None:
    with pytest.raises(RecordError) as error:
        parse(content)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("value", [None, 5, "text", [], True])
def test_what_is_no_object(value: Any) -> None:
    with pytest.raises(RecordError, match=r"^a\.b: expected object, got "):
        convert(Part, value, at="a.b")


def test_read_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "whole.json"
    path.write_text(text())
    assert read(Whole, path, "damaged", error=ArtifactError, fix="write it again") == WHOLE
    path.write_text("5")
    for reason in ("expected object, got int", "No such file or directory"):
        with pytest.raises(ArtifactError) as error:
            read(Whole, path, "damaged", error=ArtifactError, fix="write it again")
        assert str(error.value) == f"damaged ({reason}): {path}; write it again"
        path.unlink(missing_ok=True)
