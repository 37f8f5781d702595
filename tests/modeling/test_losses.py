"""Loss functions against their formulas; missing labels; one loss for one optimizer step."""

import math

import pytest
import torch
import torch.nn.functional as F
from polyhead.modeling import TaskConfig
from polyhead.modeling.heads import HEADS
from polyhead.modeling.losses import contrastive, cosent, cosine_mse, triplet
from sentence_transformers.sentence_transformer import losses
from torch.testing import assert_close
from transformers import BertConfig

GROUPS = torch.tensor(  # cosines of the pairs: 1, 0 and 0.96
    [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [4.0, 3.0]]]
)


# ---- the formulas ----


def test_cosine_mse_by_hand():
    loss = cosine_mse(GROUPS, torch.tensor([0.5, 0.25, 0.96]))
    assert_close(loss, torch.tensor(0.5**2 + 0.25**2 + 0.0))


def test_cosent_by_hand():
    # the middle pair (cosine 0) is said to be closer than the first (1): one wrong order
    loss = cosent(GROUPS[:2], torch.tensor([0.0, 1.0]), scale=2.0)
    assert_close(loss, torch.tensor(2 * math.log(1 + math.exp(2.0))))


def test_cosent_equals_a_loop_over_pairs_of_pairs():
    groups, scores = torch.randn(6, 2, 5), torch.tensor([0.0, 1, 0.5, 0.5, 1, -1])
    cosines = [F.cosine_similarity(a, b, dim=0).item() for a, b in groups]
    total = 1.0
    for i in range(6):
        for j in range(6):
            if scores[i] < scores[j]:
                total += math.exp(20 * (cosines[i] - cosines[j]))
    assert_close(cosent(groups, scores), torch.tensor(6 * math.log(total)))


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [0.0]])
def test_cosent_without_an_order_is_zero(scores):
    assert cosent(GROUPS[: len(scores)], torch.tensor(scores)) == 0.0


def test_cosent_counts_only_the_order_of_scores():
    low, high = torch.tensor([0.0, 0.2, 0.1]), torch.tensor([-5.0, 100.0, 3.0])
    assert_close(cosent(GROUPS, low), cosent(GROUPS, high))


def test_contrastive_by_hand():
    anchors, positives = torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    # cosines: [[1, 0.6], [0, 0.8]], divided by the temperature 0.5
    row0 = math.log(1 + math.exp((0.6 - 1.0) / 0.5))
    row1 = math.log(1 + math.exp((0.0 - 0.8) / 0.5))
    loss = contrastive(torch.stack([anchors, positives], dim=1), 0.5)
    assert_close(loss, torch.tensor(row0 + row1))


def test_contrastive_equals_a_loop_with_hard_negatives():
    groups, total = torch.randn(4, 3, 5), 0.0
    for i in range(4):
        scores = {
            (j, k): F.cosine_similarity(groups[i, 0], groups[j, k], dim=0) / 0.05
            for j in range(4)
            for k in (1, 2)
        }
        total += torch.logsumexp(torch.stack(list(scores.values())), 0) - scores[i, 1]
    assert_close(contrastive(groups, 0.05), total)


def test_contrastive_leaves_out_candidates_nearer_than_the_positive_by_a_margin():
    groups = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0], [0.8, 0.6]]])
    # cosines: [[0.6, 0.8], [0.8, 0.6]]
    whole = 2 * math.log(1 + math.exp(0.2 / 0.5))
    assert_close(contrastive(groups, 0.5), torch.tensor(whole))
    assert_close(contrastive(groups, 0.5, false_negative_margin=0.3), torch.tensor(whole))
    assert contrastive(groups, 0.5, false_negative_margin=0.1) == 0.0


def test_triplet_by_hand():
    groups = torch.tensor([[[0.0, 0], [3, 4], [0, 5.5]], [[0.0, 0], [0, 1], [0, 9]]])
    assert_close(triplet(groups, 1.0), torch.tensor(0.5))


def test_triplet_of_equal_texts_has_a_gradient():
    groups = torch.ones(1, 3, 2, requires_grad=True)
    triplet(groups, 1.0).backward()
    assert groups.grad.isfinite().all()


