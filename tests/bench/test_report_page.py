"""What reads results: rows, tables, Markdown, CSV and the page, on made-up results with everything and with nothing."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_results import KINDS, PARTS, kinds_with_error, make_results
from html_page import Page

from alexnet_edge.bench.report import plots
from alexnet_edge.bench.report.numbers import NOT_AVAILABLE, show_ms
from alexnet_edge.bench.report.report import write_report
from alexnet_edge.bench.report.rows import Row, fastest_of_each, rows_of
from alexnet_edge.bench.report.tables import every_table, scorecard
from alexnet_edge.bench.report.text import csv_of, markdown_of
from alexnet_edge.bench.report.words import fastest_proved, headline, open_points, threads_of, verdict, worst_overall

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("jinja2", reason="jinja2 is not installed")

SMALL = {"samples": 60, "batches": (1, 4)}
HISTORY = [
    {"epoch": epoch, "loss": 1.0, "val_loss": 1.1, "accuracy": 0.5, "top1": 0.4, "lr": 0.01 / epoch,
     "gradient_norm": 1.5 * epoch, "images_per_s": 100.0, "wait_share": 0.01 * epoch}
    for epoch in (1, 2)
]  # fmt: skip
HOSTILE = "</script><script>alert(\"1\")</script><img src=x onerror=y>|`a`\n[b](javascript:c) *d* 'e'"


def rows_in(bench: dict[str, Any]) -> list[Row]:
    return rows_of(bench["subjects"], bench["settings"])


def csv_in(bench: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of(bench))))


def labelled(bench: dict[str, Any], label: str) -> dict[str, Any]:
    return next(subject for subject in bench["subjects"] if subject["label"] == label)


def page_of(bench: dict[str, Any], folder: Path, **options: Any) -> Page:
    return Page(write_report(folder / "report.html", bench=bench, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return make_results(**SMALL)


@pytest.fixture(scope="module")
def bare() -> dict[str, Any]:
    """Everything that can be missing is."""
    return make_results(**SMALL, without=frozenset(PARTS))


@pytest.fixture(scope="module")
def full_text(full: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = write_report(tmp_path_factory.mktemp("page") / "report.html", bench=full, history=HISTORY)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full_page(full_text: str) -> Page:
    return Page(full_text)


def test_made_up_results_are_json_and_the_same_for_the_same_seed(full: dict[str, Any]) -> None:
    text = json.dumps(full, allow_nan=False)
    assert text == json.dumps(make_results(**SMALL), allow_nan=False)
    assert text != json.dumps(make_results(**SMALL, seed=1), allow_nan=False)


def test_rows_hold_the_new_figures(full: dict[str, Any]) -> None:
    rows = {row.label: row for row in rows_in(full)}
    row, subject = rows["onnx int8"], labelled(full, "onnx int8")
    first = subject["batches"][0]
    assert (row.device, row.threads, row.group) == ("cpu", 4, "onnx int8")
    assert row.cold_p50_ms == first["cold"]["percentiles_ns"]["p50"] / 1e6
    assert row.mj_per_image == first["energy"]["mj_per_image"]
    assert row.net_mj_per_image == first["energy"]["net_mj_per_image"]
    assert (row.roofline, row.worst_layer) == (subject["roofline"]["share"], subject["roofline"]["worst"])
    assert rows["pt2 fp32"].worst_layer is None
    assert row.setup == "onnxruntime, cpu, 4 threads"
    assert rows["trt fp16"].setup == "tensorrt, cuda"


def test_rows_of_results_without_the_new_figures_have_none(bare: dict[str, Any]) -> None:
    for row in rows_in(bare):
        assert (row.cold_p50_ms, row.mj_per_image, row.net_mj_per_image) == (None, None, None)
        assert (row.roofline, row.worst_layer) == (None, None)


def test_a_sweep_is_grouped_by_artifact() -> None:
    bench = make_results(**SMALL, threads=(1, 2, 4))
    rows = rows_in(bench)
    fastest = fastest_of_each(rows)
    assert [row.group for row in fastest] == [kind.label for kind in KINDS]
    assert all("thread" not in row.group for row in rows)
    own = [row for row in rows if row.group == "onnx int8"]
    assert [row.threads for row in own] == [1, 2, 4]
    assert next(row for row in fastest if row.group == "onnx int8") is min(own, key=lambda row: row.p50_ms or 0)
    assert threads_of(bench) == "1, 2 and 4 threads"
    assert len(open_points(rows)) == 2
    assert open_points(rows)[0][0] == "ts fp32"
    assert headline(rows).startswith("8 of 9 artifacts proved; 26 of 26 subjects measured")


def test_fastest_of_each_prefers_what_is_valid() -> None:
    bench = make_results(**SMALL, threads=(1, 2))
    entry = bench["subjects"][1]["batches"][0]
    entry["valid"], entry["reasons"] = False, ["noisy"]
    assert fastest_of_each(rows_in(bench))[0].threads == 1


def test_two_files_of_one_label_are_told_apart(full: dict[str, Any], tmp_path: Path) -> None:
    bench = copy.deepcopy(full)
    other = copy.deepcopy(bench["subjects"][3])
    other |= {"file": "artifacts/again.onnx", "sha256": "ff"}
    bench["subjects"].append(other)
    rows = rows_in(bench)
    assert rows[3].label == "onnx fp32 (alexnet_fp32.onnx)"
    assert rows[-1].label == "onnx fp32 (again.onnx)"
    assert len({row.group for row in rows}) == len(rows)
    styles = plots.styles_of(rows)
    assert styles[rows[3].group] != styles[rows[-1].group]


def test_verdict_takes_only_what_is_proved_and_valid(full: dict[str, Any]) -> None:
    rows = rows_in(full)
    best = fastest_proved(rows)
    assert best is not None
    assert best.label == "trt fp16"  # trt int8 is faster and fails its proof
    assert "trt fp16" in verdict(rows, full["settings"])
    bench = copy.deepcopy(full)
    labelled(bench, "trt fp16")["batches"][0] |= {"valid": False, "reasons": ["throttled"]}
    assert "openvino int8" in verdict(rows_in(bench), bench["settings"])


def test_verdict_claims_no_speed_up_that_is_not_shown(full: dict[str, Any]) -> None:
    bench = copy.deepcopy(full)
    bench["subjects"] = [bench["subjects"][0], labelled(bench, "onnx int8")]
    for interval, text in (([1.2, 1.6], "1.4 times as fast"), ([0.9, 1.9], "about as fast"), ([0.7, 0.9], "slower")):
        bench["subjects"][1]["batches"][0]["speed_up"] |= {"ratio": 1.4, "interval": interval}
        assert text in verdict(rows_in(bench), bench["settings"])


def test_verdict_of_nothing_proved_or_nothing_valid() -> None:
    bench = make_results(**SMALL, kinds=kinds_with_error())
    rows = rows_in(bench)
    expected = "2 of 2 artifacts answer as the checkpoint does; none is validly timed yet"
    assert verdict(rows, bench["settings"]) == expected
    assert fastest_proved(rows) is None
    for subject in bench["subjects"]:
        subject["parity"] = {}
    assert "none can be advised" in verdict(rows_in(bench), bench["settings"])


def test_the_layer_with_most_time_above_its_floor_is_named(full: dict[str, Any]) -> None:
    rows = rows_in(full)
    text = worst_overall(rows, full["subjects"])
    above = {
        (layer["name"], subject["label"]): layer["above_ns"]
        for subject in full["subjects"]
        for layer in subject["roofline"]["layers"]
        if layer["above_ns"] is not None
    }
    name, label = max(above, key=lambda key: above[key])
    assert f"of all subjects: {name} of {label}, {show_ms(above[name, label] / 1e6)} ms" in text
    best = max((key for key in above if key[1] == "trt fp16"), key=lambda key: above[key])
    assert f"{best[0]} of trt fp16 (fastest proved)" in text


def test_no_layer_is_named_where_none_was_timed(bare: dict[str, Any]) -> None:
    assert worst_overall(rows_in(bare), bare["subjects"]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NOT_AVAILABLE), (0, "0"), (1234.5, "1234"), (99.96, "100"), (12.34, "12.3"), (9.996, "10.0"), (1.0, "1.00"),
        (0.0558, "0.0558"), (0.5, "0.500"), (0.00001, "<0.0001"), (999.6, "1000"),
    ],
)  # fmt: skip
def test_three_digits(value: float | None, text: str) -> None:
    assert show_ms(value) == text


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from numbers_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_of(inner)


def test_every_figure_in_the_tables_is_in_the_results(full: dict[str, Any], full_page: Page) -> None:
    known = {0.0} | set(numbers_of(full))
    harness = full["harness"]
    fastest = min(subject["batches"][0]["percentiles_ns"]["p50"] for subject in full["subjects"])
    known |= {100 * harness[key]["p50"] / fastest for key in ("sample_ns", "loadgen_query_ns")}
    shown = {
        text.lstrip("-")
        for value in known
        for scaled in (value, value / 1e3, value / 1e6, value / 1e9, 100 * value)
        for text in (show_ms(scaled), f"{scaled:.1f}", f"{scaled:.2f}", f"{scaled:.0f}", f"{scaled:.1e}", f"{scaled:.4g}",
                     f"{scaled:.2g}")
    }  # fmt: skip
    checked = 0
    for cell in full_page.cells:
        figure = re.sub(r"batch \d+|\d+ in flight|90th|p\d+|G multiply-adds|top.1|\d+ ms exceeded", "", cell)
        if re.search(r"[A-Za-z]{2}", figure.split()[0] if figure.split() else "x"):
            continue  # names and reasons
        for number in re.findall(r"\d[\d,]*\.?\d*(?:e[+-]\d+)?", figure):
            checked += 1
            assert number.replace(",", "") in shown, f"{number} of {cell!r} is not in the results"
    assert checked > 500


def with_change(bench: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    result = copy.deepcopy(bench)
    change(labelled(result, "trt fp16"))
    return result


@pytest.mark.parametrize(
    ("where", "change", "text"),
    [
        ("cold", lambda one: one["batches"][0]["cold"]["percentiles_ns"].update(p50=777.1e6), "777"),
        ("energy", lambda one: one["batches"][0]["energy"].update(mj_per_image=888.2), "888"),
        ("net energy", lambda one: one["batches"][0]["energy"].update(net_mj_per_image=889.2), "889"),
        ("idle", lambda one: one["batches"][0]["energy"].update(idle_watts=6.66), "6.66"),
        ("clocks", lambda one: one["batches"][0]["energy"]["clocks"].update(GPU=[333.0, 444.0]), "GPU 333–444 MHz"),
        ("roofline", lambda one: one["roofline"].update(share=0.1234), "12.3"),
        ("layer", lambda one: one["roofline"]["layers"][0].update(measured_ns=456.7e6), "457"),
        ("h2d", lambda one: one["batches"][0]["device"]["h2d_ns"].update(p50=555.4e6), "555"),
        ("graph", lambda one: one["batches"][0]["device"]["graph"]["compute_ns"].update(p50=556.4e6), "556"),
        ("pipelined", lambda one: one["batches"][0]["pipelined"].update(images_per_s=54321.0), "54321"),
        ("scenario", lambda one: one["scenarios"].append(make_results(**SMALL)["subjects"][5]["scenarios"][1]),
         "latency bound of 15 ms exceeded"),
        ("load", lambda one: one["rounds"][0].update(load_ns=999.9e9), "999900"),
        ("first", lambda one: one["rounds"][0].update(first_ns=998.8e9), "998800"),
    ],
)  # fmt: skip
def test_each_figure_is_read_from_the_results(
    full: dict[str, Any], tmp_path: Path, where: str, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    bench = with_change(full, change)
    page = page_of(bench, tmp_path)
    assert text in page.text, where
    if where != "layer":  # Markdown has no plots and no panels
        assert text in markdown_of(bench), where


def test_no_figure_is_nan_or_none(full_text: str, full: dict[str, Any], bare: dict[str, Any]) -> None:
    data = "".join(re.findall(r"Plotly\.newPlot\((.*?)\)\s*\}", full_text, re.DOTALL))
    for text in (Page(full_text).text, data, markdown_of(full), markdown_of(bare), csv_of(full), csv_of(bare)):
        assert not re.search(r"\b(nan|NaN|None|inf|Infinity)\b", text)


def test_what_is_unavailable_is_said_with_its_reason_and_is_no_zero(bare: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(bare, tmp_path)
    for text in (page.text, markdown_of(bare).replace("\\", "")):
        for what in (
            "roofline: unavailable: not measured",
            "scenarios: unavailable: not measured",
            "device clock: unavailable: the processor answers at once",
            "peaks: unavailable: not measured",
            "harness overhead: unavailable: not measured",
            "cold cache: unavailable: switched off",
        ):
            assert what in text
    assert "meter unavailable: this machine has no power meter" in page.text
    assert not {"Roofline", "On the device's clock", "What measuring costs"} & set(page.headings)
    for cell in page.cells:
        assert cell.split()[:1] not in (["0"], ["0.0"], ["0.00"], ["0.000"])


def test_columns_of_nothing_are_left_out(full: dict[str, Any], bare: dict[str, Any]) -> None:
    def heads(bench: dict[str, Any]) -> set[str]:
        return {column.head for column in scorecard(rows_in(bench), bench["settings"]).columns}

    assert heads(full) - heads(bare) == {"cold p50", "roofline", "energy"}
    assert {"subject", "proof", "measured", "p50", "load", "file"} <= heads(bare)


def test_csv_says_why(bare: dict[str, Any]) -> None:
    for row in csv_in(bare):
        if row["measured"] == "not run":
            assert row["p50_ns"] == row["batch"] == row["load_ms"] == ""
            continue
        assert row["cold_p50_ns"] == row["energy_watts"] == row["device_compute_p50_ns"] == row["floor_ns"] == ""
        assert "cold: switched off" in row["unavailable"]


def test_energy_that_is_partly_known(full: dict[str, Any], tmp_path: Path) -> None:
    unknown: dict[str, Any] = {"clocks": {}, "reasons": ["idle power was not measured"]}
    unknown |= dict.fromkeys(("net_mj_per_image", "idle_watts", "temperature_c"))
    bench = with_change(full, lambda one: one["batches"][0]["energy"].update(unknown))
    assert "idle power was not measured" in page_of(bench, tmp_path).text
    bench["power"]["idle"] = {"watts": None, "reasons": ["two samples in the window"]}
    assert "idle unavailable: two samples in the window" in page_of(bench, tmp_path).text


def test_device_phases_that_are_partly_known(full: dict[str, Any], tmp_path: Path) -> None:
    bench = with_change(full, lambda one: one["batches"][0]["device"].update(h2d_ns=None, graph=None))
    bench = with_change(bench, lambda one: one["batches"][0]["unavailable"].update(graph="capture failed"))
    text = page_of(bench, tmp_path).text
    assert "graph: unavailable: capture failed (trt fp16 at batch 1)" in text


def test_layers_without_a_floor_or_a_time(full: dict[str, Any], tmp_path: Path) -> None:
    def change(subject: dict[str, Any]) -> None:
        layer = subject["roofline"]["layers"][2]
        layer |= {"measured_ns": None, "above_ns": None, "share": None, "compute_floor_ns": None}

    page = page_of(with_change(full, change), tmp_path)
    assert f"{NOT_AVAILABLE} (" in page.text


def test_markdown_tables_are_rectangular_and_complete(full: dict[str, Any]) -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", markdown_of(full), re.MULTILINE)
    for block in blocks:
        lines = block.splitlines()
        assert re.fullmatch(r"\|( -+:? \|)+", lines[1])
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    tables = [table for table in every_table(full, rows_in(full), full["subjects"]) if table.rows]
    assert len(blocks) == 1 + len(tables) == 9


def test_csv_has_a_line_per_subject_and_batch(full: dict[str, Any]) -> None:
    rows = csv_in(full)
    entries = [(subject, entry) for subject in full["subjects"] for entry in subject["batches"]]
    assert len(rows) == len(entries)
    for row, (subject, entry) in zip(rows, entries, strict=True):
        assert (row["label"], int(row["batch"])) == (subject["label"], entry["batch"])
        assert (row["device"], row["threads"]) == (subject["device"], str(subject["threads"]))
        assert float(row["p50_ns"]) == entry["percentiles_ns"]["p50"]
        assert float(row["cold_p50_ns"]) == entry["cold"]["percentiles_ns"]["p50"]
        assert float(row["energy_mj_per_image"]) == entry["energy"]["mj_per_image"]
        assert row["speed_up"] == (str(entry["speed_up"]["ratio"]) if entry["speed_up"] else "")
        if subject["format"] == "trt":
            assert float(row["device_h2d_p50_ns"]) == entry["device"]["h2d_ns"]["p50"]
            assert float(row["pipelined_images_per_s"]) == entry["pipelined"]["images_per_s"]
        if entry["batch"] == 1:
            assert float(row["floor_ns"]) == subject["roofline"]["floor_ns"]
            assert float(row["roofline"]) == subject["roofline"]["share"]
        else:
            assert row["floor_ns"] == row["roofline"] == ""


def hostile_results() -> dict[str, Any]:
    bench = make_results(**SMALL, interrupted=True)
    for number, subject in enumerate(bench["subjects"]):
        subject["label"] = f"={number} {HOSTILE}"
        subject["file"] = f"artifacts/{number}{HOSTILE}.onnx"
        subject["runtime"] = HOSTILE
        subject["roofline"]["notes"] = [HOSTILE]
        subject["roofline"]["worst"] = subject["roofline"]["layers"][0]["name"]
        for entry in subject["batches"]:
            entry["reasons"] = [HOSTILE]
            entry["unavailable"] = dict.fromkeys(("cold", "device", "graph", "pipelined", "energy"), HOSTILE)
        for layer in subject["layers"]:
            layer["evidence"] = HOSTILE
        for scenario in subject["scenarios"]:
            scenario |= {"summary": HOSTILE, "reasons": [HOSTILE], "scenario": HOSTILE}
    bench["subjects"][4]["error"] = HOSTILE
    bench["subjects"][5]["skipped"] = HOSTILE
    bench["power"] |= {"reason": HOSTILE, "meter": HOSTILE, "set": HOSTILE}
    bench["command"] = [HOSTILE]
    bench["environment"]["cpu"] = HOSTILE
    bench["harness"]["unavailable"] = HOSTILE
    return bench


def test_page_shows_hostile_text_and_obeys_none_of_it(full_page: Page, tmp_path: Path) -> None:
    out = write_report(tmp_path / "report.html", bench=hostile_results(), title=HOSTILE, commands=[HOSTILE])
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == page.handlers == []
    assert "img" not in page.tags
    assert '<script>alert("1")' not in text
    assert " ".join(HOSTILE.split()) in page.text
    data = "".join(re.findall(r"Plotly\.newPlot\((.*?)\)\s*\}", text, re.DOTALL))
    assert "lt;img" in data, "plotly shows tags of its own in labels: they are escaped"
    assert "<img" not in data
    assert not re.search(r"\\u003c(?:/|\\u002f)?(?:scr|img)", data)


def test_markdown_shows_hostile_text_and_obeys_none_of_it() -> None:
    for line in markdown_of(hostile_results()).splitlines():
        bold = line.removeprefix("**").removesuffix("**")
        assert not re.search(r"(?<!\\)[<>\[\]`]|(?<!\\)\*", bold), line
        if not line.startswith("|"):
            assert not re.search(r"(?<!\\)\|", line), line


def test_csv_keeps_hostile_text_in_its_cell() -> None:
    bench = hostile_results()
    rows = csv_in(bench)
    entries = [(subject, entry) for subject in bench["subjects"] for entry in subject["batches"]]
    assert len(rows) == len(entries)
    for row, (subject, _) in zip(rows, entries, strict=True):
        assert None not in row.values()
        assert row["label"] == f"'{subject['label']}"  # no formula
        assert row["reasons"] == HOSTILE


def test_page_has_every_part(full: dict[str, Any], full_page: Page) -> None:
    names = ("tradeoff", "distribution", "throughput", "batch-latency", "training", "training-accuracy",
             "training-rate", "training-gradient", "training-speed")  # fmt: skip
    assert {f"plot-{name}" for name in names} == {name for name in full_page.ids if name.startswith("plot-")}
    for heading in (
        "What is not proved, or not validly measured", "Scorecard", "Roofline", "Layer by layer", "MLPerf LoadGen scenarios",
        "On the device's clock", "Power and thermals", "Power and energy", "The machine meanwhile", "Every batch",
        "What measuring costs", "What the machine can do", "Precision built, layer by layer", "INT8 calibration",
        "How it was measured", "Machine", "How to repeat", "Files",
    ):  # fmt: skip
        assert heading in full_page.headings
    for subject in full["subjects"]:
        assert subject["label"] in full_page.text
        assert subject["sha256"] in full_page.text
        for scenario in subject["scenarios"]:
            assert " ".join(scenario["summary"].split()) in full_page.text
    assert full_page.text.index("Fastest proved: trt fp16") < full_page.text.index("What is not proved")


def test_training_curves_are_those_of_the_history() -> None:
    drawn = {plot.name: plot for plot in plots.training(HISTORY)}
    for name, values in {
        "training": ["[1.0,1.0]", "[1.1,1.1]"],
        "training-accuracy": ["[50.0,50.0]", "[40.0,40.0]"],
        "training-rate": ["[0.01,0.005]"],
        "training-gradient": ["[1.5,3.0]"],
        "training-speed": ["[100.0,100.0]"],
    }.items():
        assert [text for text in values if f'"y":{text}' in drawn[name].html] == values
        assert len(drawn[name].key) == (2 if len(values) == 2 else 0)
    assert "Steps waited for images 1.5 % of their time." in drawn["training-speed"].caption
    early = [{key: row[key] for key in ("epoch", "loss", "val_loss", "accuracy", "top1")} for row in HISTORY]
    assert [plot.name for plot in plots.training(early)] == ["training", "training-accuracy"], "by an earlier version"


def test_page_loads_nothing(full_text: str, full_page: Page) -> None:
    assert full_page.loads == full_page.handlers == []
    assert full_page.tags.count("script") - full_page.tags.count("figure") <= 14
    styles = " ".join(re.findall(r"<style>(.*?)</style>", full_text, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert full_text.count("plotly.js v") == 1, "the library is there once"


def test_page_of_a_sweep_has_threads_and_folds_the_rest(tmp_path: Path) -> None:
    bench = make_results(**SMALL, threads=(1, 2, 4))
    page = page_of(bench, tmp_path)
    assert "plot-threads" in page.ids
    assert "Every number of threads: 26 subjects" in page.text
    assert "details" in page.tags
    for subject in bench["subjects"]:
        assert subject["label"] in page.text


def test_page_of_unfinished_and_failed_results(tmp_path: Path) -> None:
    bench = make_results(**SMALL, kinds=kinds_with_error())
    bench["finished"] = False
    page = page_of(bench, tmp_path)
    assert "the bench did not finish" in page.text
    assert "SIGKILL" in page.text
    assert "coefficient of variation 31%" in page.text
    assert "did not finish" in markdown_of(bench)


def test_page_of_long_labels(full: dict[str, Any], tmp_path: Path) -> None:
    bench = with_change(full, lambda one: one.update(label="trt fp16 " + "of a very long name " * 12))
    text = write_report(tmp_path / "report.html", bench=bench).read_text(encoding="utf-8")
    assert bench["subjects"][8]["label"].strip() in Page(text).text
    data = "".join(re.findall(r'"categoryarray":\[(.*?)\]', text))
    assert data
    assert all(len(name) <= 40 for name in data.split(","))


def test_page_without_one_measured_subject(tmp_path: Path) -> None:
    bench = make_results(**SMALL, kinds=(KINDS[8], KINDS[9]), without=frozenset({"gpu"}))
    page = page_of(bench, tmp_path)
    assert not [name for name in page.ids if name.startswith("plot-")]
    assert "No artifact is proved" in page.text


def test_styles_differ_and_stay_the_same_in_every_plot(full_text: str) -> None:
    bench = make_results(**SMALL, threads=(1, 2))
    rows = rows_in(bench)
    styles = plots.styles_of(rows)
    assert len({(one.colour, one.marker) for one in styles.values()}) == len(styles) == len(KINDS)
    assert styles["onnx int8"].colour == styles["onnx fp32"].colour
    assert styles["onnx int8"].marker == styles["openvino int8"].marker != styles["onnx fp32"].marker
    timed = [(row, subject) for row, subject in zip(rows, bench["subjects"], strict=True) if subject["batches"]]
    threads = plots.over_threads(timed, bench["settings"], styles)
    assert threads is not None
    for plot in (*plots.over_batch(timed, styles), threads):
        assert plot.key
        for label, style in plot.key:
            assert styles[label] == style
            assert style.colour in plot.html


def tradeoff_of(bench: dict[str, Any]) -> plots.Plot:
    rows = rows_in(bench)
    plot = plots.tradeoff(rows, plots.styles_of(rows))
    assert plot is not None
    return plot


def test_only_what_is_proved_and_valid_is_on_the_front(full: dict[str, Any]) -> None:
    rows = rows_in(full)
    plot = tradeoff_of(full)
    assert "trt int8 (not proved)" in plot.html
    assert "ts fp32 (invalid)" in plot.html
    assert "Beyond chance (McNemar's test, 5 %) only trt int8" in plot.caption
    front = re.search(r'"mode":"lines","x":\[([^\]]*)\]', plot.html)
    assert front is not None
    fastest, best = (next(row for row in rows if row.label == label) for label in ("trt fp16", "openvino int8"))
    assert [float(value) for value in front.group(1).split(",")] == [fastest.p50_ms, best.p50_ms]


@pytest.mark.parametrize("fault", ["invalid", "unproved"])
def test_what_is_invalid_or_unproved_leaves_the_front(full: dict[str, Any], fault: str) -> None:
    def change(subject: dict[str, Any]) -> None:
        if fault == "invalid":
            subject["batches"][0] |= {"valid": False, "reasons": ["throttled"]}
        else:
            subject["parity"]["verdict"] = "failed"

    plot = tradeoff_of(with_change(full, change))
    assert '"mode":"lines"' not in plot.html, "openvino int8 is then the fastest and the most accurate"


def test_agreement_stands_in_for_accuracy_that_nobody_labelled(full: dict[str, Any]) -> None:
    bench = copy.deepcopy(full)
    for subject in bench["subjects"]:
        for name in ("candidate_accuracy", "reference_accuracy"):
            subject["parity"].get("figures", {}).pop(name, None)
    assert "top-1 agreement with the checkpoint" in tradeoff_of(bench).caption


def test_no_plot_without_data(bare: dict[str, Any]) -> None:
    rows = rows_in(bare)
    styles = plots.styles_of(rows)
    timed = [(row, subject) for row, subject in zip(rows, bare["subjects"], strict=True) if subject["batches"]]
    assert plots.over_threads(timed, bare["settings"], styles) is None
    one_batch = make_results(samples=60, batches=(1,))
    rows = rows_in(one_batch)
    assert plots.over_batch(list(zip(rows, one_batch["subjects"], strict=True)), plots.styles_of(rows)) == []
    assert plots.tradeoff([], {}) is None
