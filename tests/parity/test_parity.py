"""The training loop against plain loops written from the formulas, on the same batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from undistill.data import load_dataset
from undistill.data.dataset import Dataset
from undistill.data.loader import Loader
from undistill.engine.config import Training
from undistill.engine.job import Job
from undistill.engine.train import fit
from undistill.methods import build_method
from undistill.models import build_model
from undistill.objective import Frozen, Nets, Objective
from undistill.victim import Victim

CPU = torch.device("cpu")
STEPS = 20
SGD = Training(epochs=2, batch_size=128, lr=0.05, holdout=0, selection="last", milestones=(1,), augment="crop_flip")
ADAM = SGD.model_copy(update={"optimizer": "adam", "lr": 1e-3, "schedule": "constant"})


def data() -> Dataset:
    full = load_dataset("digits")
    return full.take(train=1216, test=100)  # 10 steps an epoch, the last one of 64 images


def net(seed: int, spec: str = "cnn(channels=8)") -> nn.Module:
    return build_model(spec, num_classes=10, in_channels=1, image_size=8, seed=seed)


def ours(method: Objective, config: Training, **nets: nn.Module) -> dict[str, torch.Tensor]:
    """Train with the engine; the loader's batches are the only thing that both sides share."""
    model = net(1)
    adversary = Frozen(nets["adversary"]) if "adversary" in nets else None
    victim = Victim(nets["victim"]) if "victim" in nets else None
    fit(Job(method, Nets(model, adversary, victim), config), data(), device=CPU)
    return model.state_dict()


def plain(loss_of: Callable[..., torch.Tensor], config: Training) -> dict[str, torch.Tensor]:
    """Train with nothing of the engine: torch's optimizer and scheduler, and the loss of the formula."""
    model, split = net(1), data()
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4)
    milestones = config.milestones if config.schedule == "step" else []
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, config.gamma)
    loader = Loader(
        split.train, batch_size=128, augment="crop_flip", mean=split.mean, std=split.std, seed=config.seed, device=CPU
    )
    steps = 0
    model.train()
    for epoch in range(config.epochs):
        for batch in loader.epoch(epoch):
            optimizer.zero_grad()
            loss_of(model, batch.x, batch.y).backward()
            optimizer.step()
            steps += 1
        scheduler.step()
    assert steps == STEPS
    return model.state_dict()


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        scale = right[key].float().abs().max().clamp(min=1e-3)
        assert float((value.float() - right[key].float()).abs().max() / scale) <= tolerance, key


def test_normal_training_is_bit_equal():
    expected = plain(lambda model, x, y: F.cross_entropy(model(x), y), SGD)
    assert_same(ours(build_method("ce"), SGD), expected, tolerance=0)


def test_normal_training_with_adam_is_bit_equal():
    expected = plain(lambda model, x, y: F.cross_entropy(model(x), y), ADAM)
    assert_same(ours(build_method("ce"), ADAM), expected, tolerance=0)


def test_label_smoothing():
    expected = plain(lambda model, x, y: F.cross_entropy(model(x), y, label_smoothing=0.2), SGD)
    assert_same(ours(build_method("label_smoothing(smoothing=0.2)"), SGD), expected, tolerance=1e-5)


def test_nasty_training():
    twin = net(2).eval()

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = model(x)
        with torch.no_grad():
            a = twin(x)
        p, q = F.softmax(z / 4, dim=1), F.softmax(a / 4, dim=1)
        kl = (p * (p.log() - q.log())).sum(dim=1).mean()
        return F.cross_entropy(z, y) - 0.04 * 4**2 * kl

    got = ours(build_method("nasty(temperature=4, weight=0.04)"), SGD, adversary=net(2))
    assert_same(got, plain(loss, SGD), tolerance=1e-4)


def test_distillation():
    teacher = net(2).eval()

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = model(x)
        with torch.no_grad():
            t = teacher(x)
        soft = F.kl_div(F.log_softmax(z / 4, dim=1), F.softmax(t / 4, dim=1), reduction="batchmean")
        return 0.9 * 4**2 * soft + 0.1 * F.cross_entropy(z, y)

    got = ours(build_method("kd(temperature=4, alpha=0.9)"), SGD, victim=net(2))
    assert_same(got, plain(loss, SGD), tolerance=1e-4)


def test_hard_labels():
    teacher = net(2).eval()

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            answer = teacher(x).argmax(dim=1)
        return F.cross_entropy(model(x), answer)

    assert_same(ours(build_method("hard_label"), SGD, victim=net(2)), plain(loss, SGD), tolerance=0)


def test_frozen_nets_do_not_change():
    twin, teacher = net(2), net(3)
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in (twin, teacher)]
    ours(build_method("nasty"), SGD, adversary=twin)
    ours(build_method("kd"), SGD, victim=teacher)
    for model, state in zip((twin, teacher), before, strict=True):
        assert not model.training
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
