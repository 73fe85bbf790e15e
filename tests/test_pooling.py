"""tools/research/compare_pooling.py: the properties of pooling rules, and their comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dfdc.aggregate import clip_probability, logit
from dfdc.analysis import Analysis, FaceTrack
from dfdc.analyze import Analyzer
from dfdc.errors import DataError
from dfdc.evaluation.metrics import draw_sources, measure, score_samples
from dfdc.research.pooling import (
    EDGES,
    FIXED_RULES,
    KERNELS,
    LEARNED,
    TINY,
    Pooling,
    ScoredClip,
    clip_logits,
    compare_rules,
    fit_pooling,
    left_out_logits,
    rank_means,
    recalibrate,
    splice_fakes,
    take_any,
    take_any_keeping_prior,
    take_maximum,
    take_mean,
    trust_confident,
    weigh_by_confidence,
)
from dfdc.weights import sigmoid
from tools.research import compare_pooling as tool
from tools.research.compare_pooling import Scores, compare_pooling, find_better, format_table, main, score_clips

LEANING = Pooling((0.0, 0.1, 0.3, 0.0, 0.9), -0.4)
ALL_RULES = {**FIXED_RULES, LEARNED: LEANING}
MONOTONE = [take_mean, take_maximum, take_any, take_any_keeping_prior, LEANING]
WHOLE = {"low": TINY, "high": 1 - TINY}


def make_clips(generator: np.random.Generator, n: int, *, share: float, n_frames: int = 24) -> list[ScoredClip]:
    """Half reals, half fakes that are fake in a share of their frames; each clip has its own offset."""
    clips = []
    for index in range(n):
        label = index % 2
        logits = generator.normal(generator.normal(-1.5, 1.2), 0.5, n_frames)
        logits[: round(share * n_frames)] += 3.0 * label
        clips.append(ScoredClip(f"{index}.mp4", f"{index // 2}", label, (generator.permutation(logits),)))
    return clips


@pytest.mark.parametrize("name", [name for name in ALL_RULES if name != KERNELS])  # which looks at parts of the time
def test_order_of_frames_does_not_matter(name: str) -> None:
    generator = np.random.default_rng(0)
    for n_frames in (2, 3, 7, 32):
        track = generator.normal(0, 2, n_frames)
        shuffled = ALL_RULES[name](generator.permutation(track))
        assert shuffled == pytest.approx(ALL_RULES[name](track), abs=1e-9)


@pytest.mark.parametrize("name", ALL_RULES)
@pytest.mark.parametrize("n_frames", [1, 2, 5, 33, 400])
def test_any_number_of_frames_gives_a_finite_result(name: str, n_frames: int) -> None:
    for value in (-30.0, 0.0, 30.0):
        assert np.isfinite(ALL_RULES[name](np.full(n_frames, value)))


@pytest.mark.parametrize("rule", MONOTONE)
def test_raising_one_frame_never_lowers_the_clip(rule) -> None:
    generator = np.random.default_rng(1)
    for _ in range(60):
        tracks = [generator.normal(0, 2, generator.integers(1, 12)) for _ in range(generator.integers(1, 4))]
        before = clip_probability([np.array([rule(track)]) for track in tracks], **WHOLE)
        raised = [track.copy() for track in tracks]
        track = raised[generator.integers(len(raised))]
        track[generator.integers(len(track))] += generator.exponential(2)
        after = clip_probability([np.array([rule(track)]) for track in raised], **WHOLE)
        assert after >= before - 1e-12  # rounding


def test_rules_of_first_and_third_place_are_not_monotone() -> None:
    """.99 three times and .79 give .99 by the winner's rule, but .945 if the last is .81 and so counts."""
    before, after = ([4.6, 4.6, 4.6, last] for last in (logit(0.79), logit(0.81)))
    assert trust_confident(np.array(after)) < trust_confident(np.array(before)) - 1
    assert weigh_by_confidence(np.array([5.0, 5.0, 0.4])) < weigh_by_confidence(np.array([5.0, 5.0, 0.0]))


