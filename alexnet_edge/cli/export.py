"""`alexnet-edge export`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from alexnet_edge.cli.common import Printing, fields_of, print_json
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.request import CalibrationOptions, CorrectionOptions, ExportRequest, SearchOptions

if TYPE_CHECKING:
    from alexnet_edge.artifact import Format
    from alexnet_edge.bench.search import SearchResult
    from alexnet_edge.export.exporter import Exporter, Outcome

for _options, _group in (
    (SearchOptions, "The search of --int8 auto"),
    (CalibrationOptions, "Calibration of INT8 and FP8"),
    (CorrectionOptions, "Corrections of INT8"),
    (EngineOptions, "TensorRT engines (--format trt)"),
):
    fields_of(_group)(_options)


def export(
    *,
    request: Annotated[ExportRequest, fields_of(without="triton")] = ExportRequest(),
    printing: Annotated[Printing, fields_of()] = Printing(),
) -> None:
    """Write a checkpoint in another format, and prove it gives the same answers."""
    write(request, printing)


def write(request: ExportRequest, printing: Printing) -> list[Outcome]:
    """Export and show what became of each artifact."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.export import show_exports
    from alexnet_edge.export.exporter import require_outcomes
    from alexnet_edge.export.run import export_all

    outcomes: list[Outcome] = []
    with console.reporter(printing.quiet) as reporter:
        try:
            for outcome in export_all(
                request, search=_search(request, printing.json) if request.auto else None, reporter=reporter
            ):
                outcomes.append(outcome)
        finally:  # what was written before a mistake was noticed is shown all the same
            if outcomes and printing.json and request.triton is None:
                print_json([outcome.to_json() for outcome in outcomes])
            elif outcomes and not printing.json:
                show_exports(outcomes)
    everything = request.format == "all" and not request.recommended and request.triton is None
    require_outcomes(outcomes, everything=everything)
    return outcomes


def _search(request: ExportRequest, as_json: bool) -> Callable[[Exporter, Format], SearchResult]:
    """What finds the plan of `--int8 auto`, and shows it."""
    from alexnet_edge.bench.search import SearchSettings, search_images, search_plan
    from alexnet_edge.cli.show.export import show_search

    settings = SearchSettings(max_drop=request.search.max_drop / 100)

    def search(exporter: Exporter, format: Format) -> SearchResult:
        images = search_images(exporter, request.search.search_images, request.class_list)
        result = search_plan(exporter, format, images, settings)
        show_search(result, as_json)
        return result

    return search