# ---- a head's loss: sum over labelled units / their number ----

CONFIG = BertConfig(hidden_size=4, vocab_size=9)


def head_of(**options):
    task = TaskConfig(**options)
    return HEADS[task.head](task=task, encoder_config=CONFIG, pooling="mean")


def multi():
    return head_of(
        head="sequence_classification",
        problem_type="multi_label_classification",
        labels=["a", "b", "c"],
    )


def test_single_label_loss_is_the_mean_over_labelled_rows():
    head = head_of(head="sequence_classification", labels=["a", "b", "c"])
    logits, labels = torch.randn(4, 3), torch.tensor([2, -100, 0, -100])
    assert head.count(labels) == 2
    assert_close(head.loss(logits, labels), F.cross_entropy(logits[[0, 2]], torch.tensor([2, 0])))


def test_multi_label_loss_is_the_mean_over_rows_of_the_mean_over_known_labels():
    nan = math.nan
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [3.0, 5.0, 7.0]])
    labels = torch.tensor([[1.0, 0, nan], [nan, nan, nan], [nan, nan, 1]])
    row0 = (math.log(2) + math.log(1 + math.e)) / 2
    row2 = math.log(1 + math.exp(-7))
    assert multi().count(labels) == 2
    assert_close(multi().loss(logits, labels), torch.tensor((row0 + row2) / 2))


def test_regression_loss_is_the_mean_over_known_rows():
    head = head_of(head="sequence_classification", problem_type="regression")
    labels = torch.tensor([1.0, math.nan, 4.0])
    assert head.count(labels) == 2
    loss = head.loss(torch.tensor([[2.0], [7.0], [1.0]]), labels)
    assert_close(loss, torch.tensor((1.0 + 9.0) / 2))


@pytest.mark.parametrize("options", [{"head": "masked_lm"}, {"labels": [*"abcdefghi"]}])
def test_token_losses_are_the_mean_over_labelled_tokens(options):
    head = head_of(**{"head": "token_classification", **options})
    logits, labels = torch.randn(2, 3, 9), torch.tensor([[-100, 4, 0], [8, -100, -100]])
    assert head.count(labels) == 3
    labelled = torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]])
    assert_close(head.loss(logits, labels), F.cross_entropy(labelled, torch.tensor([4, 0, 8])))


def test_embedding_loss_is_the_mean_over_scored_groups():
    head = head_of(head="embedding", loss="cosine_mse")
    scores = torch.tensor([0.5, math.nan, 0.0])
    assert head.count(scores) == 2
    assert_close(head.loss(GROUPS.flatten(0, 1), scores), torch.tensor((0.25 + 0.96**2) / 2))


@pytest.mark.parametrize("loss", ["cosent", "contrastive"])
def test_embedding_head_uses_the_loss_of_its_task(loss):
    head = head_of(head="embedding", loss=loss, temperature=0.1)
    scores = torch.tensor([0.1, 0.5, 0.0])
    expected = cosent(GROUPS, scores) if loss == "cosent" else contrastive(GROUPS, 0.1)
    assert_close(head.loss(GROUPS.flatten(0, 1), scores), expected / 3)


def test_embedding_rows_must_divide_into_groups():
    head = head_of(head="embedding")
    with pytest.raises(ValueError, match="5 rows for 2 scores: rows come in groups of 2 or more"):
        head.loss(torch.randn(5, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="3 rows for 3 scores"):
        head.loss(torch.randn(3, 4), torch.zeros(3))


@pytest.mark.parametrize("loss", ["cosine_mse", "cosent", "angle"])
def test_scored_pairs_are_pairs(loss):
    with pytest.raises(ValueError, match="pairs"):
        head_of(head="embedding", loss=loss).loss(torch.randn(6, 4), torch.zeros(2))


def test_loss_is_divided_by_the_given_number():
    head = head_of(head="sequence_classification", labels=["a", "b"])
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, -100, 1])
    expected = F.cross_entropy(logits, labels, reduction="sum") / 8
    assert_close(head.loss(logits, labels, torch.tensor(8)), expected)


# ---- against sentence-transformers ----


