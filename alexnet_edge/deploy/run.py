"""One device, from the preflight to the fetched report; a step that fails leaves the former release serving.

Preflight, lock, copy, stage, environment, build (with the precision read back and the proof), bench, switch, fetch, prune.
Everything is done over one connection. When it breaks, it is made again, and the device's journal says what is done.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet_edge import records
from alexnet_edge.artifact import decode_manifest
from alexnet_edge.deploy.board import RELEASE, REPORTS, STEPS, sha256_of
from alexnet_edge.deploy.bundle import Bundle
from alexnet_edge.deploy.link import Link, LinkSettings, number, printable
from alexnet_edge.deploy.plan import Manner
from alexnet_edge.deploy.preflight import Facts, Findings, cuda_requirement, judge
from alexnet_edge.environment import EMULATED_FIGURES
from alexnet_edge.errors import DeviceError, DisconnectedError, GateError, MissingComponentError
from alexnet_edge.files import MALFORMED, sha256_json, write_text
from alexnet_edge.progress import Reporter

MOST_REPORT_BYTES, MOST_LOG_BYTES = 64 << 20, 1 << 20
"""Largest report that is fetched; so much of the end of a log."""
LOCK_WAIT_S = 5.0
"""What a cut connection left on the device ends within so long."""
RETRY_S = 2.0
MOST_TRIES = 50
"""Connections of one deploy at most, however often they break."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployed:
    """What became of one device."""

    device: str
    release: str
    before: str | None
    """What served before."""
    state: Mapping[str, Any]
    """The release's journal, as the device has it."""
    reports: Path
    """Folder of what was fetched."""
    page: Path | None
    """The HTML report; None where there are no results to show."""
    seconds: float
    copied_bytes: int

    @property
    def emulated(self) -> str | None:
        """What emulates the device, as it says itself; None for a real one."""
        steps = self.state.get("steps")
        build = steps.get("build") if isinstance(steps, dict) else None
        emulator = build.get("emulated") if isinstance(build, dict) else None
        return printable(emulator, 80) if emulator else None

    def to_json(self) -> dict[str, Any]:
        return {**records.to_builtins(self), "seconds": round(self.seconds, 1), "emulated": self.emulated}


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What a deploy would do to one device: `--dry-run`."""

    device: str
    release: str
    findings: Findings
    serving: str | None
    missing_bytes: int
    steps: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        value = records.to_builtins(self)
        return {"device": value.pop("device"), "release": value.pop("release"), **value.pop("findings"), **value}


def plan_deploy(bundle: Bundle, link_settings: LinkSettings) -> Planned:
    """Look at a device and say what a deploy would do; nothing is written there. DeviceError when it cannot be reached."""
    with Link(link_settings) as link:
        findings, missing = _preflight(link, bundle)
        status = link.ask("status")
    serving = _name(status.get("current"))
    release = release_name(bundle, findings.facts)
    entries = (entry for entry in status.get("releases", ()) if isinstance(entry, dict) and entry.get("id") == release)
    steps_done = next(entries, {}).get("steps")
    done = steps_done if isinstance(steps_done, dict) else {}
    build, bench, source = bundle.build, bundle.bench, bundle.build["source"]
    words = {
        "copy": f"{missing / 1e6:.1f} MB of {bundle.bytes / 1e6:.1f} MB in {len(bundle.files)} files, each checked by SHA-256",
        "environment": f"Python with {', '.join((bundle.wheel, *_requirements(bundle, findings.facts)))}",
        "build": f"{build['precision']} from {source} there" if build["build"] else f"none: {source} runs as it is",
        "proof": f"precision of each layer, and the answers to {bundle.about['golden_images']} golden images",
        "bench": f"{bench['rounds']} rounds of {bench['seconds']:g} s" if bench["seconds"] else "not asked for",
        "switch": f"{link_settings.root}/current: {serving or 'nothing'} -> {release}",
        "fetch": ", ".join(REPORTS),
    }
    steps = tuple(f"{name}: {summary}{' (done already)' if name in done else ''}" for name, summary in words.items())
    return Planned(
        device=link_settings.destination,
        release=release,
        findings=findings,
        serving=serving,
        missing_bytes=missing,
        steps=steps,
    )


def deploy(bundle: Bundle, link_settings: LinkSettings, manner: Manner, *, reporter: Reporter) -> Deployed:
    """Bring one device to serve `bundle`; whatever fails, what served before serves on.

    Raises:
        DeviceError: when the device refuses, or cannot be reached; GateError when the artifact is not proved there.
    """
    return _Deploy(bundle=bundle, settings=link_settings, manner=manner, reporter=reporter).run()


@dataclass(kw_only=True, slots=True)
class _Deploy:
    bundle: Bundle
    settings: LinkSettings
    manner: Manner
    reporter: Reporter
    release: str = ""
    _step: str = "connecting"
    _serving: str | None = None
    _connected: bool = False
    _boot: str | None = None
    _copied: int = 0
    _started: float = field(default_factory=time.monotonic)
    _again: str = field(default_factory=lambda: str(time.time_ns()))

    def run(self) -> Deployed:
        deadline, tries = 0.0, 0
        while True:
            tries += 1
            try:
                with Link(self.settings) as link:
                    deadline = time.monotonic() + self.manner.reconnect_s
                    return self._attempt(link)
            except (DeviceError, GateError) as error:
                remaining_s = deadline - time.monotonic()
                again = self._connected and self.manner.reconnect_s > 0 and remaining_s > 0 and tries < MOST_TRIES
                if not isinstance(error, DisconnectedError) or not again:
                    raise self._with_serving(error) from error
                self.reporter.note(f"{self._step}: {error.problem}; connecting again")
                time.sleep(min(RETRY_S, remaining_s))

    def _with_serving(self, error: DeviceError | GateError) -> DeviceError | GateError:
        """The same error with what serves now, and how to look."""
        if not self._connected:
            return error
        serving = f"{self._serving} still serves" if self._serving else "nothing serves yet, as before"
        host, look = self.settings.destination, f"alexnet-edge deploy status {self.settings.destination}"
        if self._step in STEPS:
            look = f"ssh {host} tail -n 40 {self.settings.root}/releases/{self.release}/log.txt"
        return type(error)(f"{str(error).rstrip('.')}; {serving} on {host}; look: {look}")

    def _attempt(self, link: Link) -> Deployed:
        again, self._connected = self._connected, True
        self._step = "preflight"
        status = link.ask("status")
        self._serving = _name(status.get("current"))
        findings, _ = _preflight(link, self.bundle)
        self.release = release_name(self.bundle, findings.facts, self._again if self.manner.force else "")
        if again and findings.facts.boot_id != self._boot:
            self.reporter.note("the device was started again meanwhile")
        self._boot = findings.facts.boot_id
        if not again:
            self.reporter.note(f"{self.settings.destination}: {findings.sentence()}")
        for warning in findings.warnings:
            self.reporter.note(f"warning: {warning}")
        if findings.refusals:
            raise DeviceError("the device cannot serve this, nothing was copied", value="; ".join(findings.refusals))
        self._step = "lock"
        link.ask("lock", who=_who(), wait_s=4 * LOCK_WAIT_S if again else LOCK_WAIT_S)
        self._copy(link)
        self._step = "stage"
        state = link.ask("stage", id=self.release, bundle=self.bundle.to_json())
        done = state.get("steps", {})
        self._environment(link, findings.facts, done)
        for step, settings in (("build", self.bundle.build), ("bench", self.bundle.bench)):
            self._step = step
            if step in done:
                self.reporter.note(f"{step}: done already, {printable(done[step].get('at'), 30)}")
                continue
            result = link.ask("run", id=self.release, step=step, settings=dict(settings), on_progress=self._progress)
            self.reporter.note(sentence_of(step, result.get("steps", {}).get(step, {})))
        self._step = "switch"
        switched = link.ask("switch", id=self.release)
        before = _name(switched.get("before"))
        self._serving = self.release
        self.reporter.note(f"switch: {self.release} serves now, before it {before or 'nothing'}")
        self._step = "fetch"
        folder, page = fetch_reports(link, self.release, self.manner.reports, self.settings.destination)
        link.ask("prune", keep=self.manner.keep)
        return Deployed(
            device=self.settings.destination,
            release=self.release,
            before=before,
            state=switched.get("state", {}),
            reports=folder,
            page=page,
            seconds=time.monotonic() - self._started,
            copied_bytes=self._copied,
        )

    def _copy(self, link: Link) -> None:
        """Send what the device does not have, from where an earlier try ended; a damaged file is sent once more."""
        self._step = "copy"
        have = link.ask("have", files=[file.sha256 for file in self.bundle.files])
        total = sum(0 if have[file.sha256]["whole"] else file.bytes for file in self.bundle.files)
        self.reporter.start("copying", total)
        sent = 0
        for file in self.bundle.files:
            part = have[file.sha256]
            if part["whole"]:
                continue
            offset = int(part["bytes"])
            if offset > file.bytes or (offset and part["sha256"] != sha256_of(file.path.resolve(), offset)):
                offset = 0  # what is there is no beginning of this file
            for last in (False, True):
                try:
                    link.send(
                        file.path,
                        sha256=file.sha256,
                        offset=offset,
                        on_bytes=lambda done, sent=sent: self.reporter.update(sent + done),  # type: ignore[misc]
                    )
                    break
                except DeviceError as error:
                    if error.kind != "corrupt" or last:
                        raise
                    self.reporter.note(f"copy: {file.name} arrived damaged, once more")
                    offset = 0
            self._copied += file.bytes - offset
            sent += file.bytes
        self.reporter.finish(f"{self._copied / 1e6:.1f} MB copied, {self.bundle.bytes / 1e6:.1f} MB in all")

    def _environment(self, link: Link, facts: Facts, done: Mapping[str, Any]) -> None:
        self._step = "environment"
        requirements = _requirements(self.bundle, facts)
        wheels = [file.sha256 for file in self.bundle.files if file.name.endswith(".whl")]
        image = {} if facts.container is None else {"image": facts.container}
        system = self.bundle.about["format"] == "trt" or facts.container is not None
        made_of = {"wheels": wheels, "requirements": requirements, "python": facts.python, "system": system}
        key = sha256_json({**made_of, **image})[:16]
        if done.get("environment", {}).get("key") == key and "build" in done:
            return
        self.reporter.start("environment on the device", None)
        state = link.ask(
            "environment",
            id=self.release,
            key=key,
            wheel=self.bundle.wheel,
            requirements=requirements,
            system_packages=system,
            offline=self.bundle.offline,
        )
        used = state.get("steps", {}).get("environment", {}).get("used_again")
        self.reporter.finish("the one that is there" if used else "made")

    def _progress(self, event: Mapping[str, Any]) -> None:
        """What the device tells of a step."""
        if "note" in event:
            self.reporter.note(f"{self._step}: {printable(event['note'])}")
        elif "did" in event:
            self.reporter.finish(printable(event.get("detail", ""), 200))
        elif "completed" in event and isinstance(event["completed"], int):
            self.reporter.update(event["completed"], printable(event.get("detail", ""), 60))
        elif "doing" in event:
            total, doing = event.get("total"), printable(event["doing"], 60)
            description = doing if doing == self._step else f"{self._step}: {doing}"
            self.reporter.start(description, total if isinstance(total, int) else None)


def rollback(link_settings: LinkSettings, release: str | None = None) -> dict[str, Any]:
    """Let the release serve that served before, or the one named, whose artifact is compared with its checksum first;
    DeviceError when there is none, it is damaged, or another deploy is at work."""
    with Link(link_settings) as link:
        link.ask("lock", who=_who(), wait_s=LOCK_WAIT_S)
        return link.ask("rollback", to=release)


def status(link_settings: LinkSettings) -> dict[str, Any]:
    """Every release on the device, what serves, and the last switches; DeviceError when its answer cannot be used."""
    with Link(link_settings) as link:
        value = link.ask("status")
    if not isinstance(value.get("releases"), list) or not isinstance(value.get("history"), list):
        raise DeviceError("the device's answer is not understood", value=printable(value, 80))
    return value


def fetch_reports(link: Link, release: str, reports: Path, device: str) -> tuple[Path, Path | None]:
    """Bring a release's results, manifest, journal and log here, and make the page of them; returns folder and page, or
    raises DeviceError when what came is oversized or malformed."""
    from alexnet_edge.bench.rounds.results import read_results

    host = re.sub(r"[^A-Za-z0-9._-]", "_", device.rpartition("@")[2]).strip(".")
    folder = reports / (host or "device") / release
    for name in REPORTS:
        data = link.fetch(release, name, most=MOST_LOG_BYTES if name == "log.txt" else MOST_REPORT_BYTES)
        if data is not None:
            write_text(folder / name, as_text(name, data))
    results = folder / "bench.json"
    if not results.is_file():
        return folder, None
    try:
        return folder, _page(read_results(results), results, device)
    except MALFORMED as error:
        raise DeviceError(f"the device's results are malformed ({type(error).__name__})", value=results) from error


def as_text(name: str, data: bytes) -> str:
    """The text of a report: JSON of the expected kind, or a log without control characters."""
    if name == "log.txt":
        text = data.decode("utf-8", "replace")
        return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    try:
        value = records.parse(data)
        if name == "manifest.json":
            decode_manifest(data)
        elif not isinstance(value, dict):
            raise records.RecordError("not an object")
    except records.RecordError as error:
        raise DeviceError(f"the device sent a malformed report ({error})", value=name) from error
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _page(value: Mapping[str, Any], results: Path, device: str) -> Path | None:
    from alexnet_edge.bench.report.report import write_report
    from alexnet_edge.bench.report.text import csv_of, markdown_of

    emulated = value["environment"].get("emulated")
    title = f"AlexNet on {device}" + (f" ({EMULATED_FIGURES})" if emulated else "")
    write_text(results.with_suffix(".md"), (f"{title}\n\n" if emulated else "") + markdown_of(value))
    write_text(results.with_suffix(".csv"), csv_of(value))
    try:
        return write_report(results.with_suffix(".html"), bench=value, title=title)
    except MissingComponentError:
        return None  # the results are here; `alexnet-edge report` makes the page where jinja2 and plotly are


def sentence_of(step: str, result: Mapping[str, Any]) -> str:
    """What a finished step of the device's journal says, in one line."""
    if step == "build":
        parity = result.get("parity", {})
        parts = [
            f"{number(result.get('bytes')) / 1e6:.1f} MB",
            "built there" if result.get("built_here") else "as it was sent",
            f"layers as asked: {printable(result.get('layers', '?'), 40)}",
            f"proof {printable(parity.get('verdict', '?'), 20)} on {printable(parity.get('images', '?'), 10)} images",
            f"top-1 agreement {number(parity.get('top1_agreement')):.1%}",
        ]
        return f"build: {', '.join(parts)}"
    if "skipped" in result:
        return f"{step}: {printable(result['skipped'], 80)}"
    p50 = result.get("p50_ns")
    shown = "no median" if p50 is None else f"p50 {number(p50) / 1e6:.2f} ms"
    reasons = result.get("reasons")
    why = "; ".join(printable(reason, 120) for reason in reasons[:5]) if isinstance(reasons, list) else ""
    why = f" ({why})" if why else ""
    return f"{step}: {shown} at batch {printable(result.get('batch'), 10)}, {printable(result.get('verdict'), 20)}{why}"


