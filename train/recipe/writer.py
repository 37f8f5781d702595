"""A recipe as the YAML text that reads back to the same recipe."""

from typing import Any

import yaml
from pydantic import TypeAdapter

from ..errors import UserError
from .code import with_modules
from .data_config import ROUTER
from .schema import Recipe
from .yaml_text import read_yaml


class _Dumper(yaml.SafeDumper):
    """Quotes each text that our reader, YAML 1.2, would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: what stands twice is written twice."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        plain = read_yaml(value) == value and "\n" not in value
    except yaml.YAMLError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def recipe_text(recipe: Recipe) -> str:
    """The keys of a recipe that differ from their defaults, as YAML.

    Raises:
        UserError: rows of a task are in memory, where no YAML can name them.
    """
    faults = [
        f"tasks.{name}.data: its rows are in memory ({type(task.data.rows.data).__name__}); write "
        f"them to a file, as datasets.Dataset.to_parquet({f'{name}.parquet'!r}) does, and give "
        "its name as data_files"
        for name, task in recipe.tasks.items()
        if task.data.rows is not None
    ]
    if faults:
        raise UserError(recipe.path, faults)
    plain = TypeAdapter(Recipe).dump_python(
        recipe, mode="json", by_alias=True, exclude_defaults=True
    )
    if recipe.router:  # makes that task again
        plain["tasks"].pop(ROUTER, None)
    for task in plain["tasks"].values():
        if more := task["data"].pop("more", None):
            task["data"] = [task["data"], *more]
    return yaml.dump(
        with_modules(plain), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
