"""Every kind of file is read as what it says, and no damaged one as anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from results_files import a_subject, an_entry, results_of, times_of_trtexec

from alexnet_edge.bench.report import foreign
from alexnet_edge.bench.report.compare import compare
from alexnet_edge.bench.report.foreign import read_measurements
from alexnet_edge.bench.report.measurement import Key, Measurement
from alexnet_edge.bench.rounds import results as own
from alexnet_edge.errors import UserError

DATA = Path(__file__).parents[1] / "data" / "compare"


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def entry(**changes: Any) -> dict[str, Any]:
    value = an_entry([[10, 20, 30], [20, 20, 40]], 20, **changes)
    value["percentiles_ns"] |= {"p90": 30, "p95": None}
    return value


def subject(**changes: Any) -> dict[str, Any]:
    figures = {"candidate_accuracy": 0.9, "top1_agreement": 0.99}
    return a_subject(entry(), **{"sha256": "a" * 64, "parity": {"figures": figures}, **changes})


def results(*subjects: dict[str, Any], **changes: Any) -> dict[str, Any]:
    clocks = {"locked": True, "gpu_mhz": [1, 2, 3]}
    value = results_of(*subjects, **{"pinned_cpus": [0, 1], **changes})
    value["power"]["mode"]["jetson_clocks"] = clocks
    return value


def by_what(found: list[Measurement]) -> dict[str, Measurement]:
    assert len({one.key.what for one in found}) == len(found)
    return {one.key.what: one for one in found}


def test_own_results_have_samples_by_round_and_conditions(tmp_path: Path) -> None:
    (one,) = read_measurements(write(tmp_path / "r.json", results(subject())))
    assert one.key == Key(format="onnx", precision="fp32", device="cpu", threads=2, batch=1, what="host end-to-end")
    assert one.label == "onnx fp32"
    assert one.file == "alexnet_fp32.onnx"
    assert one.rounds == ((10, 20, 30), (20, 20, 40))
    assert one.median_ns == 20
    assert one.figures == {"p50": 20, "p90": 30}
    assert one.verdict == "VALID"
    assert (one.bytes, one.accuracy, one.agreement, one.mj_per_image) == (1000, 0.9, 0.99, None)
    assert one.versions == {"onnxruntime": "1.20"}
    assert one.conditions == {
        "clock": "host end-to-end",
        "definition": "as alexnet-edge measures",
        "processor": "Some CPU",
        "processors": "2",
        "GPU": None,
        "power mode": "MAXN, clocks locked",  # the megahertz are a reading
        "frequency governor": None,
        "pinned processors": "[0, 1]",
        "inputs": {"key": "b" * 64},
    }


def test_every_clock_of_an_entry_is_a_measurement(tmp_path: Path) -> None:
    phases = {"h2d_ns": [1, 2], "compute_ns": [10, 20], "d2h_ns": [3, 4]}
    value = entry(
        energy={"mj_per_image": 7.5},
        cold={"percentiles_ns": {"p50": 99}, "verdict": "INVALID", "reasons": ["too few samples"]},
        cold_samples=[{"samples_ns": [98, 100]}],
        device={"latency_ns": {"p50": 19}, "compute_ns": {"p50": 15}, "graph": {"compute_ns": {"p50": 12}}},
        device_samples=[phases],
        pipelined={"in_flight": 2, "queries_per_s": 1e8},
    )
    gpu = results(subject(device="cuda", batches=[value]))
    gpu["environment"]["gpu"] = {"name": "Orin"}
    found = by_what(read_measurements(write(tmp_path / "r.json", gpu)))
    assert found["host end-to-end"].mj_per_image == 7.5
    assert found["cold"].rounds == ((98, 100),)
    assert (found["cold"].verdict, found["cold"].reasons) == ("INVALID", ("too few samples",))
    assert found["device"].rounds == ((14, 26),)
    assert found["device compute"].rounds == ((10, 20),)
    assert found["device compute, CUDA graph"].median_ns == 12
    assert (found["pipelined"].rounds, found["pipelined"].median_ns) == ((), 10)
    assert found["pipelined"].conditions["definition"] == "as alexnet-edge measures, 2 in flight"
    assert {one.conditions["GPU"] for one in found.values()} == {"Orin"}
    assert found["cold"].mj_per_image is None


def test_without_transfers_the_latency_is_the_compute_time(tmp_path: Path) -> None:
    phases = {"h2d_ns": None, "compute_ns": [10, 20], "d2h_ns": None}
    value = entry(device={"latency_ns": {"p50": 15}, "compute_ns": {"p50": 15}, "graph": None}, device_samples=[phases])
    path = write(tmp_path / "r.json", results(subject(device="cuda", batches=[value]), settings={"like": "trtexec-11"}))
    found = by_what(read_measurements(path))
    assert found["device"].rounds == ((10, 20),)
    assert "transfers off, spin-wait on, CUDA graph on" in found["device"].conditions["definition"]
    assert found["host end-to-end"].conditions["definition"] == "as alexnet-edge measures like trtexec-11"


def test_subjects_that_did_not_run_say_why(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.json",
        results(
            subject(error="out of memory", batches=[]),
            subject(skipped="no GPU", precision="fp16", batches=[]),
            interrupted=True,
        ),
    )
    first, second = read_measurements(path)
    assert (first.verdict, first.reasons, first.median_ns) == ("ERROR", ("out of memory",), None)
    assert (second.verdict, second.reasons) == ("NOT RUN", ("no GPU",))
    assert first.notes == ("it did not finish: only what was measured by then",)


def test_recorded_times_of_trtexec_8() -> None:
    found = by_what(read_measurements(DATA / "times-8.json"))
    assert found.keys() == {"device", "device compute"}
    one = found["device compute"]
    assert len(one.rounds[0]) == 6  # all of it is warm-up: leaving out everything would leave nothing
    assert one.rounds[0][1] == pytest.approx(442369)
    assert one.key.format == "trt"
    assert one.key.batch is None
    assert one.conditions["definition"] is None
    assert one.conditions["seen in the trace"] == "transfers off, fields h2d, d2h"
    assert "TensorRT 10 and 11 time different things by default" in one.notes[-1]


def test_older_fields_and_the_warmup_in_the_trace() -> None:
    found = by_what(read_measurements(DATA / "times-7.json"))
    assert found["device"].rounds == (pytest.approx((569000, 559000)),)
    assert found["device compute"].rounds == (pytest.approx((510000, 500000)),)
    assert found["device"].conditions["seen in the trace"] == "transfers on, fields in, out, end to end"
    assert found["device"].notes[0] == "the first 1 of 3 inferences are trtexec's warm-up and left out"


def test_a_log_beside_the_times_tells_version_options_and_warmup(tmp_path: Path) -> None:
    times = write(tmp_path / "model-trained-exportTimes.json", times_of_trtexec(5))
    log = (DATA / "model-trained-exportTimes.log").read_text(encoding="utf-8")
    times.with_suffix(".log").write_text(log, encoding="utf-8")
    one = read_measurements(times)[0]
    assert one.versions == {"tensorrt": "11.0.0"}
    assert one.key.batch == 1
    assert one.conditions["GPU"] == "NVIDIA B200"
    assert one.conditions["definition"] == (
        "CUDA events as in trtexec: transfers off, spin-wait on, CUDA graph on, 1 stream"
    )
    assert one.notes == ("version and options from model-trained-exportTimes.log",)
    assert len(one.rounds[0]) == 5
    # it says how many of the trace are warm-up, which may be longer than the default
    told = log.replace("Warmup completed 3225", "Warmup completed 2").replace("trace has 48603", "trace has 3")
    times.with_suffix(".log").write_text(told, encoding="utf-8")
    assert len(read_measurements(times)[0].rounds[0]) == 3
    times.with_suffix(".log").write_text(told.replace("trace has 3", "trace has 5"), encoding="utf-8")
    assert len(read_measurements(times)[0].rounds[0]) == 5  # newer versions export none of the warm-up


def test_the_log_of_another_run_is_not_believed(tmp_path: Path) -> None:
    times = write(tmp_path / "other.json", times_of_trtexec(5))
    (tmp_path / "other.log").write_bytes((DATA / "model-trained-exportTimes.log").read_bytes())
    one = read_measurements(times)[0]
    assert one.conditions["definition"] is None
    assert "other.log lies beside it and is of another run" in one.notes


def test_a_log_may_be_named(tmp_path: Path) -> None:
    times = write(tmp_path / "t.json", times_of_trtexec(5))
    one = read_measurements(times, log=DATA / "trtexec-10.16.log")[0]
    assert one.versions == {"tensorrt": "10.16.0"}
    assert "transfers on, spin-wait off, CUDA graph off" in one.conditions["definition"]
    with pytest.raises(UserError, match="not a log of trtexec"):
        read_measurements(times, log=times)
    with pytest.raises(UserError, match="cannot read trtexec's log"):
        read_measurements(times, log=tmp_path / "nowhere.log")
    with pytest.raises(UserError, match="a log of trtexec belongs to its exported times"):
        read_measurements(write(tmp_path / "r.json", results(subject())), log=DATA / "trtexec-10.16.log")


@pytest.mark.parametrize("like", ["trtexec-10", "trtexec-11"])
def test_like_is_what_trtexec_of_that_version_does(tmp_path: Path, like: str) -> None:
    log = DATA / {"trtexec-10": "trtexec-10.16.log", "trtexec-11": "model-trained-exportTimes.log"}[like]
    times = read_measurements(write(tmp_path / "t.json", times_of_trtexec(5)), log=log)[0]
    value = entry(device={"latency_ns": {"p50": 15}, "compute_ns": {"p50": 15}, "graph": None})
    ours = results(subject(device="cuda", batches=[value]), settings={"like": like})
    found = by_what(read_measurements(write(tmp_path / "r.json", ours)))
    assert found["device"].conditions["definition"] == times.conditions["definition"]


def test_recorded_pytest_benchmark_of_other_tests() -> None:
    first, second = read_measurements(DATA / "pytest-benchmark-5.3.json")
    assert first.key.name == "test_sort.py::test_sort[100]"
    assert first.key.format is None
    assert len(first.rounds) == 1
    assert len(first.rounds[0]) == 12
    assert first.median_ns == pytest.approx(884.3, abs=0.1)
    assert first.conditions["clock"] == "pytest-benchmark, perf_counter"
    assert first.conditions["processor"] == "AMD EPYC"
    assert first.versions["pytest-benchmark"] == "5.3.1"
    assert second.rounds == ()
    assert second.median_ns is not None
    assert second.notes == ("without raw samples: saved without --benchmark-save-data",)


def own_benchmark(**changes: Any) -> dict[str, Any]:
    info = {
        **{name: value for name, value in subject().items() if name in ("label", "file", "format", "precision")},
        **{"batch": 1, "clock": "host end-to-end", "threads": 2, "details": {"device": "cpu"}, "verdict": "INVALID"},
        **{"reasons": ["noisy"], "bytes": 1000, "sha256": "a" * 64, "percentiles_ns": {"p50": 2000}},
        **changes,
    }
    return {
        "machine_info": {"cpu": {"brand_raw": "Some CPU", "count": 2}, "python_version": "3.11.7"},
        "benchmarks": [
            {
                "fullname": "bench/test_latency.py::test_latency[onnx-fp32-cpu]",
                "extra_info": info,
                "options": {"timer": "worker_perf_counter"},
                "stats": {"median": 2e-6, "data": [1e-6, 2e-6, 3e-6]},
            }
        ],
        "version": "5.3.1",
    }


def test_own_pytest_benchmark_is_the_same_measurement_as_in_own_results(tmp_path: Path) -> None:
    (one,) = read_measurements(write(tmp_path / "b.json", own_benchmark()))
    (same,) = read_measurements(write(tmp_path / "r.json", results(subject())))
    assert one.key == same.key
    assert {name: one.conditions[name] for name in ("clock", "definition", "processor")} == {
        name: same.conditions[name] for name in ("clock", "definition", "processor")
    }
    assert one.rounds == (pytest.approx((1000, 2000, 3000)),)
    assert (one.verdict, one.reasons) == ("INVALID", ("noisy",))


@pytest.mark.parametrize(("counts", "lengths"), [([1, 2], [1, 2]), ([1, 1], [3]), ([3, 0], [3]), (None, [3])])
def test_rounds_are_split_only_where_the_file_says(tmp_path: Path, counts: Any, lengths: list[int]) -> None:
    (one,) = read_measurements(write(tmp_path / "b.json", own_benchmark(samples_per_round=counts)))
    assert [len(values) for values in one.rounds] == lengths


def damaged() -> dict[str, bytes]:
    good = json.dumps(results(subject())).encode()
    benchmark = json.dumps(own_benchmark()).encode()
    times = json.dumps(times_of_trtexec(3)).encode()
    return {
        "empty": b"",
        "blank": b"  \n",
        "binary": bytes(range(256)),
        "cut short": good[: len(good) // 2],
        "text": b"hello",
        "number": b"7",
        "null": b"null",
        "empty list": b"[]",
        "list of numbers": b"[1, 2]",
        "empty object": b"{}",
        "another schema": good.replace(f'"schema": {own.SCHEMA}'.encode(), b'"schema": 99'),
        "no subjects": json.dumps(results()).encode(),
        "subjects are a number": json.dumps(results(subjects=3)).encode(),
        "nan elsewhere": good.replace(b'"cpus": 2', b'"cpus": NaN'),
        "nan sample": good.replace(b"[10, 20, 30]", b"[NaN, 20, 30]"),
        "infinite sample": good.replace(b"[10, 20, 30]", b"[1e999, 20, 30]"),
        "negative sample": good.replace(b"[10, 20, 30]", b"[-10, 20, 30]"),
        "sample of text": good.replace(b"[10, 20, 30]", b'["10", 20, 30]'),
        "sample of a year": good.replace(b"[10, 20, 30]", b"[31536000000000000, 20, 30]"),
        "true as a sample": good.replace(b"[10, 20, 30]", b"[true, 20, 30]"),
        "number of 5000 digits": b"[" + b"9" * 5000 + b"]",
        "nested too deep": b"[" * 100_000,
        "no benchmarks": b'{"benchmarks": []}',
        "benchmark without stats": b'{"benchmarks": [{"name": "x"}]}',
        "benchmark of nan": benchmark.replace(b"[1e-06,", b"[NaN,"),
        "benchmarks are a number": b'{"benchmarks": 3}',
        "times of text": times.replace(b'"computeMs": 0.1', b'"computeMs": "fast"'),
        "times of nothing": times.replace(b'"computeMs": 0.1', b'"computeMs": null'),
        "one time is no object": times.replace(b"]", b", 3]"),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_files_are_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(damaged()[name])
    with pytest.raises(UserError) as caught:
        read_measurements(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert ";" in str(caught.value)  # what is wrong; what to do


def test_missing_folder_and_huge_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot read it \(No such file"):
        read_measurements(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot read it"):
        read_measurements(tmp_path)
    monkeypatch.setattr(foreign, "MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match="too large to be a results file"):
        read_measurements(write(tmp_path / "r.json", results(subject())))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_field_may_be_anything(tmp_path: Path, data: st.DataObject) -> None:
    """One value somewhere in a good file is replaced: the file is read or refused in one line, and never crashes."""
    value: Any = data.draw(st.sampled_from([results(subject()), own_benchmark(), times_of_trtexec(3)]))
    value = json.loads(json.dumps(value))
    at = value
    while True:
        key = data.draw(st.sampled_from(sorted(at)) if isinstance(at, dict) else st.integers(0, len(at) - 1))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
        else:
            break
    at[key] = data.draw(JSON_VALUES)
    path = write(tmp_path / "x.json", value)
    problem = ""
    try:
        for one in read_measurements(path):
            assert one.median_ns is None or np.isfinite(one.median_ns)
        compare(path, path, force=True).markdown()
    except UserError as error:
        problem = str(error)
    assert "\n" not in problem
