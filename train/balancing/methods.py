"""How much each task counts: the methods of a recipe's `balancing`, and what a recipe gets wrong.

`METHODS` has the class of each method; its docstring names the paper, its `reads_...` what the
trainer hands in and with that what it costs:

    none, size, classes, random   nothing
    equal_norms                   nothing: the backward pass meets what it reads
    uncertainty, dwa              nothing but the step's losses on the CPU
    geometric                     where a step has several micro-batches, their forward pass twice
    famo                          as geometric, and one more forward pass after the step
    gradnorm                      a backward pass of each task through the last encoder layer
    pcgrad, cagrad, mgda,         a backward pass of each task through the encoder and, for K tasks,
    upgrad, aligned_mtl,          K copies of the shared weights' gradients
    nash_mtl

The interface is in `base.py`, the methods over losses in `by_loss.py`, those over gradients in
`by_gradient.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...modeling.options import TaskOptions
from ...modeling.tables import Table
from ...modeling.task_config import TaskConfig
from ..adapters import adapter_name
from ..recipe.schema import Recipe
from ..recipe.sections import Balancing
from .base import Balancer
from .by_gradient import WEIGHTINGS, GradientBalancer, missing_packages
from .by_loss import (
    ClassWeights,
    DynamicAverage,
    EqualNorms,
    Famo,
    GeometricMean,
    GradNorm,
    RandomWeights,
    SizeWeights,
    Uncertainty,
)

METHODS: Table[type[Balancer]] = Table(
    "balancing method",
    {
        "none": Balancer,
        "equal_norms": EqualNorms,
        "size": SizeWeights,
        "classes": ClassWeights,
        "random": RandomWeights,
        "uncertainty": Uncertainty,
        "dwa": DynamicAverage,
        "geometric": GeometricMean,
        "famo": Famo,
        "gradnorm": GradNorm,
        **dict.fromkeys(WEIGHTINGS, GradientBalancer),
    },
)
DEFAULT = "equal_norms"  # of several tasks
# torch 2.13's inductor: the second backward pass over one graph gives other numbers than the first
COMPILED = "training.torch_compile does not go with gradients by task"
# What each method reads beside gradient_steps, which all do.
OPTIONS: dict[str, tuple[str, ...]] = {
    "uncertainty": ("learning_rate",),
    "dwa": ("temperature",),
    "famo": ("learning_rate",),
    "gradnorm": ("learning_rate", "alpha"),
    "cagrad": ("c",),
}
METHOD_OPTIONS = ("learning_rate", "temperature", "alpha", "c")  # which a method may read
INSTALL = 'type: pip install "polyhead[balancing]"'


def register_balancing(name: str, method: type[Balancer], *, options: Sequence[str] = ()) -> None:
    """Add a method that `balancing` can name.

    Args:
        name: for `balancing.method`.
        method: a subclass of `Balancer`; its `reads_...` say what the trainer hands in.
        options: keys of `balancing` that it reads; the others are refused.

    Raises:
        ValueError: the name is taken or has other characters than lower-case letters, digits and _;
            `method` is no such class, or an option is none.
    """
    if not (isinstance(method, type) and issubclass(method, Balancer)):
        raise ValueError(f"balancing method {name!r} is {method!r}; give a subclass of Balancer")
    if unknown := sorted(set(options) - set(METHOD_OPTIONS)):
        raise ValueError(
            f"balancing method {name!r}: no option {', '.join(unknown)}; there are: "
            f"{', '.join(METHOD_OPTIONS)}"
        )
    METHODS.add(name, method, method)
    OPTIONS[name] = tuple(options)


def method_of(options: Balancing, tasks: Mapping[str, TaskOptions], *, plain: bool) -> str:
    """The method that is named, or the default.

    Args:
        options: the recipe's.
        tasks: by name.
        plain: torch_compile, FSDP or DeepSpeed, under which the default is none.
    """
    balanced = sum(task.loss_weight > 0 for task in tasks.values()) > 1
    return options.method or (DEFAULT if balanced and not plain else "none")


def make_balancer(
    options: Balancing,
    tasks: dict[str, TaskConfig],
    rows: dict[str, int],
    seed: int,
    *,
    plain: bool = False,
) -> Balancer:
    """The balancer of a recipe; its `options` name the method.

    Args:
        options: the recipe's, without faults.
        tasks: configs by task; their order changes nothing.
        rows: number of training rows by task.
        seed: together with the step it decides what is left to chance.
        plain: see `method_of`.

    Raises:
        ValueError: a package that the method needs is not installed.
    """
    options = replace(options, method=method_of(options, tasks, plain=plain))
    method = str(options.method)
    if missing := missing_packages(method):
        raise ValueError(_missing(method, missing))
    return METHODS[method](options, tasks, rows, seed)


def reads_tasks_apart(balancer: type[Balancer] | Balancer) -> bool:
    """Whether a method reads the gradient of each task, which takes whole weights to derive by."""
    return balancer.reads_gradients or balancer.reads_last_layer


def balancing_faults(recipe: Recipe, sources: int) -> list[str]:
    """What is wrong with `balancing`, and with other keys of the recipe that it cannot do with.

    Args:
        recipe: the recipe.
        sources: number of sources of its data; tasks that share their rows have one.
    """
    training = recipe.training
    method = method_of(recipe.balancing, recipe.tasks, plain=_is_plain(training))
    if method not in METHODS:
        return [METHODS.fault("balancing.method", method)]
    balancer, faults = METHODS[method], _option_faults(recipe.balancing, method)
    missing = missing_packages(method)
    faults += [f"balancing.method: {_missing(method, missing)}"] if missing else []
    if method != "none" and sum(task.loss_weight > 0 for task in recipe.tasks.values()) < 2:
        faults.append(f"balancing.method: {method} needs two tasks with a loss_weight; write none")
    together = balancer.reads_losses or reads_tasks_apart(balancer)
    if together and recipe.sampling.batches == "pure" and sources > 1:
        faults.append(
            f"sampling.batches: pure has one task in a step, {method} needs several; write mixed"
        )
    if balancer.reads_gradients and training.get("fp16"):
        faults.append(f"training.fp16: does not fit {method}; write bf16: true instead")
    faults += [
        f"tasks.{name}.cached: {method} reads the losses of micro-batches; take one of them out"
        for name, task in recipe.tasks.items()
        if task.cached and balancer.reads_losses
    ]
    faults += _compile_faults(recipe, balancer)
    if not reads_tasks_apart(balancer):
        return faults
    for key in ("fsdp", "deepspeed"):
        if training.get(key):
            faults.append(f"training.{key}: {method} needs whole gradients; take it out")
    adapters = Counter(adapter_name(name, task.adapter) for name, task in recipe.tasks.items())
    del adapters[None]
    if recipe.freeze.encoder and max(adapters.values(), default=0) < 2:
        faults.append(
            f"freeze.encoder: true leaves no weights that tasks share and train, {method} needs "
            "some; take it out, or give two tasks the same adapter"
        )
    return faults


def _is_compiled(training: Mapping[str, Any]) -> bool:
    return any(training.get(f"torch_compile{part}") for part in ("", "_backend", "_mode"))


def _is_plain(training: Mapping[str, Any]) -> bool:
    return _is_compiled(training) or bool(training.get("fsdp") or training.get("deepspeed"))


def _compile_faults(recipe: Recipe, balancer: type[Balancer]) -> list[str]:
    options, faults = recipe.balancing, []
    if not _is_compiled(recipe.training):
        return faults
    if options.gradient_steps:
        faults.append(f"balancing.gradient_steps: {COMPILED}; write 0")
    if reads_tasks_apart(balancer) or balancer.reads_output:
        faults.append(f"balancing.method: {options.method}: {COMPILED}; take another method")
    return faults


def _option_faults(options: Balancing, method: str) -> list[str]:
    allowed = (*OPTIONS.get(method, ()), "gradient_steps")
    return [
        f"balancing.{key}: {method} does not read it; allowed: {', '.join(allowed)}"
        for key in sorted(set(METHOD_OPTIONS) - set(allowed))
        if getattr(options, key) is not None
    ]


def _missing(method: str, packages: list[str]) -> str:
    verb = "is" if len(packages) == 1 else "are"
    return f"{method} needs {', '.join(packages)}, which {verb} not installed; {INSTALL}"
