"""The steps of the Dockerfile, read from it and run without docker: `make test-docker-steps`.

A folder stands for the root of the image: what is copied is copied there, `RUN` lines run there
with the paths of the image put into it, and the default command serves a model by the user of the
image. Left to docker are the base image and the ports. `.dockerignore` is held to what is copied.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from string import Template

from wheel import MAKE, ROOT

PATHS = re.compile(r"(?<![\w.])/(?:build|opt/polyhead|work|model)\b")
INDEX = "https://pypi.org/simple"  # instead of torch's own: a mirror may have it alone
PORT = "8081"
KNOWN = ("FROM", "ARG", "COPY", "RUN", "ENV", "WORKDIR", "USER", "EXPOSE", "ENTRYPOINT", "CMD")


def steps_of(text: str) -> list[tuple[str, str]]:
    """Instructions and what follows them, lines that go on joined.

    Raises:
        ValueError: an instruction that there is nothing for here.
    """
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    for name, _ in steps:
        if name not in KNOWN:
            raise ValueError(f"{name}: no step of this is known; add it to {Path(__file__).name}")
    return [(name, value.strip()) for name, value in steps]


class Image:
    """A folder in place of an image.

    Args:
        root: of the image.
        arguments: of the build.
    """

    def __init__(self, root: Path, arguments: dict[str, str]) -> None:
        self.root = root
        self.arguments = arguments
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.variables: dict[str, str] = {"PATH": os.environ["PATH"]}
        self.folder = root
        self.command: dict[str, list[str]] = {}
        self.user: int | None = None

    def inside(self, text: str) -> str:
        """A text with the image's paths, put into the folder."""
        return PATHS.sub(lambda path: f"{self.root}{path[0]}", text)

    def run(self, name: str, value: str) -> None:
        """One step."""
        if name == "ARG":
            key, _, default = value.partition("=")
            self.variables[key] = self.arguments.get(key, self._filled(default))
        elif name == "COPY":
            self._copy(value.split())
        elif name == "RUN":
            environment = self.environment | self.variables
            subprocess.run(
                ["bash", "-euc", self.inside(value)], check=True, cwd=self.folder, env=environment
            )
        elif name == "ENV":
            for part in value.split():
                key, _, text = part.partition("=")
                self.variables[key] = self._filled(self.inside(text))
        elif name == "WORKDIR":
            self.folder = Path(self.inside(value))
            self.folder.mkdir(parents=True, exist_ok=True)
        elif name == "USER":
            self.user = int(value.split(":")[0])
        elif name in ("ENTRYPOINT", "CMD"):
            self.command[name] = [self.inside(part) for part in json.loads(value)]

    def start(self, *options: str) -> subprocess.Popen:
        """The default command, with more options, by the image's user where that can be."""
        command = [*self.command["ENTRYPOINT"], *self.command["CMD"], *options]
        environment = self.environment | self.variables | {"HOME": "/nonexistent"}
        who = {} if self.why_not_user else {"user": self.user, "group": self.user}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **who)

    @property
    def why_not_user(self) -> str | None:
        """What keeps the default command from being run by the image's user here."""
        if os.geteuid() != 0:
            return "only root can start it as another user"
        python = str(self.root / "opt/polyhead/bin/python")
        try:
            subprocess.run([python, "-c", ""], check=True, user=self.user, group=self.user)
        except PermissionError:
            return f"{os.path.realpath(python)} is not for others to run"
        return None

    def _filled(self, text: str) -> str:
        return Template(text).substitute(self.variables)

    def _copy(self, parts: list[str]) -> None:
        if parts[0].startswith("--from="):  # both stages are this folder
            assert all(Path(self.inside(path)).exists() for path in parts[1:]), parts
            return
        allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        *sources, target = parts
        for source in sources:
            assert f"!{source}" in allowed, f"{source} is not in .dockerignore"
            to = Path(self.inside(target))
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, to)


def answer(server: subprocess.Popen, path: str, body: dict | None = None) -> bytes:
    """What a server says, once it has started; an error where it ends before, or takes minutes."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers)
    end = time.monotonic() + 300
    while True:
        try:
            return urllib.request.urlopen(request, timeout=60).read()
        except urllib.error.HTTPError:  # it answers, and not well
            raise
        except (ConnectionError, urllib.error.URLError):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server did not start"
            time.sleep(1)


def main() -> None:
    """Run all steps; a failing one ends with its exit code."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        image = Image(root, {"TORCH_INDEX": os.environ.get("POLYHEAD_TORCH_INDEX", INDEX)})
        for instruction, value in steps_of((ROOT / "Dockerfile").read_text(encoding="utf-8")):
            sys.stdout.write(f"{instruction} {value}\n")
            sys.stdout.flush()
            image.run(instruction, value)
        subprocess.run([sys.executable, "-c", MAKE], check=True, cwd=root)
        shutil.copytree(root / "saved", root / "model")
        server = image.start("--port", PORT)
        try:
            said = json.loads(answer(server, "/predict", {"texts": ["book a flight"]}))
        finally:
            server.terminate()
            server.wait(60)
        why = image.why_not_user
        by = f"user {image.user}" if why is None else f"you, not user {image.user}: {why}"
        sys.stdout.write(f"served, by {by}: {json.dumps(said)[:200]}\n")
        sys.stdout.write("docker steps: passed\n")


if __name__ == "__main__":
    main()
