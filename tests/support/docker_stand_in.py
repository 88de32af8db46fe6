"""A stand-in for `docker`: it knows a few images, and runs a command as in a container, as far as a test needs one.

    docker_stand_in.py FOLDER ARGUMENTS...

FOLDER holds `images.json` (identifiers by name) and gets `runs.jsonl`, each `run` as it was asked for. An option that is not
in the table below is refused, as Docker refuses one that it does not have. Where this user may, as root, the command runs in
a mount namespace of its own in which the home folder is empty but for the volumes; elsewhere the files are the machine's.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

SWITCHES = ("--rm", "--interactive", "--init", "--no-healthcheck")
VALUES = (
    "--entrypoint", "--group-add", "--volume", "--user", "--env", "--network", "--workdir", "--runtime", "--device",
)  # fmt: skip


def refuse(text: str, code: int) -> None:
    print(text, "See 'docker run --help'.", sep="\n", file=sys.stderr)
    sys.exit(code)


def run(folder: Path, words: list[str]) -> None:
    options: dict[str, Any] = {name: [] for name in VALUES}
    while words and words[0].startswith("-"):
        name = words.pop(0)
        if name in VALUES:
            options[name].append(words.pop(0))
        elif name not in SWITCHES:
            refuse(f"unknown flag: {name}", 125)
        else:
            options[name] = True
    image, *arguments = words
    if image not in json.loads((folder / "images.json").read_text()).values():
        refuse(f"docker: Error response from daemon: No such image: {image}", 125)
    with (folder / "runs.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**options, "image": image, "arguments": arguments}) + "\n")
    command = [*options["--entrypoint"], *arguments]
    environment = {"PATH": os.environ["PATH"], **dict(pair.split("=", 1) for pair in options["--env"])}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}  # of the image
    stage = folder / "stage"
    stage.mkdir(exist_ok=True)
    probe = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", str(stage)]
    if subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0:
        lines = ["set -e", f"mount -t tmpfs tmpfs {shlex.quote(str(stage))}"]
        volumes = [volume.split(":") for volume in options["--volume"]]
        for number, (source, *_) in enumerate(volumes):
            kept = shlex.quote(str(stage / str(number)))
            lines += [f"mkdir {kept}", f"mount --bind {shlex.quote(source)} {kept}"]
        lines.append(f"mount -t tmpfs tmpfs {shlex.quote(os.environ['HOME'])}")
        for number, (_, target, *mode) in sorted(enumerate(volumes), key=lambda volume: len(volume[1][1])):
            place = shlex.quote(target)
            lines += [f"mkdir -p {place}", f"mount --bind {shlex.quote(str(stage / str(number)))} {place}"]
            lines += [f"mount -o remount,bind,ro {place}"] if mode == ["ro"] else []
        lines += [f"cd {shlex.quote((options['--workdir'] or ['/'])[0])}", 'exec "$@"']
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh", *command]
    os.execvpe(command[0], command, environment)


def main(folder: Path, words: list[str]) -> None:
    images = json.loads((folder / "images.json").read_text())
    if words[:3] == ["image", "inspect", "--format"]:
        if words[4] not in images:
            sys.exit(f"Error: No such image: {words[4]}")
        print(images[words[4]])
    elif words[0] == "info":
        print(json.dumps({"runc": {}}))
    elif words[0] == "run":
        run(folder, words[1:])
    else:
        refuse(f"docker: {words[0]!r} is not a docker command.", 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
