"""`python -m polyhead.train RECIPE [key=value ...]`: what torchrun and accelerate start."""

import sys

from .cli.app import main

main(["train", *sys.argv[1:]])
