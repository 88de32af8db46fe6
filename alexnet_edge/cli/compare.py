"""`alexnet-edge compare`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from alexnet_edge.cli.common import Json, fields_of, print_result
from alexnet_edge.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparing:
    """What is compared, and what counts as slower."""

    max_slowdown: str = "5%"
    """Slower than this is a regression, as in 5% or 0.05."""
    match: list[str] | None = None
    """Compare only these with each other, as in 'onnx fp32=onnx fp16'; may be repeated."""
    base_log: Path | None = None
    """What trtexec printed, when BASE has its times."""
    new_log: Path | None = None
    """The same for NEW."""
    force: bool = False
    """Compare all the same where power modes, definitions or inputs differ."""

    @property
    def share(self) -> float:
        """`5%` or `0.05` as 0.05."""
        text = self.max_slowdown
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 10:
            raise UserError("--max-slowdown must be a share of 0 or more", value=text, fix="write it as in 5% or 0.05")
        return value

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The labels of `match`."""
        pairs = []
        for text in self.match or ():
            labels = [part.strip() for part in text.split("=")]
            if len(labels) != 2 or not all(labels):
                raise UserError("--match takes two labels", value=text, fix="write it as in 'onnx fp32=onnx fp16'")
            pairs.append((labels[0], labels[1]))
        return pairs


def compare(
    base: Annotated[
        Path, Parameter(help="Results of `alexnet-edge bench`, trtexec --exportTimes or pytest-benchmark.")
    ],
    new: Annotated[Path, Parameter(help="The same, measured after a change.")],
    /,
    *,
    options: Annotated[Comparing, fields_of()] = Comparing(),
    markdown: Annotated[Path | None, Parameter(help="Also write it for a pull request.")] = None,
    json: Json = False,
) -> None:
    """Say what became slower between two results; exit code 1 when something did."""
    from alexnet_edge.bench.report.compare import compare
    from alexnet_edge.cli.show.bench import show_comparison
    from alexnet_edge.files import write_text

    comparison = compare(
        base,
        new,
        max_slowdown=options.share,
        force=options.force,
        match=options.pairs,
        base_log=options.base_log,
        new_log=options.new_log,
    )
    if markdown is not None:
        write_text(markdown, comparison.markdown())
    print_result(json, comparison.to_json(), lambda: show_comparison(comparison))
    comparison.check()
