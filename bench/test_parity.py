"""Every artifact gives the checkpoint's answers. The proof itself is what is benchmarked, so that it runs under
`--benchmark-only` and fails there when an answer is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from alexnet_edge.artifact import Artifact
from alexnet_edge.bench.suite import Case
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.proof.parity import check_parity


@pytest.mark.benchmark(group="proof")
def test_parity(
    benchmark: Any,
    artifact_case: Case,
    artifact_of: Callable[[Case], Artifact],
    reference_NK: FloatArray,
    images: ImageSet,
) -> None:
    artifact = artifact_of(artifact_case)
    report = benchmark.pedantic(
        check_parity,
        args=(artifact, reference_NK, images),
        kwargs={"device": artifact_case.device},
        rounds=1,
        iterations=1,
    )
    benchmark.extra_info.update(
        label=artifact.label, file=str(artifact.path), sha256=artifact.manifest.sha256, **report.to_json()
    )
    report.require(artifact.path)
