"""One model, or several, called from many threads: each answer is that of one thread, to the bit.

Each scenario is a set of calls with their answers found beforehand; threads then make them in an
order of their own, with the interpreter switching between threads as often as it can. The unit tier
makes some hundred calls, the slow tier 10,000 for each scenario.
"""

import asyncio
import copy
import multiprocessing
import os
import pickle
import random
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import zip_longest

import numpy as np
import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from transformers import AutoModel, pipeline

peft = pytest.importorskip("peft")

THREADS = 8
CALLS = {"few": 400, "many": 10_000}
TEXTS = [
    "Book a table for two in Paris.",
    "Anna Smith works for Acme in Berlin and lives in Zürich, says the train to New York.",
    "Play some music",
    "six",
    "What is the weather like in San Francisco tomorrow morning? " * 3,
]
LABELS = ["O", "B-city", "I-city"]
TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["book", "play", "ask"]),
    "mood": TaskConfig(head="sequence_classification", labels=["good", "bad"]),
    "slots": TaskConfig(head="token_classification", labels=LABELS),
    "vector": TaskConfig(head="embedding"),
    "relation": TaskConfig(head="sequence_classification", labels=["same", "other"], pair=True),
}
SINGLE = ["intent", "mood", "slots", "vector"]


@pytest.fixture(params=["few", pytest.param("many", marks=pytest.mark.slow)])
def calls(request) -> int:
    """How many calls a scenario makes."""
    return CALLS[request.param]


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def lora(**options) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False, **options
    )


@pytest.fixture
def make(make_model, tokenizer_of):
    """(kind, adapters by task) -> a pipeline on a model with them."""

    def make_pipe(kind="bert", family="wordpiece", adapters=None, **options):
        model = make_model(kind, TASKS)
        for task, config in (adapters or {}).items():
            model.attach_adapter(task, config, [task])
        return PolyheadPipeline(model=model.eval(), tokenizer=tokenizer_of(family), **options)

    return make_pipe


@pytest.fixture
def pipe(make):
    """Three adapters, on intent, slots and vector; mood and relation read the bare encoder."""
    adapters = {"intent": lora(), "slots": lora(use_rslora=True), "vector": lora(lora_bias=True)}
    return make(adapters=adapters)


