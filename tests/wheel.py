"""Build the wheel, install it in an empty environment, import it and predict from another folder.

Run by `make test-wheel`. It catches what an editable install hides: a module or data file that the
wheel leaves out, an import that only works from the repository's root.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USE = """
import polyhead.modeling, polyhead.train.run, polyhead.train.hub
from pathlib import Path
from polyhead.modeling import PolyheadConfig, PolyheadModel, PolyheadPipeline, TaskConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast, pipeline

assert "site-packages" in polyhead.modeling.__file__, polyhead.modeling.__file__
words = {"[PAD]": 0, "[UNK]": 1, "book": 2, "a": 3, "flight": 4}
core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
)
encoder = dict(model_type="bert", vocab_size=5, hidden_size=16, num_hidden_layers=1,
               num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
task = TaskConfig(head="sequence_classification", labels=["yes", "no"])
model = PolyheadModel(PolyheadConfig(encoder_config=encoder, tasks={"intent": task})).eval()
polyhead.train.hub.save_folder(model, tokenizer, "saved")
direct = PolyheadPipeline(model=model, tokenizer=tokenizer)("book a flight")
loaded = pipeline(model="saved", trust_remote_code=True)("book a flight")
assert direct == loaded, (direct, loaded)
assert Path("saved/README.md").read_text().startswith("---")
print("wheel: 1 passed, 0 failed")
"""


def main() -> None:
    """Build, install, use; a failing step ends with its exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = lambda *args, **more: subprocess.run(args, check=True, **more)  # noqa: E731
        run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT))
        wheel = next(folder.glob("*.whl"))
        run(sys.executable, "-m", "venv", str(folder / "venv"))
        python = str(folder / "venv/bin/python")
        pinned = (ROOT / "constraints.txt").read_text().splitlines()
        torch = next(line for line in pinned if line.startswith("torch=="))
        pip = (python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"))
        run(*pip, torch)
        run(*pip, str(wheel))
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        run(python, "-c", USE, cwd=elsewhere, env=env)
        polyhead = str(folder / "venv/bin/polyhead")
        run(polyhead, "predict", "saved", "book a flight", "--json", cwd=elsewhere, env=env)


if __name__ == "__main__":
    main()