@pytest.mark.parametrize("n_frames", [1, 2, 3, 10, 32, 77])
def test_learned_rule_starts_as_the_mean(n_frames: int) -> None:
    track = np.random.default_rng(2).normal(0, 3, n_frames)
    assert Pooling()(track) == pytest.approx(track.mean(), abs=1e-12)


def test_rank_weights_equal_a_calculation_by_hand() -> None:
    ranked = rank_means(np.random.default_rng(0).permutation(np.arange(20.0)))
    # 5, 5, 5, 3 and 2 of 20 frames.
    assert ranked == pytest.approx([2, 7, 12, 16, 18.5])
    assert rank_means(np.array([7.0])) == pytest.approx([7] * 5)
    assert rank_means(np.array([4.0, 1.0])) == pytest.approx([1, 1, 4, 4, 4])
    # Each of three frames is one third: the second quarter is 1/3 of the first and 2/3 of the second, and vice versa.
    assert rank_means(np.array([0.0, 3.0, 9.0])) == pytest.approx([0, 2, 2 / 3 * 3 + 1 / 3 * 9, 9, 9])


def test_duplicated_frames_do_not_change_the_learned_rule() -> None:
    track = np.random.default_rng(3).normal(0, 3, 11)
    assert LEANING(np.repeat(track, 2)) == pytest.approx(LEANING(track))


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.9, 0.95, 0.1, 0.1], 0.925),  # half of them above .8: their mean
        ([0.9, 0.9, 0.3, 0.3, 0.3], 0.54),  # two of five are not more than two in five
        ([0.1] * 19 + [0.9], 0.1),  # 19 of 20 below .2: their mean
        ([0.1] * 9 + [0.9], 0.18),  # nine in ten are not more than nine in ten
    ],
)
def test_winners_rule_equals_a_calculation_by_hand(probabilities: list[float], expected: float) -> None:
    track = np.array([logit(p) for p in probabilities])
    assert sigmoid(trust_confident(track)) == pytest.approx(expected)


def test_rule_of_third_place_equals_a_calculation_by_hand() -> None:
    """.8 -> .5 + .3^.65 = .9572 with weight .3; .4 -> .5 - .1^.65 = .2761 with weight .1."""
    track = np.array([logit(0.8), logit(0.4)])
    assert sigmoid(weigh_by_confidence(track)) == pytest.approx((0.3 * 0.9572 + 0.1 * 0.2761) / 0.4, abs=1e-4)
    assert weigh_by_confidence(np.zeros(3)) == 0


def test_noisy_or_equals_a_calculation_by_hand() -> None:
    assert sigmoid(take_any(np.array([0.0, logit(0.8)]))) == pytest.approx(1 - 0.5 * 0.2)
    assert take_any(np.full(32, 40.0)) == pytest.approx(32 * 40)  # far beyond the resolution of a probability near 1
    assert take_any_keeping_prior(np.zeros(32)) == pytest.approx(0)
    track = np.array([0.3, -1.0, 2.0])
    persons = clip_probability([np.array([frame]) for frame in track], **WHOLE)
    assert sigmoid(take_any_keeping_prior(track)) == pytest.approx(persons)