def _preflight(link: Link, bundle: Bundle) -> tuple[Findings, int]:
    answer = link.ask("facts")
    have = link.ask("have", files=[file.sha256 for file in bundle.files])
    try:
        facts = records.convert(Facts, answer)
        missing = sum(
            0 if have[file.sha256]["whole"] else max(0, file.bytes - int(have[file.sha256]["bytes"]))
            for file in bundle.files
        )
    except MALFORMED as error:
        problem = f"the device's answer is not understood ({printable(error)})"
        raise DeviceError(problem, value=printable(answer, 80)) from error
    return judge(facts, bundle, missing_bytes=missing), missing


def release_name(bundle: Bundle, facts: Facts, again: str = "") -> str:
    """The release's name on a device: an engine belongs to the TensorRT that built it, an environment to its image."""
    tensorrt = facts.tensorrt if bundle.about["format"] == "trt" else None
    return bundle.release("".join(f" {part}" for part in (again, tensorrt, facts.container) if part))


def _requirements(bundle: Bundle, facts: Facts) -> list[str]:
    return [*bundle.requirements, *(cuda_requirement(facts) if bundle.about["format"] == "trt" else [])]


def _name(value: Any) -> str | None:
    """A release's name as the device gives it; None where nothing serves, or it is no name."""
    return value if isinstance(value, str) and RELEASE.fullmatch(value) else None


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return re.sub(r"[^\w.@-]", "_", f"{user}@{socket.gethostname()}", flags=re.ASCII)[:80]
