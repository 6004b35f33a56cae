"""Images with two captions: training draws one of them, by a share, anew in every epoch, and the same after a stop."""

import json
from collections import Counter, defaultdict
from itertools import islice

import datasets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mixtures import mixture, png, words
from tiny import tiny_mm1
from torch.utils.data import DataLoader

from mm1_hf.cli import main
from mm1_hf.data.documents import Document, Unusable
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.mixture import STATE_KEY, Mixture, Source
from mm1_hf.data.two_captions import TwoCaptions, drawn_caption, two_documents
from mm1_hf.inspection.sources import inspect_document, inspect_mixture
from mm1_hf.training.checkpoints import stream_name
from mm1_hf.training.settings import PretrainingSettings, SourceSettings, load_settings


def records(number: int, **changes) -> list[dict]:
    """The first four characters of a caption tell its record: digits in alt texts, `s` and digits in synthetic captions."""
    return [
        {"image": png(index), "caption": f"{index:04d} alt", "synthetic_caption": f"s{index:03d} written", **changes}
        for index in range(number)
    ]


def source(number: int, share: float | None = 0.3, streaming: int = 0) -> Source:
    dataset = datasets.Dataset.from_list(records(number))
    if streaming:
        dataset = dataset.to_iterable_dataset(num_shards=streaming)
    return Source("captions", dataset, "two_captions", 1.0, synthetic_share=share)


def take(stream: Mixture, number: int, workers: int = 0) -> list[dict]:
    return list(islice(DataLoader(stream, batch_size=None, num_workers=workers), number))


def drawn(stream: Mixture, batches: int) -> Counter[str]:
    return Counter(words(take(stream, batches)))


def synthetic_share(counts: Counter[str]) -> float:
    return sum(count for word, count in counts.items() if word.startswith("s")) / counts.total()


@pytest.mark.parametrize("streaming", [0, 4])
@pytest.mark.parametrize("share", [0.07, 0.5])
def test_the_share_is_that_of_the_settings(share, streaming):
    counts = drawn(mixture(source(400, share, streaming)), 400)
    # Three standard deviations of as many independent draws.
    assert synthetic_share(counts) == pytest.approx(share, abs=3 * (share * (1 - share) / 400) ** 0.5)