@pytest.mark.parametrize(
    ("weights", "bias", "said"),
    [((1.0,), 0.0, "allowed are 5"), ((1, 1, 1, 1, -0.1), 0.0, "from 0 up"), (Pooling().weights, np.nan, "bias nan")],
)
def test_parameters_that_break_monotonicity_are_refused(weights: tuple, bias: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pooling(weights, bias)


def test_learned_rule_finds_fakes_that_are_fake_in_three_frames_of_ten() -> None:
    """On unseen clips it beats the mean and the recalibrated mean, so ranking the frames helps, not only the scale."""
    generator = np.random.default_rng(4)
    clips, held_out = make_clips(generator, 160, share=0.3), make_clips(generator, 400, share=0.3)
    labels = np.array([clip.label for clip in held_out])
    learned = fit_pooling(clips)
    assert sum(learned.weights[-2:]) > 0.8 * sum(learned.weights)  # the most suspicious quarter
    rules = {"mean": take_mean, "recalibrated": recalibrate(take_mean, clips), "learned": learned}
    scores = {name: measure(labels, sigmoid(clip_logits(held_out, rule))) for name, rule in rules.items()}
    assert scores["learned"]["log_loss"] < scores["recalibrated"]["log_loss"] - 0.1
    assert scores["recalibrated"]["log_loss"] < scores["mean"]["log_loss"]
    assert scores["learned"]["auc"] > scores["mean"]["auc"] + 0.05
    assert scores["learned"]["calibration_error"] < 0.08  # chance alone gives .03 to .05 of 400


def test_without_a_penalty_recalibration_is_balanced_logistic_regression() -> None:
    clips = make_clips(np.random.default_rng(5), 90, share=1.0)[:-31]
    clips += [clip for clip in clips if clip.label][:20]
    rule = recalibrate(take_mean, clips, spread=1e4)
    features = np.array([[clip.tracks[0].mean()] for clip in clips])
    oracle = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-8).fit(features, [c.label for c in clips])
    bias = rule(np.zeros(1))
    assert bias == pytest.approx(oracle.intercept_[0], rel=1e-3)
    assert rule(np.ones(1)) - bias == pytest.approx(oracle.coef_[0, 0], rel=1e-3)


def test_fit_minimises_the_penalised_loss_of_clip_probabilities() -> None:
    """With several persons, too: the loss is that of `clip_probability`, computed independently here."""
    generator = np.random.default_rng(6)
    clips = [
        ScoredClip(str(i), str(i), i % 2, tuple(generator.normal(1.5 * (i % 2) * (k == 0) - 1, 1, 5) for k in range(n)))
        for i, n in enumerate([1, 2, 3, 1, 2, 2, 4, 1, 1, 3])
    ]
    rule = recalibrate(take_mean, clips)
    bias = rule(np.zeros(1))
    scale = rule(np.ones(1)) - bias

    def objective(scale: float, bias: float) -> float:
        fake = sigmoid(clip_logits(clips, lambda track: scale * track.mean() + bias))
        given = np.where([clip.label for clip in clips], fake, 1 - fake)
        return -np.log(given).sum() + (((scale - 1) / 0.45) ** 2 + (bias / 0.5) ** 2) / 2

    least = objective(scale, bias)
    assert least < objective(1, 0)
    for step in (-0.02, 0.02):
        assert objective(scale + step, bias) > least and objective(scale, bias + step) > least


def test_few_clips_or_a_tight_prior_keep_the_mean() -> None:
    clips = make_clips(np.random.default_rng(7), 8, share=0.3)
    tight, loose = (fit_pooling(clips, spread=spread) for spread in (0.001, 3.0))
    assert (*tight.weights, tight.bias) == pytest.approx((*Pooling().weights, 0), abs=1e-3)
    assert np.abs(np.subtract(loose.weights, Pooling().weights)).max() > 0.05
    default = fit_pooling(clips)
    assert np.abs(np.subtract(default.weights, Pooling().weights)).max() < 0.25


def test_fit_without_one_of_the_classes_is_refused() -> None:
    clips = [clip for clip in make_clips(np.random.default_rng(8), 6, share=1.0) if clip.label]
    blank = ScoredClip("r.mp4", "r", 0, ())
    with pytest.raises(DataError, match="0 reals and 3 fakes with a face; a fit needs both"):
        fit_pooling([*clips, blank])


def test_clip_without_a_face_keeps_the_prior_under_every_rule() -> None:
    for rule in ALL_RULES.values():
        assert clip_logits([ScoredClip("a.mp4", "a", 1, ())], rule) == pytest.approx([0])


