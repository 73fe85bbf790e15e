"""dfdc.evaluation.families and dfdc.data.protocol: one table for several families, checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from dfdc.data.protocol import find_identities, find_traits, read_protocol
from dfdc.errors import DataError
from dfdc.evaluation.families import MEAN, Answers, format_rows, measure_protocol
from dfdc.weights import sigmoid


def make_answers(family: str = "swaps", *, n: int = 60, seed: int = 0) -> Answers:
    """Half are fakes of two manipulations, the second of which looks like the reals; the reals have two sexes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    manipulations = np.where(labels == 1, np.where(np.arange(n) % 4 == 1, "easy", "hard"), "")
    logits = generator.normal(np.where(manipulations == "easy", 4.0, -0.5), 1)
    sexes = np.where(np.arange(n) % 4 == 0, "female", "male")
    return Answers(family, labels, logits, np.arange(n).astype(str), manipulations, {"sex": sexes})


def test_family_scores_equal_scikit_learns() -> None:
    answers = make_answers()
    rows = {row.part: row for row in measure_protocol([answers], samples=50)}
    easy = (answers.labels == 0) | (answers.manipulations == "easy")
    assert rows["all"].auc.value == pytest.approx(roc_auc_score(answers.labels, answers.logits))
    assert rows["easy"].auc.value == pytest.approx(roc_auc_score(answers.labels[easy], answers.logits[easy]))
    assert rows["all"].log_loss.value == pytest.approx(log_loss(answers.labels, sigmoid(answers.logits)))
    women = answers.logits[(answers.labels == 0) & (answers.traits["sex"] == "female")]
    assert rows["sex: female"].false_alarms.value == pytest.approx((women > 0).mean())
    assert rows["sex: female"].auc is None and rows["sex: female"].n_fakes == 0
    fakes = answers.logits[answers.labels == 1]
    assert rows["all"].missed.value == pytest.approx((fakes <= 0).mean())
    assert rows["all"].auc.low < rows["all"].auc.value < rows["all"].auc.high


def test_mean_is_taken_over_families_with_both_classes() -> None:
    first, second = make_answers("one"), make_answers("two", seed=1)
    photographs = Answers("photographs", np.zeros(4, int), np.ones(4), np.arange(4).astype(str), np.array([""] * 4))
    rows = measure_protocol([first, second, photographs], samples=20)
    mean = rows[-1]
    whole = [row.auc.value for row in rows if row.part == "all" and row.auc]
    assert mean.family == MEAN and mean.auc.value == pytest.approx(np.mean(whole)) and len(whole) == 2
    alarms = next(row for row in rows if row.family == "photographs")
    assert alarms.false_alarms.value == 1 and alarms.auc is None and alarms.missed is None
    assert len(format_rows(rows).splitlines()) == len(rows) + 1


def test_interval_is_wider_if_identities_repeat() -> None:
    alone = make_answers(n=80)
    few = Answers("few", alone.labels, alone.logits, (np.arange(80) // 16).astype(str), alone.manipulations)
    wide, narrow = (measure_protocol([each], samples=300)[0].false_alarms for each in (few, alone))
    assert narrow.value == wide.value
    repeated = Answers(
        "repeated",
        np.repeat(alone.labels, 8),
        np.repeat(alone.logits, 8),
        np.repeat(alone.identities, 8),
        np.repeat(alone.manipulations, 8),
    )
    same = measure_protocol([repeated], samples=300)[0].auc
    assert same.high - same.low > 0.5 * (measure_protocol([alone], samples=300)[0].auc.high - same.low)


def write_protocol(folder: Path, families: object) -> Path:
    path = folder / "protocol.json"
    path.write_text(json.dumps({"families": families}))
    return path


def test_paths_in_a_protocol_are_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    path = write_protocol(tmp_path, [{"name": "A", "tables": ["a.csv"], "split": "test", "traits": ["sex"]}])
    (family,) = read_protocol(path)
    assert family.tables == (tmp_path / "a.csv",) and family.split == "test" and family.traits == ("sex",)


@pytest.mark.parametrize(
    "families",
    [
        [],
        [{"name": "A"}],
        [{"name": "A", "tables": ["absent.csv"]}],
        [{"name": "A", "tables": ["a.csv"], "clips": "."}],
        [{"name": "A", "tables": ["a.csv"], "sample": 3}],
        [{"name": "A", "tables": ["a.csv"]}, {"name": "A", "tables": ["a.csv"]}],
        "A",
    ],
)
def test_wrong_protocol_is_refused(tmp_path: Path, families: object) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"protocol\.json"):
        read_protocol(write_protocol(tmp_path, families))


def test_identities_and_sizes_of_rows() -> None:
    rows = pd.DataFrame(
        {
            "video": ["a", "b", "c"],
            "label": ["REAL", "FAKE", "FAKE"],
            "original": ["", "a", ""],
            "identity": ["", "", "p"],
            "source_size": ["79", "80", ""],
        }
    )
    assert list(find_identities(rows)) == ["a", "a", "p"]
    assert list(find_traits(rows, ["size", "sex"])["size"]) == ["0-80 px", "80-160 px", ""]