@pytest.mark.parametrize(("share", "expected"), [(None, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_none_or_all_of_them(share, expected):
    assert synthetic_share(drawn(mixture(source(60, share)), 60)) == expected


def test_a_caption_stays_beside_its_own_image():
    images = tiny_mm1()[1].image_processor
    for batch in take(mixture(source(300, 0.5)), 20):
        mean, std = images.image_mean[0], images.image_std[0]
        reds = (batch["pixel_values"][:, 0, 0, 0] * std + mean).mul(255).round().int().tolist()
        greens = (
            (batch["pixel_values"][:, 1, 0, 0] * images.image_std[1] + images.image_mean[1]).mul(255).round().int()
        )
        numbers = [int(word.removeprefix("s")) for word in words([batch])]
        assert numbers == [red + 256 * green for red, green in zip(reds, greens.tolist(), strict=True)]


def by_record(counts: Counter[str]) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for word, count in counts.items():
        found[int(word.removeprefix("s"))]["s" if word.startswith("s") else "a"] += count
    return found


@pytest.mark.parametrize("streaming", [0, 4])
def test_every_epoch_draws_anew(streaming):
    found = by_record(drawn(mixture(source(40, 0.5, streaming)), 400))
    assert sum(len(kinds) == 2 for kinds in found.values()) > 30


def test_the_draw_does_not_depend_on_how_the_records_are_shared():
    """With other lanes, windows and ranks, a record has the same caption in the same epoch."""
    drawn_of: list[dict[int, str]] = []
    for lanes, window, ranks in ((4, 16, 1), (1, 30, 1), (2, 5, 2)):
        found: dict[int, str] = {}
        for rank in range(ranks):
            # None of them leaves the first epoch.
            stream = mixture(source(400, 0.5), lanes=lanes, window=window)
            stream.split(rank, ranks, 1)
            for _, examples in islice(stream.packed_examples(), 18 // ranks):
                for example in examples:
                    number = int(example.name.split()[1])
                    found[number] = example.name.rpartition(" (")[2]
        drawn_of.append(found)
    for other in drawn_of[1:]:
        common = other.keys() & drawn_of[0].keys()
        assert len(common) > 20
        assert all(other[number] == drawn_of[0][number] for number in common)


def test_another_seed_draws_others():
    one, other = (by_record(drawn(mixture(source(60, 0.5), seed=seed), 12)) for seed in (0, 1))
    assert any(one[number] != other[number] for number in one.keys() & other.keys())


@pytest.mark.parametrize("streaming", [0, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_gives_the_batches_of_a_run_without_a_stop(streaming, workers):
    def build() -> Mixture:
        stream = mixture(source(40, 0.5, streaming))
        stream.split(0, 1, 2)
        return stream

    straight = [batch["input_ids"].tolist() for batch in take(build(), 40)]
    state, seen = None, []
    for number in (7, 13, 20):
        stream = build()
        if state is not None:
            stream.load_state_dict(json.loads(state))
        for batch in take(stream, number, workers):
            stream.consumed(batch[STATE_KEY])
            seen.append(batch["input_ids"].tolist())
        state = json.dumps(stream.state_dict())
    assert seen == straight


def test_another_share_does_not_take_up_a_state_and_sources_of_one_caption_keep_theirs():
    with pytest.raises(ValueError, match=r"sources.captions.synthetic_share: 0.3 in the checkpoint, 0.5 now"):
        mixture(source(9, 0.5)).load_state_dict(mixture(source(9, 0.3)).state_dict())
    # A checkpoint from before there were two captions says nothing of a share.
    assert "synthetic_share" not in json.dumps(mixture().state_dict())


def test_a_share_is_between_0_and_1():
    with pytest.raises(ValueError, match="captions has the synthetic_share 7; give a share between 0 and 1"):
        mixture(source(9, 7))
    with pytest.raises(ValueError, match="synthetic_share is 7, but a share lies between 0 and 1"):
        SourceSettings("x", "two_captions", synthetic_share=7)
    with pytest.raises(
        ValueError, match=r"records of the layout .caption. have one caption\. Leave it out, or choose"
    ):
        SourceSettings("x", "caption", synthetic_share=0.5)
    assert SourceSettings("x", "two_captions").synthetic_share == 0.07
    assert SourceSettings("x", "caption").synthetic_share is None


@pytest.fixture
def settings(tmp_path) -> str:
    for part in tiny_mm1():
        part.save_pretrained(tmp_path / "model")
    datasets.Dataset.from_list(records(60)).to_parquet(tmp_path / "captions" / "train.parquet")
    written = {
        "model": str(tmp_path / "model"),
        "output_dir": str(tmp_path / "run"),
        "sources": {
            "caption": {"path": str(tmp_path / "captions"), "layout": "two_captions", "synthetic_share": 0.5},
        },
        "sequence_length": 48,
        "batch_size": 4,
        "lanes": 2,
        "window": 16,
        "arguments": {"max_steps": 2, "bf16": False, "use_cpu": True, "report_to": "none"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return str(tmp_path / "run.yaml")


def test_pre_training_draws_and_inspect_shows_which(settings, tmp_path, capsys):
    assert main(["pretrain", "--config", settings]) == 0
    state = json.loads(next((tmp_path / "run" / "checkpoint-2").glob(stream_name(0))).read_text())
    assert state["mixture"]["sources"]["caption"]["synthetic_share"] == 0.5
    capsys.readouterr()
    names = []
    for row in range(4):
        names += inspect_mixture(load_settings(PretrainingSettings, settings), row).segments
    assert {name.rpartition(" (")[2] for name in names} == {"alt text)", "synthetic caption)"}
    assert main(["inspect", "--config", settings, "--html", str(tmp_path / "row.html")]) == 0
    shown = capsys.readouterr().out
    page = (tmp_path / "row.html").read_text(encoding="utf-8")
    first = names[0]
    assert first in page
    assert first in shown or "(alt text)" in shown or "(synthetic caption)" in shown


def test_inspect_shows_both_captions_of_a_record():
    document = LAYOUTS["two_captions"](records(5)[4], "row 4")
    processor = tiny_mm1()[1]
    row = inspect_document(processor, document)
    assert row.segments == ("row 4 (alt text)", "row 4 (synthetic caption)")
    text = "".join(place.text for place in row.readings[0].positions if place.kind == "text")
    assert "0004 alt" in text and "s004 written" in text
    assert len(row.images) == 2


@pytest.mark.parametrize("empty", [None, "", " \n"])
def test_a_record_with_one_caption_has_no_draw(empty):
    for column, left in (("caption", "s000 written"), ("synthetic_caption", "0000 alt")):
        document = LAYOUTS["two_captions"](records(1, **{column: empty})[0])
        assert not isinstance(document, TwoCaptions)
        assert document.parts[1] == left
        assert drawn_caption(document, 0.5, "key") is document
    with pytest.raises(Unusable, match="no text"):
        LAYOUTS["two_captions"](records(1, caption=empty, synthetic_caption=empty)[0])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(TEXTS, TEXTS, st.text(alphabet="ab 0", max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_a_draw_is_one_of_both_and_a_larger_share_never_takes_a_synthetic_caption_away(
    alt, synthetic, key, one, other
):
    document = two_documents(Document("caption", (alt,), "a"), Document("caption", (synthetic,), "a"))
    lower, upper = (drawn_caption(document, share, key) for share in sorted((one, other)))
    assert lower in (document, document.synthetic)
    assert lower is drawn_caption(document, min(one, other), key)
    assert not (lower is document.synthetic and upper is document)
    assert drawn_caption(document, 0.0, key) is document
    assert drawn_caption(document, 1.0, key) is document.synthetic
