"""What names and numbers in the files of a run and of a model may be."""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from ...modeling.checks import TASK_NAME

LONGEST = 200  # name of a task; file systems take 255 bytes
STRICT = ConfigDict(strict=True)


def _task_name(name: str) -> str:
    if not TASK_NAME.fullmatch(name) or len(name) > LONGEST:  # it becomes a file's name
        raise ValueError(f"a task is named by at most {LONGEST} of a-z, 0-9 and _")
    return name


TaskName = Annotated[str, AfterValidator(_task_name)]
Count = Annotated[int, Field(ge=0)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