def same(one, other) -> bool:
    """Equal to the bit, through lists, dicts, tensors and arrays."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return one == other


def answers_of(pipe) -> list:
    """Calls of a pipeline: single tasks, all of them, several texts, pairs."""
    made = [partial(pipe, text, tasks=[task]) for text in TEXTS[:4] for task in SINGLE]
    made += [partial(pipe, text) for text in TEXTS]
    made += [partial(pipe, TEXTS[:3], tasks=["slots", "mood"]), partial(pipe, TEXTS, top_k=2)]
    return [*made, partial(pipe, [("Play some music", "six")] * 2)]


def forwards_of(pipe) -> list:
    """Calls of the model: padded, packed by the caller, with task ids, the encoder alone."""
    model, tokenizer = pipe.model, pipe.tokenizer
    tokens = dict(tokenizer(TEXTS[:3], padding=True, truncation=True, return_tensors="pt"))
    one = dict(tokenizer(TEXTS[2], return_tensors="pt"))
    rows = [tokenizer(text)["input_ids"] for text in TEXTS[:3]]
    packed = {
        "input_ids": torch.tensor([sum(rows, [])]),
        "cu_seq_lens_q": torch.tensor([0, *np.cumsum([len(r) for r in rows])], dtype=torch.int32),
    }

    @torch.no_grad()
    def logits(**inputs):
        output = model(**inputs)
        return {**(output.logits or {}), **(output.embeddings or {})}

    @torch.no_grad()
    def states(**inputs):
        return model.encoder(**inputs).last_hidden_state

    singles = {"tasks": SINGLE}
    return [
        partial(logits, **tokens, **singles),
        partial(logits, **tokens, tasks=["mood"]),
        partial(logits, **one, **singles),
        partial(logits, **packed, **singles),
        partial(logits, **tokens, task_ids=torch.tensor([0, 1, 2])),
        partial(logits, **packed, task_ids=torch.tensor([2, 0, 1])),
        partial(states, **tokens),
    ]


def hammer(calls_made: list, count: int, threads: int = THREADS) -> None:
    """Make `count` of these calls in threads; each must answer as it did alone."""
    expected = [call() for call in calls_made]
    wrong, errors = [], []

    def work(number: int) -> None:
        generator = random.Random(number)
        for _ in range(count // threads):
            chosen = generator.randrange(len(calls_made))
            try:
                if not same(calls_made[chosen](), expected[chosen]):
                    wrong.append(chosen)
            except Exception as error:  # noqa: BLE001 - counted, whatever it is
                errors.append(repr(error))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (len(wrong), errors[:3]) == (0, []), f"{len(wrong)} wrong, {len(errors)} errors"


def check_nothing_stays(pipe, make_model) -> None:
    """No plan is in force: the encoder by itself is the one without adapters."""
    tokens = pipe.tokenizer(TEXTS[:3], padding=True, truncation=True, return_tensors="pt")
    bare = make_model("bert", TASKS).eval()
    with torch.no_grad():
        expected = bare.encoder(**tokens).last_hidden_state
        assert torch.equal(pipe.model.encoder(**tokens).last_hidden_state, expected)
        states = pipe.model(**tokens, tasks=()).last_hidden_state
        assert torch.equal(states, expected)


class TestOneModel:
    @pytest.mark.parametrize("threads", [2, THREADS])
    def test_a_pipeline_with_adapters(self, pipe, calls, threads, make_model):
        hammer(answers_of(pipe), calls, threads)
        check_nothing_stays(pipe, make_model)

    def test_one_task_with_an_adapter(self, pipe, calls):
        hammer([partial(pipe, text, tasks=["intent"]) for text in TEXTS[:4]], calls)

    def test_padded_and_packed_forwards_beside_a_pipeline(self, pipe, calls, make_model):
        hammer([*answers_of(pipe), *forwards_of(pipe)], calls)
        check_nothing_stays(pipe, make_model)

    def test_the_first_calls_of_all(self, make):
        for _ in range(10):  # what is made at first use is made by several threads at once
            pipe = make(adapters={"slots": lora()})
            results = []
            barrier = threading.Barrier(THREADS)

            def work(pipe=pipe, results=results, barrier=barrier):
                barrier.wait()
                results.append(pipe(TEXTS))

            workers = [threading.Thread(target=work) for _ in range(THREADS)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert len(results) == THREADS
            assert all(same(result, pipe(TEXTS)) for result in results)

    @pytest.mark.parametrize(
        ("kind", "family"),
        [("modernbert", "bpe"), ("deberta-v2", "wordpiece"), ("mpnet", "bpe"), ("llama", "bpe")],
    )
    def test_other_encoders(self, kind, family, make):
        targets = {"modernbert": ["Wqkv"], "deberta-v2": ["query_proj", "value_proj"]}
        targets |= {"mpnet": ["q", "v"], "llama": ["q_proj", "v_proj"]}
        config = peft.LoraConfig(r=2, target_modules=targets[kind], init_lora_weights=False)
        pipe = make(kind, family, {"intent": config, "slots": config})
        hammer([*answers_of(pipe), *forwards_of(pipe)], CALLS["few"])

    @pytest.mark.parametrize(
        "config",
        [lora(use_dora=True), peft.IA3Config(
            target_modules=["query", "value"], feedforward_modules=[], init_ia3_weights=False)],
        ids=["dora", "ia3"],
    )  # fmt: skip
    def test_adapters_that_run_their_own_forward(self, config, make):
        pipe = make(adapters={"intent": config, "slots": config})
        hammer([*answers_of(pipe), *forwards_of(pipe)], CALLS["few"])

    def test_views_and_sentence_transformers_beside_a_pipeline(self, pipe, tmp_path, calls):
        sentence_transformers = pytest.importorskip("sentence_transformers")
        from polyhead.train.hub import save_folder

        save_folder(pipe.model, pipe.tokenizer, tmp_path / "model")
        loaded = sentence_transformers.SentenceTransformer(
            str(tmp_path / "model"), trust_remote_code=True
        )
        encode = partial(loaded.encode, show_progress_bar=False)
        tokens = pipe.tokenizer(TEXTS[:3], padding=True, truncation=True, return_tensors="pt")
        views = [pipe.model.view("slots"), pipe.model.view("intent")]

        @torch.no_grad()
        def logits(view):
            return view(**tokens).logits

        hammer(
            [
                *answers_of(pipe),
                *(partial(logits, view) for view in views),
                partial(encode, TEXTS[:3]),
                partial(encode, TEXTS[2]),
            ],
            calls,
        )

    def test_a_stock_pipeline_of_a_view(self, pipe, calls):
        stock = pipeline(
            "text-classification", model=pipe.model.view("intent"), tokenizer=pipe.tokenizer
        )
        made = [partial(stock, text, truncation=True) for text in TEXTS]
        hammer([*made, *answers_of(pipe)], calls)

    def test_texts_cut_in_several_ways(self, pipe, calls):
        other = PolyheadPipeline(model=pipe.model, tokenizer=pipe.tokenizer)
        other.tokenizer = make_short(pipe.tokenizer)
        users_own = partial(
            lambda text: pipe.tokenizer(text, truncation=True, max_length=9)["input_ids"]
        )
        hammer([*answers_of(pipe), *answers_of(other), partial(users_own, TEXTS[1])], calls)


def make_short(tokenizer):
    """The tokenizer with a limit of 12 tokens: texts become several windows."""
    short = pickle.loads(pickle.dumps(tokenizer))
    short.model_max_length = 12
    return short


class TestSeveralModels:
    def test_two_with_adapters(self, make, calls):
        pipes = [
            make(adapters={"intent": lora()}),
            make(adapters={"slots": lora(), "mood": lora()}),
        ]
        hammer([call for pipe in pipes for call in (*answers_of(pipe), *forwards_of(pipe))], calls)

    def test_padded_forwards_of_one_beside_the_pipeline_of_another(self, make, calls):
        one, other = make("modernbert", "bpe"), make("modernbert", "bpe", compute="exact")
        hammer([*answers_of(one), *forwards_of(other)], calls)

    def test_loaded_in_threads(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        expected, answers = pipe(TEXTS), []

        def work():
            # not by remote code: transformers fails at times to copy it in several threads
            model = PolyheadModel.from_pretrained(tmp_path)
            loaded = PolyheadPipeline(model=model, tokenizer=pipe.tokenizer)
            answers.append(loaded(TEXTS))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(answers) == 4
        for answer in answers:
            assert same(answer, expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_served_while_another_is_loaded_in_another_dtype(self, dtype, pipe, make):
        made = [*answers_of(pipe), *forwards_of(pipe), *answers_of(make("modernbert", "bpe"))]
        expected = [call() for call in made]
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # as transformers does, for all threads, while it loads
        try:
            assert same([call() for call in made], expected)
        finally:
            torch.set_default_dtype(before)

    def test_one_trains_while_another_serves(self, make, calls):
        def trained(model):
            """Weights after some steps, padded and packed, through adapters."""
            torch.manual_seed(3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model.train()
            tokens = make_short(pipe.tokenizer)(
                TEXTS[:3], padding=True, truncation=True, return_tensors="pt"
            )
            labels = {"intent": torch.tensor([0, 1, 2]), "mood": torch.tensor([0, 1, -100])}
            losses = []
            for step in range(calls // 20):
                checkpointed = step % 2
                if checkpointed:
                    model.activation_checkpointing_enable({"use_reentrant": False})
                loss = model(**tokens, labels=labels, tasks=["intent", "mood"]).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
                model.activation_checkpointing_disable()
            return [*losses, *(p.detach().clone() for p in model.parameters())]

        pipe = make(adapters={"intent": lora(), "slots": lora()})
        models = [make(adapters={"intent": lora(), "mood": lora()}).model for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        for model in models:
            for module in model.modules():  # the generator is the process's: no dropout
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        expected, results = trained(models[0]), []
        trainer = threading.Thread(target=lambda: results.extend(trained(models[1])))
        trainer.start()
        hammer(answers_of(pipe), calls, threads=4)
        trainer.join()
        assert same(results, expected)

    def test_serving_a_model_in_training_mode_leaves_it_there(self, pipe):
        expected = pipe(TEXTS)
        pipe.model.train()
        assert same(pipe(TEXTS), expected)
        assert all(module.training for module in pipe.model.modules())


class TestOtherWaysToCall:
    def test_asyncio(self, pipe, calls):
        made = answers_of(pipe)
        expected = [call() for call in made]

        async def ask():
            chosen = [n % len(made) for n in range(calls)]
            answers = await asyncio.gather(*(asyncio.to_thread(made[n]) for n in chosen))
            return [same(answer, expected[n]) for answer, n in zip(answers, chosen, strict=True)]

        assert all(asyncio.run(ask()))

    def test_interleaved_generators(self, pipe):
        expected = {task: pipe(TEXTS, tasks=[task]) for task in SINGLE}

        def work():
            streams = [pipe(iter(TEXTS), tasks=[task]) for task in SINGLE]
            rows = list(zip_longest(*streams))
            for task, answers in zip(SINGLE, zip(*rows, strict=True), strict=True):
                assert same(list(answers), expected[task])

        hammer([lambda: work() or 0], 80)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_forked_after_loading(self, pipe):
        expected = pipe(TEXTS)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                pipe(TEXTS[:2])

        worker = threading.Thread(target=serve)
        worker.start()
        child = context.Process(target=lambda: queue.put(pickle.dumps(pipe(TEXTS))))
        child.start()
        try:
            answer = pickle.loads(queue.get(timeout=60))
        finally:
            stop.set()
            worker.join()
            child.join(timeout=10)
            child.kill()
        assert same(answer, expected)


def answer_of(pipe):
    """Run in another process."""
    return pipe(TEXTS)


ADAPTERS = {
    "none": {},
    "lora": {"intent": lora(), "slots": lora()},
    "dora": {"intent": lora(use_dora=True)},
    "ia3": {"slots": peft.IA3Config(target_modules=["query"], feedforward_modules=[])},
}


class TestPickles:
    @pytest.mark.parametrize("adapters", ADAPTERS.values(), ids=ADAPTERS)
    def test_models_and_pipelines(self, adapters, make, tmp_path):
        pipe = make(adapters=adapters)
        expected = pipe(TEXTS)
        assert same(pickle.loads(pickle.dumps(pipe))(TEXTS), expected)
        torch.save(pipe.model, tmp_path / "model.pt")
        model = torch.load(tmp_path / "model.pt", weights_only=False)
        assert isinstance(model, PolyheadModel)
        again = PolyheadPipeline(model=model, tokenizer=pipe.tokenizer)
        assert same(again(TEXTS), expected)

    @pytest.mark.parametrize("kind", ["bert", "modernbert"])
    def test_after_hidden_states_were_asked_for(self, kind, make_model, tokenizer_of):
        tasks = {name: TASKS[name] for name in SINGLE}
        tasks["deep"] = TaskConfig(head="embedding", pooling="mean_last_4")
        model = make_model(kind, tasks, num_hidden_layers=4).eval()
        family = "wordpiece" if kind == "bert" else "bpe"
        pipe = PolyheadPipeline(model=model, tokenizer=tokenizer_of(family), compute="exact")
        expected = pipe(TEXTS)
        tokens = pipe.tokenizer(TEXTS[0], return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens, output_hidden_states=True).hidden_states
            for other in (pickle.loads(pickle.dumps(pipe)), copy.deepcopy(pipe)):
                assert same(other(TEXTS), expected)
                assert same(other.model(**tokens, output_hidden_states=True).hidden_states, states)
        assert same(pipe(TEXTS), expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("remote", [False, True])
    def test_in_a_spawned_process(self, remote, pipe, tmp_path):
        if remote:  # the class then lies in transformers' cache of remote code
            pipe.save_pretrained(tmp_path)
            model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
            pipe = PolyheadPipeline(model=model, tokenizer=pipe.tokenizer)
        expected = pipe(TEXTS)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert same(pool.submit(answer_of, pipe).result(timeout=120), expected)
