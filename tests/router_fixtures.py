"""A model whose router names each of its tasks for some texts, and none for all of them."""

import pytest
import torch
from conftest import shake_adapters
from peft import LoraConfig
from polyhead.modeling import PolyheadPipeline, TaskConfig

CLASSES = {"head": "sequence_classification"}
KNOWN = ["far", "intent", "long", "slots", "topics", "vector"]
ROUTER = TaskConfig(**CLASSES, problem_type="multi_label_classification", labels=KNOWN)
TASKS = {
    "far": TaskConfig(**CLASSES, labels=["a", "b"]),  # gets an adapter
    "intent": TaskConfig(**CLASSES, labels=["book", "play", "ask"]),
    "later": TaskConfig(**CLASSES, labels=["a", "b"]),  # the router does not know it
    "long": TaskConfig(**CLASSES, labels=["a", "b"], long_texts="windows"),
    "router": ROUTER,
    "same": TaskConfig(**CLASSES, labels=["no", "yes"], pair=True),
    "slots": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x"]),
    "topics": TaskConfig(**CLASSES, problem_type="multi_label_classification", labels=["x", "y"]),
    "vector": TaskConfig(head="embedding", prompts=["query: ", "text: "]),
}
LONG = "Book a table for two in Paris at seven, please. The train leaves on Monday. " * 8
MANY = [
    "Book a table for two in Paris at seven tonight, please.",
    "Play music",
    "go 🎉",
    LONG,
    "",
    "Two tickets, please. " * 30,
    "Monday",
    "go go go",
]


@pytest.fixture(name="routed")
def make_routed(make_model, tokenizer_of) -> PolyheadPipeline:
    """Its pipeline."""
    model, tokenizer = make_model("bert", TASKS), tokenizer_of("wordpiece")
    model.attach_adapter("far", LoraConfig(r=2, target_modules=["query"]), tasks=["far"])
    shake_adapters(model)
    model.config.router = "router"
    made = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
    with torch.no_grad():
        texts = tokenizer(MANY, padding=True, truncation=True, max_length=64, return_tensors="pt")
        logits = model.eval()(**texts, tasks=["router"]).logits["router"]
        scale = 3 / logits.std(0)
        model.heads["router"].out.weight.mul_(scale[:, None])
        model.heads["router"].out.bias.sub_(logits.mean(0)).mul_(scale)
    return made
