"""Classes in order: CORN's loss and its decoding, in the form of log-probabilities."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ENCODERS
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.problem_types import PROBLEM_TYPES, middle_class, ordinal_logits
from polyhead.modeling.views import view_of
from polyhead.train.errors import UserError
from polyhead.train.export.plain import export_hf
from polyhead.train.kinds import kind_of
from torch.testing import assert_close

ORDINAL = PROBLEM_TYPES["ordinal"]
LABELS = ["bad", "poor", "fair", "good", "fine"]
TASK = TaskConfig(head="sequence_classification", labels=LABELS, problem_type="ordinal")
STEPS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 3
RANKS = torch.arange(200) % 5


def corn_loss_sum(steps, ranks):
    """As arXiv:2111.08851 has it: each step is learned on the rows that reach it."""
    total = torch.zeros(())
    for k in range(steps.shape[1]):
        reached = ranks > k - 1
        target = (ranks[reached] > k).float()
        total = total + F.binary_cross_entropy_with_logits(
            steps[reached, k], target, reduction="sum"
        )
    return total


def test_cross_entropy_of_the_log_probabilities_is_corns_loss():
    logits = ordinal_logits(STEPS)
    assert_close(logits.exp().sum(-1), torch.ones(200))
    assert_close(ORDINAL.loss_sum(logits, RANKS), corn_loss_sum(STEPS, RANKS))
    unlabelled = RANKS.clone()
    unlabelled[::2] = -100
    expected = corn_loss_sum(STEPS[1::2], RANKS[1::2])
    assert_close(ORDINAL.loss_sum(logits, unlabelled), expected)
    assert ORDINAL.count(unlabelled) == 100


def test_it_is_decoded_as_corn_does_and_with_the_least_absolute_error():
    above = STEPS.sigmoid().cumprod(-1)
    assert (above.diff(dim=-1) <= 0).all()
    logits = ordinal_logits(STEPS)
    assert torch.equal(middle_class(logits), (above > 0.5).sum(-1))
    distances = (torch.arange(5)[:, None] - torch.arange(5)).abs().float()
    errors = logits.exp() @ distances
    best = errors.gather(1, middle_class(logits)[:, None]).squeeze(1)
    assert_close(best, errors.min(-1).values)


def test_large_steps_stay_finite():
    steps = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)
    logits = ordinal_logits(steps)
    ORDINAL.loss_sum(logits, torch.tensor([2, 2])).backward()
    assert logits.isfinite().all()
    assert steps.grad.isfinite().all()


@pytest.fixture(scope="module")
def model(encoder_folder) -> PolyheadModel:
    torch.manual_seed(0)
    folder = str(encoder_folder("bert"))
    made = PolyheadModel.from_encoder(folder, tasks={"stars": TASK})
    made.heads["stars"].out.weight.data *= 5
    made.heads["stars"].out.bias.data = torch.tensor([0.4, 0.6, 0.0, 0.0])
    return made


def test_the_pipeline_answers_what_evaluation_scores(model, tokenizer_of):
    tokenizer = tokenizer_of(ENCODERS["bert"][0])
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, compute="exact")
    texts = [f"{word} it {n}" for word in ("book", "cancel", "the train") for n in range(10)]
    assert model.heads["stars"].out.out_features == 4
    with torch.no_grad():
        inputs = [tokenizer(text, return_tensors="pt") for text in texts]
        logits = torch.stack([model(**one).logits["stars"][0] for one in inputs])
    read = kind_of(TASK).read(logits)
    answers = [answer["stars"] for answer in pipe(texts)]
    assert [answer["label"] for answer in answers] == read
    likeliest = [LABELS[i] for i in logits.argmax(-1)]
    assert read != likeliest
    probabilities = logits.exp()
    for answer, row in zip(answers, probabilities, strict=True):
        assert answer["score"] == pytest.approx(float(row[LABELS.index(answer["label"])]))
    ranked = pipe(texts[0], top_k=None)["stars"]
    assert [answer["label"] for answer in ranked][0] == likeliest[0]
    assert sum(answer["score"] for answer in ranked) == pytest.approx(1)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    ids = {"input_ids": torch.arange(5, 15)[None]}
    model.save_pretrained(tmp_path)
    again = PolyheadModel.from_pretrained(tmp_path)
    assert torch.equal(model(**ids).logits["stars"], again(**ids).logits["stars"])


def test_what_would_answer_the_likeliest_class_is_refused(model, tokenizer_of, tmp_path):
    with pytest.raises(ValueError, match="the middle of its classes"):
        view_of(model, "stars")
    tokenizer = tokenizer_of(ENCODERS["bert"][0])
    with pytest.raises(UserError, match="the middle of its classes"):
        export_hf(model, tokenizer, task="stars", folder=tmp_path / "plain")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": ["one"]}, "ordinal needs 2 labels or more"),
        ({"labels": LABELS, "strict": {"fine": 0.5}}, "belong to"),
        ({"labels": LABELS, "grown": [1]}, "belong to"),
    ],
)
def test_options_that_it_does_not_read_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        TaskConfig(head="sequence_classification", problem_type="ordinal", **options)
