"""`torchrun -m polyhead.train.cli predict ...`."""

from .app import main

main()
