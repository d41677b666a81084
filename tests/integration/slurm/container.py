"""An image for apptainer, made in a moment and without a network: a root around this host's own Python."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.site import ContainerConfig

NAME = "an image of the tests"
_ROOT = Path(__file__).parents[3]
_FOLDERS = ("etc", "dev", "proc", "sys", "tmp", "var/tmp", "root", "home", "usr/local/bin")
_SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib64")
_PYTHON = """\
#!/bin/sh
exec {python} "$@"
"""
_COATNET = """\
#!/bin/sh
. /etc/os-release
echo "inside $NAME"
exec python3 -c '
import sys
sys.path.append("{tests}")
from preloaded import keep_pace
keep_pace({pace})
from coatnet.cli import main
main()' "$@"
"""


def make_image(folder: Path, *, readable: Path, pace: float) -> ContainerConfig:
    """Make the image and return how a site would describe it.

    Args:
        folder: where the image comes to lie; apptainer takes a root as a folder for an image.
        readable: what the ranks read outside of the run directory.
        pace: least seconds of a training step, so that there is time for things to happen.
    """
    for name in (*_FOLDERS, *(path.lstrip("/") for path in _SYSTEM)):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "etc" / "os-release").write_text(f'NAME="{NAME}"\n')
    (folder / "etc" / "environment").write_text("PATH=/usr/local/bin:/usr/bin:/bin\n")
    (folder / "etc" / "passwd").touch()
    (folder / "etc" / "group").touch()
    programs = {
        "python3": _PYTHON.format(python=sys.executable),
        "coatnet": _COATNET.format(tests=Path(__file__).parent, pace=pace),
    }
    for name, text in programs.items():
        program = folder / "usr" / "local" / "bin" / name
        program.write_text(text)
        program.chmod(0o755)
    needed = [
        *_SYSTEM,
        sys.prefix,
        Path(sys.prefix).resolve(),
        Path(sys.base_prefix).resolve(),
        _ROOT,
        readable,
    ]
    mounts = [f"{path}:{path}" for path in dict.fromkeys(map(str, needed)) if Path(path).is_dir()]
    return ContainerConfig(runtime="apptainer", image=str(folder), mounts=mounts)
