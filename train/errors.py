"""The error that ends a command with exit code 2; alone, so that showing it loads nothing else."""


class RecipeError(ValueError):
    """All faults that a user can mend, in a recipe, its data or a command, in one message.

    Args:
        source: the file or command they were found in.
        faults: one line each: where, what was found, what is allowed.
    """

    def __init__(self, source: str, faults: list[str]) -> None:
        self.faults = faults
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {fault}" for fault in faults))
