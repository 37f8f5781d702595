"""Run the common model tests of transformers on PolyheadModel: `python tests/hf_common.py`.

These tests are in the source release of transformers, not in the installed package: the source
release of the installed version is fetched with pip once and kept in
`~/.cache/polyhead/hf-tests/<version>`. It leaves out three helpers that the tests import; they
serve export, generation and config defaults, and stand-ins are enough here. The class under test
is in `hf_polyhead.py`.

Arguments go to pytest: `python tests/hf_common.py -k batching`.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path.home() / ".cache" / "polyhead" / "hf-tests"
NEEDED = ("test_modeling_common.py", "test_configuration_common.py")
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def main(arguments):
    """The exit code of pytest."""
    archive = fetch(version("transformers"))
    with tempfile.TemporaryDirectory() as folder:
        lay_out(archive, Path(folder))
        # The marks are registered in a conftest.py that the release leaves out.
        options = ["-q", "-rs", "-p", "no:cacheprovider"]
        options += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
        return subprocess.call(
            [sys.executable, "-m", "pytest", *options, *arguments, "tests/models/polyhead"],
            cwd=folder,
            env={"HF_HUB_OFFLINE": "1", **os.environ},
        )


def fetch(release):
    """Path of the source release, from the cache or from PyPI.

    pip builds nothing, but it reads the release's metadata, for which it fetches setuptools. The
    archive is moved into the cache whole: a broken download leaves nothing behind.
    """
    archive = CACHE / release / f"transformers-{release}.tar.gz"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        code = subprocess.call([*command, "--no-binary=transformers", f"transformers=={release}"])
        if code != 0:
            raise SystemExit(
                f"pip could not fetch the source release of transformers {release} (see above). "
                f"Only released versions have one; without network, put it at {archive}"
            )
        (Path(folder) / archive.name).replace(archive)
    return archive


def lay_out(archive, folder):
    """Make the `tests` package that the test files expect around them."""
    tests = folder / "tests"
    model = tests / "models" / "polyhead"
    model.mkdir(parents=True)
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as source:
        for name in NEEDED:
            (tests / name).write_bytes(source.extractfile(f"{root}/tests/{name}").read())
    for name, text in STAND_INS.items():
        (tests / name).parent.mkdir()
        (tests / name).write_text(text)
    shutil.copy(Path(__file__).with_name("hf_polyhead.py"), model / "test_modeling_polyhead.py")
    for package in (tests, *(path for path in tests.rglob("*") if path.is_dir())):
        (package / "__init__.py").touch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
