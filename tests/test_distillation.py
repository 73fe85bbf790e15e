"""dfdc.training.distillation: a model learns a teacher's probabilities for the families of that teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dfdc.data.dataset import CropSet
from dfdc.errors import InputError, WeightsError
from dfdc.networks import FrameModel, VoiceModel, save_model
from dfdc.training.distillation import Teacher
from dfdc.training.loop import TrainSettings, score_crops, train
from dfdc.weights import Calibration, ModelSpec
from tools.train import main

SIDE = 32
SPEC = ModelSpec("efficientnet-lite0", SIDE)
pytestmark = pytest.mark.usefixtures("one_thread")


def save_random(folder: Path, seed: int, *, calibration: Calibration | None = None, weight: float = 1.0) -> Path:
    torch.manual_seed(seed)
    spec = replace(SPEC, calibration=calibration or Calibration(), weight=weight)
    return save_model(FrameModel(spec), folder, name=f"model{seed}")


def save_sure(folder: Path, bias: float) -> Path:
    """A model that gives every crop the same logit."""
    model = FrameModel(SPEC)
    with torch.no_grad():
        model.net._fc.weight.zero_()
        model.net._fc.bias.fill_(bias)
    return save_model(model, folder, name="sure")


def make_crops(families: list[str]) -> CropSet:
    """As many reals as fakes of each family; fakes are bright."""
    labels = torch.tensor([0.0, 1.0] * (len(families) // 2))
    pixels = torch.full((len(families), 3, SIDE, SIDE), 80, dtype=torch.uint8)
    pixels[labels == 1] = 170
    noise = torch.randint(0, 30, pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = [f"clip{n}" for n in range(len(families))]
    return CropSet(pixels + noise, labels, torch.full((len(families),), -1), names, families=np.array(families))


def read(path: Path) -> FrameModel:
    from dfdc.networks import load_model
    from dfdc.weights import open_weights

    return load_model(open_weights(path))


def test_teachers_give_the_probabilities_of_their_ensemble(tmp_path: Path) -> None:
    skewed = Calibration(temperature=2.0, bias=-0.7)
    paths = [save_random(tmp_path, 1), save_random(tmp_path, 2, calibration=skewed, weight=3.0)]
    crops = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        first, second = (read(path)(crops).numpy() for path in paths)
    wanted = 1 / (1 + np.exp(-(first + 3 * (second / 2 - 0.7)) / 4))
    # 1x1 filters are computed in bfloat16 if the CPU supports it.
    assert Teacher(paths).answer(crops).numpy() == pytest.approx(wanted, abs=0.02)


def test_training_moves_a_model_towards_its_teachers_probabilities(tmp_path: Path) -> None:
    """With as many reals as fakes, labels alone would leave the mean logit at 0; the teacher's logit is -2."""
    crops, settings = make_crops(["swaps"] * 16), TrainSettings(epochs=3, batch_size=8, learning_rate=4e-3)
    settings = replace(settings, ema_decay=0.5, self_blend=0, distillation=1.0)
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    teacher = Teacher([save_sure(tmp_path, -2.0)])
    model, _, _ = train(FrameModel(SPEC), crops, crops, tmp_path / "run", settings, teacher=teacher, progress=False)
    assert score_crops(model, crops.images).max() < -0.2


@pytest.mark.slow
@pytest.mark.parametrize("taught", [True, False])
def test_model_learns_its_teachers_probabilities_instead_of_labels(tmp_path: Path, taught: bool) -> None:
    crops = make_crops(["swaps"] * 32)
    settings = TrainSettings(
        epochs=12, batch_size=16, learning_rate=2e-3, ema_decay=0.5, self_blend=0, distillation=1.0, seed=1
    )
    teacher = Teacher([save_sure(tmp_path, -2.0)]) if taught else None  # it calls every crop real
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    _, scores, _ = train(FrameModel(SPEC), crops, crops, tmp_path / "run", settings, teacher=teacher, progress=False)
    assert (scores["auc"] > 0.9) is not taught


def test_self_blended_fakes_keep_their_label(tmp_path: Path) -> None:
    from dfdc.training.loop import make_batch

    crops, pairs = make_crops(["swaps"] * 8), torch.tensor([[0, 1], [2, 3]])
    teacher = Teacher([save_sure(tmp_path, -2.0)])
    generator = torch.Generator().manual_seed(0)
    targets = {
        blend: make_batch(
            crops.images,
            crops,
            pairs,
            FrameModel(SPEC),
            TrainSettings(batch_size=4, mixup=0, self_blend=blend, label_smoothing=0, distillation=0.5),
            generator,
            teacher,
        )[1].tolist()
        for blend in (0.0, 1.0)
    }
    real = 1 / (1 + np.exp(2.0))
    assert targets[0.0] == pytest.approx([real / 2, real / 2, (1 + real) / 2, (1 + real) / 2])
    assert targets[1.0] == [0, 0, 1, 1]


def test_run_resumes_only_with_the_same_teacher(tmp_path: Path) -> None:
    crops, settings = make_crops(["swaps"] * 8), TrainSettings(epochs=1, batch_size=4)
    (tmp_path / "run").mkdir()
    for seed in (1, 2):
        teacher = Teacher([save_random(tmp_path, seed)])
        model = FrameModel(SPEC)
        if seed == 1:
            train(model, crops, crops, tmp_path / "run", settings, teacher=teacher, progress=False)
        else:
            with pytest.raises(InputError, match="teacher"):
                train(model, crops, crops, tmp_path / "run", settings, teacher=teacher, progress=False)


def test_teachers_must_be_face_models(tmp_path: Path) -> None:
    voice = save_model(
        VoiceModel(ModelSpec("efficientnet-lite0", 64, sees="sound", mean=(0.0,), std=(1.0,))), tmp_path, name="voice"
    )
    with pytest.raises(WeightsError, match="face models"):
        Teacher([voice])


def test_taught_families_need_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--crops", "crops.csv", "--run", "run", "--taught", "swaps"])
    assert ended.value.code == 2
    assert "--teacher" in capsys.readouterr().err
