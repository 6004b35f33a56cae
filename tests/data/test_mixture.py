"""The mixture's stream: shares, passes, workers, ranks and places to go on from."""

import json
from collections import Counter
from itertools import islice

import datasets
import pytest
import torch
from mixtures import LENGTH, PROCESSOR, mixture, png, records, source, words
from torch.utils.data import DataLoader

from mm1_hf.data.examples import ExampleEncoder
from mm1_hf.data.mixture import SOURCES_KEY, STATE_KEY, Mixture, Source
from mm1_hf.data.records import open_records


def take(stream: Mixture, number: int, workers: int = 0) -> list[dict]:
    return list(islice(DataLoader(stream, batch_size=None, num_workers=workers), number))


def assert_same(some: list[dict], others: list[dict]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name == STATE_KEY:
                assert json.loads(value) == json.loads(other[name])
            else:
                assert torch.equal(value, other[name]), name


def test_batches_fit_the_contracts_of_packed_rows_and_flat_tiles():
    stream = mixture()
    stream.split(rank=0, world_size=1, rows_per_batch=3)
    for batch in take(stream, 12):
        assert next(iter(batch)) == "input_ids"
        assert batch["input_ids"].shape == batch["labels"].shape == batch["segment_ids"].shape == (3, LENGTH)
        tiles = (batch["input_ids"] == PROCESSOR.image_token_id).sum().item() // 4
        assert len(batch.get("pixel_values", ())) == tiles
        assert batch[SOURCES_KEY].shape == (3,)
        assert (batch["labels"] == -100)[batch["input_ids"] == PROCESSOR.image_token_id].all()


def test_tiles_stand_beside_the_words_of_their_own_record():
    images = PROCESSOR.image_processor
    for batch in take(mixture(source("caption", 300)), 20):
        mean, std = (torch.tensor(values[:2]) for values in (images.image_mean, images.image_std))
        colours = (batch["pixel_values"][:, :2, 0, 0] * std + mean).mul(255).round().int().tolist()
        assert [int(word) for word in words([batch])] == [red + 256 * green for red, green in colours]


@pytest.mark.parametrize("streaming", [0, 3])
def test_the_number_of_workers_changes_nothing(streaming):
    kinds = ("caption", "interleaved", "text")
    alone, two, four = (
        take(mixture(*(source(kind, streaming=streaming) for kind in kinds)), 24, workers) for workers in (0, 2, 4)
    )
    assert_same(alone, two)
    assert_same(alone, four)


def test_workers_that_cannot_share_the_lanes_are_refused():
    with pytest.raises(ValueError, match="3 data workers cannot share 4 lanes"):
        take(mixture(), 1, workers=3)


@pytest.mark.parametrize("unit", ["rows", "documents", "tokens"])
def test_shares_are_those_of_the_weights(unit):
    weights = {"caption": 0.45, "interleaved": 0.45, "text": 0.1}
    stream = mixture(*(source(kind, weight=weight) for kind, weight in weights.items()), unit=unit)
    amounts = Counter()
    for batch in take(stream, 400):
        stream.consumed(batch[STATE_KEY])
        name = stream.source_names[batch[SOURCES_KEY]]
        segments = batch["segment_ids"]
        amounts[name] += {"rows": 1, "documents": int(segments.max()), "tokens": int((segments > 0).sum())}[unit]
    observed = stream.shares()
    for name, weight in weights.items():
        assert amounts[name] / amounts.total() == pytest.approx(weight, abs=0.02)
        assert observed[name] == pytest.approx(amounts[name] / amounts.total(), abs=1e-6)


@pytest.mark.parametrize("streaming", [0, 2, 8])
def test_every_record_that_is_read_is_given_out_once(streaming):
    """At once or, where its row stayed too empty, with the next window."""
    stream, rank, world_size = mixture(source("text", 96, streaming=streaming, longest=40)), 1, 2
    stream.split(rank, world_size, 1)
    given = {lane: Counter() for lane in range(4)}
    for batch in take(stream, 200):
        given[json.loads(batch[STATE_KEY])["lane"]].update(words([batch]))
        stream.consumed(batch[STATE_KEY])
    for lane, state in stream.state_dict()["lanes"].items():
        reader = open_records(
            stream.sources[0].dataset, "text", seed=0, reader=4 * rank + int(lane), readers=4 * world_size
        )
        read = [reader.read()[0]["parts"][0]["text"][:4] for _ in range(16 * state["sources"]["text"]["windows"])]
        assert Counter(read[:-32]) <= given[int(lane)] <= Counter(read)
        assert len(read) > 64


@pytest.mark.parametrize("streaming", [0, 3])
@pytest.mark.parametrize("stops", [(1,), (7, 5), (13, 26)])
def test_going_on_gives_the_batches_of_a_run_without_a_stop(streaming, stops):
    def build() -> Mixture:
        kinds = ("caption", "interleaved", "text")
        stream = mixture(*(source(kind, 40, streaming=streaming, longest=40) for kind in kinds))
        stream.split(0, 1, 2)
        return stream

    straight = take(build(), sum(stops) + 20)
    state, batches = None, []
    for number, workers in zip((*stops, 20), (2, 0, 4), strict=False):
        stream = build()
        if state is not None:
            stream.load_state_dict(json.loads(state))
        # More is read ahead than is consumed.
        fetched = take(stream, number + 3, workers)[:number]
        for batch in fetched:
            stream.consumed(batch[STATE_KEY])
        batches += fetched
        state = json.dumps(stream.state_dict())
    assert_same(straight, batches)


def test_another_mixture_does_not_take_up_a_state():
    state = mixture().state_dict()
    with pytest.raises(ValueError, match="seed: 0 in the checkpoint, 1 now"):
        mixture(seed=1).load_state_dict(state)
    stream = mixture()
    stream.split(0, 2, 1)
    with pytest.raises(ValueError, match="world_size: 1 in the checkpoint, 2 now"):
        stream.load_state_dict(state)


def broken(number: int, wrong: int) -> Source:
    """A few images whose head is right and whose pixels are cut off."""
    made = records("caption", number)
    for index in range(wrong):
        made[index * (number // wrong)]["parts"][0]["image"] = png(index)[:-30]
    return Source("caption", datasets.Dataset.from_list(made), "documents", 1.0)


def test_broken_images_are_left_out_and_counted_once():
    stream = mixture(broken(200, 4))
    state = None
    for _ in range(2):
        stream = mixture(broken(200, 4))
        if state is not None:
            stream.load_state_dict(state)
        for batch in take(stream, 40, workers=2):
            assert not {"0000", "0050", "0100", "0150"} & set(words([batch]))
            stream.consumed(batch[STATE_KEY])
        state = stream.state_dict()
    report = stream.drops().report()["caption"]
    passes = sum(lane["sources"]["caption"]["windows"] for lane in stream.state_dict()["lanes"].values()) * 16 / 200
    assert report["dropped"]["corrupt image"] == pytest.approx(4 * passes, abs=4)
    assert report["seen"] == 200 * passes


def test_too_many_broken_images_stop_the_run():
    with pytest.raises(ValueError, match=r"caption.*corrupt image"):
        take(mixture(broken(200, 100)), 200, workers=2)


def test_a_source_that_is_all_bad_is_called_all_bad():
    """Although a whole window is read before its first image is looked for."""
    made = records("caption", 600)
    for record in made:
        record["parts"][0]["image"] = {"bytes": None, "path": "nowhere.png"}
    stream = mixture(Source("caption", datasets.Dataset.from_list(made), "documents", 1.0), window=512)
    with pytest.raises(ValueError, match=r"Of the 100 records of caption .* 100 were dropped \(missing file 100\)"):
        take(stream, 1)
    stream = mixture(broken(600, 600), window=512)
    with pytest.raises(
        ValueError, match=r"and of the 100 examples whose images were decoded, 100 \(corrupt image 100\)"
    ):
        take(stream, 1)


def test_a_large_window_of_a_good_source_is_not_judged_by_its_bad_records_alone():
    """3 % are bad: more than a hundred of a window of 4,000."""
    made = records("text", 4000)
    for record in made[::33]:
        record["parts"] = [{"text": "", "image": None}]
    stream = mixture(Source("text", datasets.Dataset.from_list(made), "documents", 1.0), window=4000, lanes=1)
    take(stream, 1)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "at least one source"),
        ([("text", 0.0)], "weight 0.0"),
        ([("text", -1.0)], "weight -1.0"),
        ([("text", float("nan"))], "weight nan"),
        ([("text", 1.0), ("text", 1.0)], "same name"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sources, message):
    with pytest.raises(ValueError, match=message):
        Mixture([source(kind, weight=weight) for kind, weight in sources], ExampleEncoder(PROCESSOR, LENGTH))


def test_empty_sources_are_refused():
    empty = datasets.Dataset.from_list(records("text", 1)).select([])
    with pytest.raises(ValueError, match="text is empty"):
        mixture(Source("text", empty, "documents", 1.0))
    with pytest.raises(ValueError, match="The stream text has no record for reader"):
        take(mixture(Source("text", datasets.IterableDataset.from_generator(lambda: iter(())), "documents", 1.0)), 1)
    with pytest.raises(ValueError, match="layout 'pairs'"):
        mixture(Source("text", datasets.Dataset.from_list(records("text", 1)), "pairs", 1.0))
    with pytest.raises(ValueError, match="unit 'bytes'"):
        mixture(unit="bytes")