def test_rules_are_never_measured_on_sources_they_were_fitted_to() -> None:
    clips = make_clips(np.random.default_rng(9), 8, share=0.5)
    seen = []

    def fit(others: Sequence[ScoredClip]):
        sources = {clip.source for clip in others}
        (left_out,) = {clip.source for clip in clips} - sources
        seen.append(left_out)
        assert len(others) == 6
        return lambda track: float(left_out)

    logits = left_out_logits(clips, fit)
    assert logits == pytest.approx([float(clip.source) for clip in clips]) and sorted(seen) == list("0123")


def test_spliced_fakes_are_fake_in_their_share_of_frames_only() -> None:
    real, fake = (np.full(8, value) for value in (-2.0, 3.0))
    clips = [
        ScoredClip("a.mp4", "a.mp4", 0, (real,)),
        ScoredClip("b.mp4", "a.mp4", 1, (fake,)),
        ScoredClip("alone.mp4", "gone.mp4", 1, (fake,)),
        ScoredClip("two.mp4", "a.mp4", 1, (fake, fake)),
    ]
    kept, spliced = splice_fakes(clips, 0.25)
    assert kept is clips[0]
    assert (spliced.name, spliced.source, spliced.label) == ("b.mp4", "a.mp4", 1)
    assert list(spliced.tracks[0]) == [3, 3, -2, -2, -2, -2, -2, -2]
    assert list(splice_fakes(clips, 0.001)[1].tracks[0]) == [3, *[-2] * 7]


def test_bootstrap_draws_whole_sources() -> None:
    sources = ["a", "b", "b", "c", "b"]
    counts = draw_sources(sources, np.random.default_rng(0), samples=2000)
    assert (counts[:, 1] == counts[:, 2]).all() and (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, 0] + counts[:, 1] + counts[:, 3] == 3).all()
    # Each is drawn once on average, with the binomial's variance 3 x 1/3 x 2/3; its standard error is .02.
    assert counts[:, 1].mean() == pytest.approx(1, abs=0.08) and counts[:, 1].var() == pytest.approx(2 / 3, abs=0.1)


def test_scores_of_a_bootstrap_sample_are_those_of_its_clips() -> None:
    generator = np.random.default_rng(10)
    labels, logits = np.repeat([0, 1], 15), np.round(generator.normal(0, 3, 30))  # with ties
    counts = generator.multinomial(30, np.full(30, 1 / 30), size=3)
    scores = score_samples(labels, logits, counts, low=0.05, high=0.95)
    for index, sample in enumerate(counts):
        rows = np.repeat(np.arange(30), sample)
        expected = measure(labels[rows], np.clip(sigmoid(logits[rows]), 0.05, 0.95))
        assert scores["log_loss"][index] == pytest.approx(expected["log_loss"])
        assert scores["balanced_log_loss"][index] == pytest.approx(expected["balanced_log_loss"])
        assert scores["auc"][index] == pytest.approx(measure(labels[rows], sigmoid(logits[rows]))["auc"])


