"""Profiles an engine over the strict stand-ins of one release: `python node_times.py JOB.json`.

The stand-in for the context calls the profiler as TensorRT does: while `enqueue` runs where `enqueue_emits_profile` is set,
otherwise when it is asked to report, and then only for what has run since.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
from contract.drive import SIZE, Job

from alexnet_edge.errors import UserError
from alexnet_edge.sessions.tensorrt import TensorRTSession

LAYERS = {"Reformatting CopyNode for Input Tensor 0 to conv1": 0.25, "conv1 + conv1/relu": 1.5, "fc8": 0.5}
"""Milliseconds of each layer in the first profiled inference; every further one takes a millisecond longer."""


def main() -> None:
    warnings.simplefilter("error")
    job = Job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    fakes, scripts = job.fakes, job.fakes.scripts
    execute = scripts["IExecutionContext", "execute_async_v3"]
    state: dict[str, Any] = {"pending": 0, "reported": 0, "emitted": 0, "refuse": False}

    def enqueue(context: Any, stream_handle: int) -> bool:
        done = bool(execute(context, stream_handle))
        profiler = fakes.values(context).get("profiler")
        if profiler is not None:
            state["pending"] += 1
            if fakes.values(context).get("enqueue_emits_profile", True):
                state["emitted"] += 1
        return done

    def report(context: Any) -> bool:
        if state["refuse"]:
            return False
        assert state["pending"] == 1, "one report per inference"
        state["pending"] = 0
        for name, ms in LAYERS.items():
            fakes.values(context)["profiler"].report_layer_time(name, ms + state["reported"])
        state["reported"] += 1
        return True

    scripts["IExecutionContext", "execute_async_v3"] = enqueue
    scripts["IExecutionContext", "report_to_profiler"] = report
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        job.simulation.reset()
        job.gpu.reset()
        x_NCHW = np.ones((2, 3, SIZE, SIZE), np.float32)
        artifact = job._engine(Path(folder), b"an engine", {})
        with TensorRTSession(artifact, cuda_graph="graph" in sys.argv[2:]) as session:
            before_NK = session.run(x_NCHW)
            session.run(x_NCHW)
            launches = job.gpu.calls.count("cudaGraphLaunch")
            nodes = session.node_times(x_NCHW, runs=3) or []
            answer["graph_launches"] = job.gpu.calls.count("cudaGraphLaunch") - launches
            answer["nodes"] = [[node.name, node.kind, node.ns] for node in nodes]
            try:
                session.enqueue()
            except UserError as error:
                answer["not_prepared"] = str(error)
            answer["same_answers"] = bool((session.run(x_NCHW) == before_NK).all())
            profilers = fakes.record.values("IExecutionContext", "profiler")
            answer["profiled_after"] = state["pending"]
            state["refuse"] = True
            try:
                session.node_times(x_NCHW, runs=1)
            except UserError as error:
                answer["refused"] = str(error)
            answer["answers_after_refusal"] = bool((session.run(x_NCHW) == before_NK).all())
    answer |= {"emitted": state["emitted"], "reported": state["reported"], "profilers": len(profilers)}
    answer |= {"held": job.gpu.held(), "faults": list(fakes.record.faults)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
