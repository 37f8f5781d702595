"""`python -m polyhead.train RECIPE [key=value ...]`: what a launcher (torchrun, accelerate) starts."""

import sys

from .cli import main

main(["train", *sys.argv[1:]])