def reference(name, **options):
    """Their loss as a function of (G, g, D) groups and scores; a mean over the groups."""
    made = getattr(losses, name)(torch.nn.Identity(), **options)
    return lambda groups, scores: made.compute_loss_from_embeddings(list(groups.unbind(1)), scores)


def their_matryoshka(inner, widths):
    def total(groups, scores):
        cut = [F.normalize(groups[..., :width], dim=-1) for width in widths]
        return torch.stack([inner(part, scores) for part in cut]).sum()

    return total


WAYS = ("query_to_doc", "doc_to_query")
SYMMETRIC = {"directions": WAYS, "partition_mode": "per_direction"}
CASES = {
    "contrastive": ({"loss": "contrastive"}, 2, ("MultipleNegativesRankingLoss", {})),
    "hard-negatives": ({"loss": "contrastive"}, 4, ("MultipleNegativesRankingLoss", {})),
    "temperature": (
        {"loss": "contrastive", "temperature": 0.1},
        3,
        ("MultipleNegativesRankingLoss", {"scale": 10.0}),
    ),
    "symmetric": (
        {"loss": "contrastive", "symmetric": True},
        2,
        ("MultipleNegativesRankingLoss", SYMMETRIC),
    ),
    "cosent": ({"loss": "cosent"}, 2, ("CoSENTLoss", {})),
    "angle": ({"loss": "angle"}, 2, ("AnglELoss", {})),
    "cosine-mse": ({"loss": "cosine_mse"}, 2, ("CosineSimilarityLoss", {})),
    "triplet": (
        {"loss": "triplet", "margin": 0.7, "normalize": False},
        3,
        ("TripletLoss", {"triplet_margin": 0.7}),
    ),
    "margin-mse": ({"loss": "margin_mse", "normalize": False}, 3, ("MarginMSELoss", {})),
}


@pytest.mark.parametrize("widths", [None, [8, 4, 2]], ids=["whole", "matryoshka"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_sentence_transformers(case, widths):
    options, size, (name, arguments) = CASES[case]
    if widths:
        options = {**options, "normalize": True, "matryoshka": widths}
    head, theirs = head_of(head="embedding", projection=8, **options), reference(name, **arguments)
    if widths:
        theirs = their_matryoshka(theirs, widths)
    groups = torch.randn(6, size, 8, dtype=torch.float64)
    scores = torch.tensor([0.0, 0.2, 0.2, 0.9, 0.5, 1.0], dtype=torch.float64)
    embeddings, expected = groups.clone().requires_grad_(), groups.clone().requires_grad_()
    ours = head.loss_sum(embeddings.flatten(0, 1), scores) / len(groups)
    other = theirs(expected, scores)
    ours.backward()
    other.backward()
    assert_close(ours, other)
    assert_close(embeddings.grad, expected.grad)


def test_a_teachers_vectors_equal_sentence_transformers():
    head, theirs = head_of(head="embedding", projection=8, loss="mse"), losses.MSELoss
    vectors, teacher = torch.randn(2, 5, 8, dtype=torch.float64)
    embeddings, expected = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    ours = head.loss(embeddings, teacher)
    other = theirs(torch.nn.Identity()).compute_loss_from_embeddings([expected], [teacher])
    ours.backward()
    other.backward()
    assert_close(ours.double(), other, rtol=0, atol=1e-6)
    assert_close(embeddings.grad, expected.grad, rtol=0, atol=1e-6)


def test_texts_without_a_teachers_vector_do_not_count():
    head = head_of(head="embedding", projection=4, loss="mse")
    vectors, teacher = torch.randn(3, 4), torch.randn(3, 4)
    teacher[1] = float("nan")
    assert head.count(teacher) == 2
    expected = head.loss(vectors[[0, 2]], teacher[[0, 2]])
    assert_close(head.loss(vectors, teacher), expected)
    with pytest.raises(ValueError, match=r"labels are \(3, 5\), embeddings \(3, 4\)"):
        head.loss(vectors, torch.randn(3, 5))


# ---- in the model: missing labels, accumulation ----

NUMBER = {"head": "sequence_classification", "problem_type": "regression"}
TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["a", "b", "c"], dropout=0.0),
    "topics": TaskConfig(
        head="sequence_classification",
        problem_type="multi_label_classification",
        labels=["a", "b"],
        dropout=0.0,
    ),
    "urgency": TaskConfig(**NUMBER, dropout=0.0),
    "slots": TaskConfig(
        head="token_classification", labels=["O", "B-x"], dropout=0.0, loss_weight=0.5
    ),
    "words": TaskConfig(head="masked_lm"),
    "pairs": TaskConfig(head="embedding", loss="cosine_mse"),
}
MISSING = {"intent": -100, "slots": -100, "words": -100}


