"""The package and a saved model on machines that are not this one. Run by `make test-wheel`.

1. In an environment with only torch and transformers: a saved folder loads, gives the same logits
   to the bit, and saves the same bytes again.
2. With the wheel installed there: it imports, saves and predicts from another folder. This catches
   what an editable install hides: a module or data file that the wheel leaves out.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MAKE = """
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from polyhead.train.hub import save_folder

words = {"[PAD]": 0, "[UNK]": 1, "book": 2, "a": 3, "flight": 4}
core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
)
encoder = dict(model_type="bert", vocab_size=5, hidden_size=16, num_hidden_layers=1,
               num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
tasks = {
    "intent": TaskConfig(head="sequence_classification", labels=["yes", "no"]),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"]),
    "sim": TaskConfig(head="embedding"),
    "mlm": TaskConfig(head="masked_lm"),
}
model = PolyheadModel(PolyheadConfig(encoder_config=encoder, tasks=tasks)).eval()
save_folder(model, tokenizer, "saved")
output = model(torch.tensor([[2, 3, 4]]))
torch.save({**output.logits, **output.embeddings}, "expected.pt")
"""

STRANGER = """
import importlib.util, torch
from pathlib import Path
from transformers import AutoModel, AutoTokenizer
assert importlib.util.find_spec("polyhead") is None
assert importlib.util.find_spec("peft") is None
model = AutoModel.from_pretrained("saved", trust_remote_code=True)
output = model(torch.tensor([[2, 3, 4]]))
expected = torch.load("expected.pt")
found = {**output.logits, **output.embeddings}
assert found.keys() == expected.keys()
assert all(torch.equal(found[task], expected[task]) for task in expected)
model.save_pretrained("again")
assert Path("again/model.safetensors").read_bytes() == Path("saved/model.safetensors").read_bytes()
"""

USE = """
import polyhead.modeling, polyhead.train.commands, polyhead.train.hub
from pathlib import Path
from polyhead.modeling import PolyheadModel, PolyheadPipeline
from transformers import AutoTokenizer, pipeline

assert "site-packages" in polyhead.modeling.__file__, polyhead.modeling.__file__
model, tokenizer = PolyheadModel.from_pretrained("saved"), AutoTokenizer.from_pretrained("saved")
polyhead.train.hub.save_folder(model, tokenizer, "by_wheel")
names = lambda folder: sorted(p.name for p in Path(folder).iterdir())
assert names("by_wheel") == names("saved"), (names("by_wheel"), names("saved"))
tasks = ["intent", "slots"]
direct = PolyheadPipeline(model=model, tokenizer=tokenizer)("book a flight", tasks)
loaded = pipeline(model="by_wheel", trust_remote_code=True)("book a flight", tasks)
assert direct == loaded, (direct, loaded)
"""


def main() -> None:
    """Save here, load there; a failing step ends with its exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}

        def run(*args: str) -> None:
            subprocess.run(args, check=True, cwd=folder, env=env)

        run(sys.executable, "-c", MAKE)
        run(sys.executable, "-m", "venv", "venv")
        python = str(folder / "venv/bin/python")
        pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        torch = next(line for line in pinned if line.startswith("torch=="))
        pip = (python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"))
        run(*pip, torch)
        run(*pip, "transformers")
        run(python, "-c", STRANGER)
        sys.stdout.write("a stranger with torch and transformers: same logits, same bytes\n")
        run(sys.executable, "-m", "build", "--wheel", "--outdir", name, str(ROOT))
        run(*pip, str(next(folder.glob("*.whl"))))
        run(python, "-c", USE)
        polyhead = str(folder / "venv/bin/polyhead")
        run(polyhead, "predict", "by_wheel", "book a flight", "--tasks", "intent", "--json")
        sys.stdout.write("wheel: 2 passed, 0 failed\n")


if __name__ == "__main__":
    main()
