"""The device's side of a deploy in a container there: the same program, with the Python and the TensorRT of an image.

A script for the device's shell starts `board.py` in the image; when that ends, the container is gone. It sees the root
folder, at the place where it is outside, the board's GPU, and the few files that tell which board it is, and it runs as the
user who logged in. From then on the image is named by its identifier: a release goes on in the one that it was proved in.

Source: Docker, "docker container run"; NVIDIA, "Container Toolkit"; Jetson Linux Developer Guide (nvpmodel's files).
"""

from __future__ import annotations

import shlex

FAILED = (125, 126, 127)
"""Exit codes of Docker, and of a shell that has no Docker, for a container that did not start."""
BOARD_FILES = ("/etc/nv_tegra_release", "/etc/nvpmodel.conf", "/var/lib/nvpmodel/status")
"""What a container is shown, read-only, of the board it runs on: the Jetson Linux release and the power mode."""

# Options of `docker run` before what the container shall run, which stands in "$@"; $python, $image and $root are set.
_OPTIONS = f"""\
set -- --entrypoint "$python" "$image" "$@"
for group in video render; do
  number=$(getent group "$group" </dev/null | cut -d : -f 3)
  [ -z "$number" ] || set -- --group-add "$number" "$@"
done
for file in {" ".join(BOARD_FILES)}; do
  [ ! -f "$file" ] || set -- --volume "$file:$file:ro" "$@"
done
case $(docker info --format "{{{{json .Runtimes}}}}" 2>/dev/null </dev/null) in
  *'"nvidia"'*) set -- --runtime nvidia "$@" ;;
esac
set -- --rm --interactive --init --no-healthcheck --user "$(id -u):$(id -g)" --env HOME=/tmp "$@"
"""

# How a release's own command starts: without network, the releases read-only, in the folder where it is called.
_LAUNCH = f"""\
{_OPTIONS}\
here=$(pwd)
[ "$here" = / ] || set -- --volume "$here:$here" "$@"
exec docker run --network none --volume "$root:$root:ro" --workdir "$here" $DOCKER_OPTIONS "$@"
"""

# The host's network, because Docker's own needs a kernel module that Jetson Linux does not have; a folder that stays empty,
# as when a device is only looked at, goes again.
_START = f"""\
image=$1 python=$2 root=$3 silence=$4 boot=$5 launch=$6
image=$(docker image inspect --format "{{{{.Id}}}}" "$image" </dev/null) || exit 125
case $root in /*) ;; *) root=$HOME/$root ;; esac
case $root in *[!A-Za-z0-9_./@+-]*) echo "the folder $root cannot be named to Docker" >&2; exit 125 ;; esac
mkdir -p -m 700 "$root" || exit 125
model=$(tr -d '\\000' 2>/dev/null </proc/device-tree/model)
set -- -c "$boot" "$root" "$silence"
{_OPTIONS}\
docker run --network host --volume "$root:$root" --env ALEXNET_EDGE_MODEL="$model" --env ALEXNET_EDGE_IMAGE="$image" \\
  --env ALEXNET_EDGE_LAUNCH="image=$image root=$root
$launch" "$@"
code=$?
rmdir "$root" 2>/dev/null
exit $code
"""


def start_command(image: str, python: str, root: str, silence_s: str, boot: str) -> str:
    """The shell command that runs `python -c boot root silence_s` in a container of `image`, its standard input passed on."""
    return shlex.join(["sh", "-c", _START, "sh", image, python, root, silence_s, boot, _LAUNCH])
