"""`make bench-check`: are the ratios of this machine worse than the committed ones of its kind?

Runs the scripts of `make bench` with their results in a folder of its own (`--results FOLDER`
compares those of a run before), and compares each row of "Numbers to reach" with the committed
file of `results/`. A row is worse where the best turn of now does not reach the worst turn of then:
the noise of both is their spread; of a row without turns it is taken for a tenth. Ends with 1 if a
row is worse or a script failed. Rows that cannot be compared are told, with the reason: ratios hold
for one kind of CPU, told by the instructions that torch uses.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import ROWS, SCRIPTS, Row, run_all
from common import RESULTS, conditions, cpu

NOISE = 0.1  # of a ratio that was taken once
TOO_NOISY = 2.0  # largest ratio of a turn over the least, from which nothing follows


def main() -> None:
    """Run, compare, end with 1 where something is worse."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, help="of a run before, which is compared")
    results = parser.parse_args().results
    print(f"this machine: {cpu()}; {conditions()['machine']}", flush=True)
    if results is not None:
        if not results.is_dir():
            sys.exit(f"--results {results}: there is no such folder")
        sys.exit(compare(results))
    with tempfile.TemporaryDirectory() as folder:
        failed = run_all(Path(folder))
        worse = compare(Path(folder))
    if failed:
        print(f"failed: {', '.join(failed)}")
    sys.exit(int(bool(worse or failed)))


def compare(folder: Path) -> int:
    """Print each row's verdict; 1 where one is worse, or none could be compared."""
    verdicts = []
    for row in ROWS:
        verdict, told = judge(row, read(RESULTS, row.result), read(folder, row.result))
        verdicts.append(verdict)
        print(f"{verdict:>13}  {row.what}, against {row.peer}: {told}")
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int("worse" in counts or counts.keys() == {"not compared"})


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A file of results; None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def judge(row: Row, then: dict[str, Any] | None, now: dict[str, Any] | None) -> tuple[str, str]:
    """The verdict on a row, `worse`, `as good`, `better` or `not compared`, and why."""
    if now is None:
        measured = f"{row.result}.py" in SCRIPTS
        return "not compared", "it failed, or was not run" if measured else "no part of make bench"
    if then is None:
        return "not compared", f"no results/{row.result}.json is committed"
    if then["machine"] != now["machine"] or then["threads"] != now["threads"]:
        kinds = [f"{each['machine']}, {each['threads']} threads" for each in (then, now)]
        return "not compared", f"committed on another kind of machine ({kinds[0]}; here {kinds[1]})"
    before, after = interval(row, then), interval(row, now)
    told = f"{after[1]:.3g} ({after[0]:.3g} to {after[2]:.3g}); "
    told += f"committed {before[1]:.3g} ({before[0]:.3g} to {before[2]:.3g})"
    if then["what"] != now["what"]:
        told += f", {then['what']}"
    if not row.at_least:  # small is good
        before, after = ([-value for value in reversed(each)] for each in (before, after))
    if after[2] < before[0]:
        return "worse", told
    if max(map(abs, after)) > TOO_NOISY * min(map(abs, after)):
        return "not compared", f"too noisy: {told}"
    return ("better" if after[0] > before[2] else "as good"), told


def interval(row: Row, result: dict[str, Any]) -> list[float]:
    """The least ratio of a turn, the median, and the largest."""
    ratio, spread = row.find(result)
    if not spread or spread[0] == spread[1]:
        return [ratio * (1 - NOISE), ratio, ratio * (1 + NOISE)]
    return [spread[0], ratio, spread[1]]


if __name__ == "__main__":
    main()