@pytest.fixture
def model(make_model):
    return make_model("bert", TASKS).train()


def labels_for(batch):
    """Labels of every task for every row (pairs: for every two rows)."""
    rows, tokens = batch["input_ids"].shape
    slots = (batch["input_ids"] % 2).masked_fill(batch["attention_mask"] == 0, -100)
    words = torch.full((rows, tokens), -100)
    words[:, 1] = batch["input_ids"][:, 1]
    words[::3, 2] = batch["input_ids"][::3, 2]
    return {
        "intent": torch.arange(rows) % 3,
        "topics": (torch.arange(rows * 2) % 3 == 0).float().view(rows, 2),
        "urgency": torch.linspace(-1, 1, rows),
        "slots": slots,
        "words": words,
        "pairs": torch.linspace(-1, 1, rows // 2),
    }


def gradients(model):
    by_name = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return by_name


def assert_same_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", list(TASKS))
def test_rows_without_label_are_as_rows_left_out(name, model, batch_of):
    batch = batch_of(model, [9, 5, 12, 7, 4, 6])
    labels = labels_for(batch)[name]
    units = torch.tensor([True, False, True, True, False, True])[: len(labels)]
    rows = units if name != "pairs" else units.repeat_interleave(2)
    partial = labels.clone()
    partial[~units] = MISSING.get(name, math.nan)
    with_gaps = model(**batch, tasks=[name], labels={name: partial})
    with_gaps.loss.backward()
    actual = gradients(model)
    labelled = {key: value[rows] for key, value in batch.items()}
    without = model(**labelled, tasks=[name], labels={name: labels[units]})
    without.loss.backward()
    assert_close(with_gaps.losses[name], without.losses[name])
    assert_same_gradients(actual, gradients(model))


@pytest.mark.parametrize("name", list(TASKS))
def test_a_batch_without_any_label_gives_zero_loss_and_zero_gradient(name, model, batch_of):
    batch = batch_of(model, [9, 5])
    labels = labels_for(batch)[name]
    labels = torch.full_like(labels, MISSING.get(name, math.nan))
    out = model(**batch, labels={name: labels})
    assert out.loss == 0.0
    out.loss.backward()
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_total_is_the_weighted_sum_of_the_losses(model, batch_of):
    batch = batch_of(model, [9, 5, 12, 7])
    out = model(**batch, labels=labels_for(batch))
    assert list(out.losses) == list(TASKS)
    total = sum(loss * (0.5 if name == "slots" else 1.0) for name, loss in out.losses.items())
    assert_close(out.loss, total)


def test_a_joint_row_gives_each_task_its_own_loss(model, batch_of):
    batch = batch_of(model, [9, 5, 12, 7])
    labels = labels_for(batch)
    together = model(**batch, labels=labels).losses
    for name in TASKS:
        alone = model(**batch, labels={name: labels[name]}).losses
        assert list(alone) == [name]
        assert_close(alone[name], together[name])


def test_labels_of_all_rows_are_cut_to_the_rows_of_the_task(model, batch_of):
    batch = batch_of(model, [9, 5, 12, 7])
    labels = labels_for(batch)
    ids = torch.tensor([0, 3, 0, 3])
    whole = model(
        **batch, task_ids=ids, labels={"intent": labels["intent"], "slots": labels["slots"]}
    )
    cut = model(
        **batch,
        task_ids=ids,
        labels={"intent": labels["intent"][[0, 2]], "slots": labels["slots"][[1, 3]]},
    )
    assert_close(whole.losses["intent"], cut.losses["intent"], atol=0, rtol=0)
    assert_close(whole.losses["slots"], cut.losses["slots"], atol=0, rtol=0)


def test_labels_of_neither_all_rows_nor_the_rows_of_the_task_are_refused(model, batch_of):
    batch = batch_of(model, [9, 5, 12, 7])
    ids = torch.tensor([0, 3, 0, 3])
    with pytest.raises(ValueError, match="intent"):
        model(**batch, task_ids=ids, labels={"intent": torch.tensor([0, 1, 2])})


def step(model, parts):
    """Losses by task and gradients of one optimizer step over micro-batches (inputs, labels)."""
    items, losses = {}, {}
    for _, labels in parts:
        for name, count in model.count_items(labels).items():
            items[name] = items.get(name, 0) + count
    for inputs, labels in parts:
        out = model(**inputs, labels=labels, num_items=items)
        out.loss.backward()
        for name, loss in out.losses.items():
            losses[name] = losses.get(name, 0) + loss.detach()
    return losses, gradients(model)


def mixed(batch, labels):
    """Of every 4 rows 2 are a pair, the others go to the other tasks in turn."""
    others = ["intent", "slots", "topics", "slots", "words", "urgency", "intent"]
    route = [("pairs", "pairs", others[n % 7], others[(3 * n + 1) % 7]) for n in range(8)]
    ids = torch.tensor([list(TASKS).index(name) for four in route for name in four])
    cut = {"pairs": labels["pairs"][::2]}
    for name in others:
        elsewhere = ids != list(TASKS).index(name)
        cut[name] = labels[name].clone()
        cut[name][elsewhere] = MISSING.get(name, math.nan)
    return {**batch, "task_ids": ids}, cut


def split(inputs, labels, parts):
    """Every tensor in `parts` equal pieces, in order."""
    pieces = {key: value.chunk(parts) for key, value in inputs.items()}
    label_pieces = {key: value.chunk(parts) for key, value in labels.items()}
    return [
        (
            {key: piece[n] for key, piece in pieces.items()},
            {key: piece[n] for key, piece in label_pieces.items()},
        )
        for n in range(parts)
    ]


@pytest.mark.parametrize("kind_of_batch", ["joint", "mixed", *TASKS])
def test_32_rows_at_once_equal_8_accumulated_batches_of_4(kind_of_batch, model, batch_of):
    batch = batch_of(model, [3 + (7 * row) % 9 for row in range(32)])
    labels = labels_for(batch)
    labels["intent"][[1, 2, 3, 17]] = -100  # uneven counts: a mean of means would differ
    labels["urgency"][[0, 5, 6]] = labels["topics"][9:12] = labels["pairs"][2] = math.nan
    if kind_of_batch == "mixed":
        batch, labels = mixed(batch, labels)
    elif kind_of_batch != "joint":
        labels = {kind_of_batch: labels[kind_of_batch]}
    losses, expected = step(model, [(batch, labels)])
    in_parts, actual = step(model, split(batch, labels, 8))
    assert losses.keys() == labels.keys()
    assert in_parts.keys() == losses.keys()
    for name, loss in losses.items():
        assert_close(in_parts[name], loss, atol=1e-5, rtol=1e-5)
    assert_same_gradients(actual, expected)


def test_counted_items_are_the_labelled_units(model, batch_of):
    batch = batch_of(model, [9, 5, 12, 7])
    labels = labels_for(batch)
    labels["intent"][0] = -100
    labels["topics"][1, 0] = labels["topics"][2] = labels["urgency"][3] = labels["pairs"][1] = (
        math.nan
    )
    counts = {name: int(count) for name, count in model.count_items(labels).items()}
    assert counts == {
        "intent": 3, "topics": 3, "urgency": 3, "slots": 33, "words": 6, "pairs": 1
    }  # fmt: skip


def test_losses_divide_by_the_given_count_of_their_own_task(model, batch_of):
    batch = batch_of(model, [9, 5, 12, 7])
    labels = {name: labels_for(batch)[name] for name in ("intent", "slots")}
    plain = model(**batch, labels=labels).losses
    items = {"intent": torch.tensor(40), "slots": torch.tensor(66)}
    scaled = model(**batch, labels=labels, num_items=items).losses
    assert_close(scaled["intent"], plain["intent"] * 4 / 40)
    assert_close(scaled["slots"], plain["slots"] * 33 / 66)