@pytest.fixture(scope="module")
def planted() -> Scores:
    """Ten sources of three reals and three fakes, which are fake in three frames of ten."""
    clips = make_clips(np.random.default_rng(11), 60, share=0.3)
    clips = tuple(replace(clip, source=str(index // 6)) for index, clip in enumerate(clips))
    return Scores(clips, 0.02, 0.98, '{"n_frames": 24}')


def test_comparison_finds_the_planted_rule_and_measures_the_kernels_own(planted: Scores) -> None:
    def compare(seed: int) -> dict:
        bounds = {"low": planted.low, "high": planted.high}
        return compare_rules(planted.clips, **bounds, generator=np.random.default_rng(seed), samples=300)

    rules = compare(0)
    labels = np.array([clip.label for clip in planted.clips])
    kernels = np.array([clip_probability(list(clip.tracks), low=0.02, high=0.98) for clip in planted.clips])
    assert rules[KERNELS]["log_loss"]["value"] == pytest.approx(measure(labels, kernels)["log_loss"])
    assert rules[KERNELS]["difference"] == {"value": 0, "low": 0, "high": 0}
    assert rules[LEARNED]["difference"]["high"] < 0 and rules[LEARNED]["beyond_calibration"]["high"] < 0
    assert LEARNED in find_better(rules) and KERNELS not in find_better(rules)
    assert all(score["low"] <= score["value"] <= score["high"] for score in rules[LEARNED].values())
    assert rules == compare(0) != compare(1)


def test_no_rule_beats_the_mean_if_the_mean_is_right() -> None:
    """Calibrated clips that are fake in every frame: no rule should win by chance."""
    generator = np.random.default_rng(12)
    clips = [
        ScoredClip(str(i), str(i // 3), int(generator.random() < sigmoid(z)), (z + generator.normal(0, 0.3, 16),))
        for i, z in enumerate(generator.normal(0, 2, 60))
    ]
    rules = compare_rules(clips, low=0.01, high=0.99, generator=np.random.default_rng(0), samples=500)
    assert find_better(rules) == []


def test_gain_explained_by_scale_and_bias_is_not_better_pooling() -> None:
    clear, open_ = {"value": -0.2, "low": -0.3, "high": -0.1}, {"value": 0.0, "low": -0.1, "high": 0.1}
    rules = {
        KERNELS: {"difference": open_, "beyond_calibration": open_},
        "maximum": {"difference": clear, "beyond_calibration": open_},
        "maximum, recalibrated": {"difference": clear, "beyond_calibration": clear},
        LEARNED: {"difference": clear, "beyond_calibration": open_},
    }
    assert find_better(rules) == ["maximum", "maximum, recalibrated"]


def test_single_class_is_refused(planted: Scores) -> None:
    fakes = [clip for clip in planted.clips if clip.label]
    with pytest.raises(DataError, match="30 clips of one class"):
        compare_rules(fakes, low=0.01, high=0.99, generator=np.random.default_rng(0))


def test_comparison_writes_table_json_and_picture(
    planted: Scores, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, picture = tmp_path / "new/pooling.json", tmp_path / "new/pooling.png"
    rules = compare_pooling(planted, json_path=out, picture=picture, samples=50)
    said = capsys.readouterr().out
    assert format_table(rules) in said and "Clearly better than the kernel's mean: " in said
    written = json.loads(out.read_text())
    assert written["rules"] == rules and written["n_sources"] == 10
    assert written["learned"]["edges"] == list(EDGES)
    assert Pooling(tuple(written["learned"]["weights"]), written["learned"]["bias"]) == fit_pooling(planted.clips)
    assert cv2.imread(str(picture)).std() > 5
    assert {path.name for path in out.parent.iterdir()} == {"pooling.json", "pooling.png"}  # no temporary files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three listed clips that are never decoded, and one that is absent."""
    entries = {"a.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}, "c.mp4": {"label": "FAKE"}}
    for name in entries:
        (tmp_path / name).write_bytes(b"clip")
    (tmp_path / "metadata.json").write_text(json.dumps({**entries, "gone.mp4": {"label": "REAL"}}))
    return tmp_path


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list:
    """Replace the kernel's models: a.mp4 has two persons, b.mp4 one, c.mp4 none. Returns a list of the scored clips."""
    seen: list = []

    class FakeAnalyzer:
        ensemble = SimpleNamespace(bounds=lambda: (0.04, 0.97))

        def __init__(self, files: list, *, device: str) -> None:
            pass

        def analyze(self, path: Path, n_frames: int) -> Analysis:
            seen.append((path.name, n_frames))
            if path.name == "c.mp4":
                return Analysis(path.name, status="no_face", reason="no face in 4 frames")
            logits = [np.arange(n_frames) / 4.0, np.zeros(2)][: 2 if path.name == "a.mp4" else 1]
            nothing = np.zeros(0)
            tracks = [FaceTrack(nothing, nothing, nothing, nothing, nothing, track, 1.0) for track in logits]
            return Analysis(path.name, tracks=tuple(tracks))

    monkeypatch.setattr(tool, "Analyzer", FakeAnalyzer)
    monkeypatch.setattr(tool, "find_weights", lambda path: [SimpleNamespace(digest=str(path))])
    return seen


def test_clips_are_scored_once_and_their_logits_kept(
    folder: Path, recorders: list, capsys: pytest.CaptureFixture
) -> None:
    kept = folder / "runs/logits.npz"
    first = score_clips(folder, kept, n_frames=4, device="cpu")
    assert recorders == [("a.mp4", 4), ("b.mp4", 4), ("c.mp4", 4)]
    assert "c.mp4: no_face, no face in 4 frames" in capsys.readouterr().err
    again = score_clips(folder, kept, n_frames=4, device="cpu")
    assert len(recorders) == 3 and again.made_from == first.made_from
    assert (again.low, again.high) == (0.04, 0.97)
    assert [(clip.name, clip.source, clip.label) for clip in again.clips] == [
        *(("a.mp4", "a.mp4", 0), ("b.mp4", "a.mp4", 1), ("c.mp4", "c.mp4", 1))
    ]
    assert [[list(track) for track in clip.tracks] for clip in again.clips] == [
        *([[0, 0.25, 0.5, 0.75], [0, 0]], [[0, 0.25, 0.5, 0.75]], [])
    ]


@pytest.mark.parametrize("change", ["weights", "frames", "clips", "overwrite", "damage"])
def test_other_weights_frames_or_clips_are_scored_again(folder: Path, recorders: list, change: str) -> None:
    kept = folder / "logits.npz"
    score_clips(folder, kept, n_frames=4, device="cpu")
    if change == "clips":
        (folder / "a.mp4").write_bytes(b"another clip")
    if change == "damage":
        kept.write_bytes(kept.read_bytes()[:-40])
    settings = {"weights": {"weights": Path("other")}, "overwrite": {"overwrite": True}}.get(change, {})
    score_clips(folder, kept, n_frames=5 if change == "frames" else 4, device="cpu", **settings)
    assert len(recorders) == 6


def test_command_compares_partly_fake_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_clips(np.random.default_rng(13), 16, share=1.0)
    pairs = [replace(clip, source=f"{index // 2 * 2}.mp4") for index, clip in enumerate(clips)]
    blank = ScoredClip("blank.mp4", "0.mp4", 1, ())
    monkeypatch.setattr(tool, "score_clips", lambda *_, **__: Scores((*pairs, blank), 0.02, 0.98, "{}"))
    out = tmp_path / "pooling.json"
    assert main([str(tmp_path), "--json", str(out), "--samples", "20", "--fake-share", "0.25"]) == 0
    written = json.loads(out.read_text())
    assert (written["n_clips"], written["n_sources"], written["fake_share"]) == (16, 8, 0.25)
    fit = fit_pooling(splice_fakes(pairs, 0.25))
    assert written["learned"]["weights"] == pytest.approx(list(fit.weights))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/none"], "metadata.json: cannot be read"),
        (["{}", "--weights", "{}/none"], "no such weights file or folder"),
    ],
)
def test_mistakes_end_with_one_line(
    folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    command = [argument.format(folder) for argument in arguments]
    assert main([*command, "--logits", str(folder / "logits.npz"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    *told, line = error.splitlines()
    assert said in line and told in ([], ["1 of 4 listed clips are absent and left out"])


def test_kept_logits_are_those_that_the_kernel_pools(tmp_path: Path) -> None:
    """For the sample clips and the shipped weights, the kernel's probability equals that of the mean rule exactly."""
    root = Path(__file__).resolve().parent.parent
    analyzer = Analyzer(tool.find_weights(root / "weights"), device="cpu")
    analysis = analyzer.analyze(root / "samples/real.mp4", 3)
    tracks = [track.logits for track in analysis.tracks]
    assert (analysis.status, [len(track) for track in tracks]) == ("ok", [3])
    low, high = analyzer.ensemble.bounds()
    assert analysis.probability == clip_probability(tracks, low=low, high=high)
