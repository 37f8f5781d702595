"""STUB until the real file is written: overwrite it."""

from transformers import Trainer, TrainerCallback


class AtomicCheckpoints(Trainer):
    pass


class LeaveOnSigterm(TrainerCallback):
    requested = False
    agreed = False


def latest_intact(args):
    from .run import _checkpoint

    return _checkpoint(args)
