"""The learning rate against formulas written out here, torch's and timm's schedulers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler
from torch import nn

from noah_lightning.config.compose import compose_config
from noah_lightning.config.schema import ScheduleSettings
from noah_lightning.task import learning_rate
from noah_lightning.train import make_task


def an_optimizer(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates_of_torch(scheduler: torch.optim.lr_scheduler.LRScheduler, epochs: int) -> list[float]:
    rates = []
    for _ in range(epochs):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_the_default_is_the_base_rate_for_ever() -> None:
    assert [learning_rate(time, 0.3, 10, ScheduleSettings()) for time in (0, 0.5, 4, 9.99)] == [0.3] * 4


@pytest.mark.parametrize(
    ("time", "rate"),
    [(0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (89, 0.001), (90, 0.0001), (99, 0.0001)],
)
@pytest.mark.parametrize("per", ["epoch", "step"])
def test_step_drops_exactly_at_its_milestones(time: float, rate: float, per: str) -> None:
    schedule = ScheduleSettings(name="step", per=per, milestones=[30, 60, 90])
    assert learning_rate(time, 0.1, 100, schedule) == pytest.approx(rate, rel=1e-15)


@pytest.mark.parametrize(("per", "rates"), [("epoch", [1.0, 1.0, 0.5]), ("step", [1.0, 0.5, 0.5])])
def test_a_milestone_inside_an_epoch_waits_for_the_next_one_when_set_per_epoch(per: str, rates: list) -> None:
    schedule = ScheduleSettings(name="step", per=per, milestones=[1.5], gamma=0.5)
    assert [learning_rate(time, 1.0, 10, schedule) for time in (1.25, 1.5, 2.0)] == rates


@pytest.mark.parametrize(
    ("time", "rate"), [(0, 1.0), (2.5, 0.5 + 0.25 * 2**0.5), (5, 0.5), (7.5, 0.5 - 0.25 * 2**0.5), (10, 0.0)]
)
def test_cosine_at_known_angles(time: float, rate: float) -> None:
    assert learning_rate(time, 1.0, 10, ScheduleSettings(name="cosine", per="step")) == pytest.approx(rate, abs=1e-15)


def test_cosine_ends_at_the_final_rate() -> None:
    schedule = ScheduleSettings(name="cosine", per="step", final_lr=0.2)
    assert [learning_rate(time, 1.0, 8, schedule) for time in (0, 4, 8)] == pytest.approx([1.0, 0.6, 0.2], rel=1e-15)


def test_linear_goes_straight_from_the_base_rate_to_the_final_one() -> None:
    schedule = ScheduleSettings(name="linear", per="step", final_lr=0.2)
    rates = [learning_rate(time, 1.0, 8, schedule) for time in (0, 1, 2.5, 4, 8)]
    assert rates == pytest.approx([1.0, 0.9, 0.75, 0.6, 0.2], rel=1e-15)


def test_steps_equal_torchs_multi_step() -> None:
    oracle = torch.optim.lr_scheduler.MultiStepLR(an_optimizer(0.4), milestones=[3, 4, 9], gamma=0.3)
    schedule = ScheduleSettings(name="step", milestones=[3, 4, 9], gamma=0.3)
    ours = [learning_rate(epoch, 0.4, 12, schedule) for epoch in range(12)]
    assert ours == pytest.approx(rates_of_torch(oracle, 12), rel=1e-14)


def test_cosine_equals_torchs_annealing() -> None:
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(an_optimizer(0.4), T_max=12, eta_min=0.01)
    ours = [learning_rate(epoch, 0.4, 12, ScheduleSettings(name="cosine", final_lr=0.01)) for epoch in range(12)]
    assert ours == pytest.approx(rates_of_torch(oracle, 12), rel=1e-13)


@pytest.mark.parametrize(
    ("base_lr", "epochs", "warmup_epochs", "warmup_lr", "final_lr"),
    [(5e-4, 300, 5, 1e-6, 1e-5), (1e-3, 300, 20, 1e-6, 1e-5), (0.5, 90, 0, 0.0, 0.0)],
    ids=["DeiT", "long warm-up", "none"],
)
def test_cosine_with_warmup_equals_timms_at_every_epoch(
    base_lr: float, epochs: int, warmup_epochs: int, warmup_lr: float, final_lr: float
) -> None:
    optimizer = an_optimizer(base_lr)
    timms = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=final_lr, warmup_t=warmup_epochs, warmup_lr_init=warmup_lr
    )
    schedule = ScheduleSettings(
        name="cosine", per="epoch", warmup_epochs=warmup_epochs, warmup_lr=warmup_lr, final_lr=final_lr
    )
    for epoch in range(epochs):
        timms.step(epoch)
        ours = learning_rate(epoch, base_lr, epochs, schedule)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), epoch


def test_warmup_per_step_rises_linearly_and_joins_the_curve_under_way() -> None:
    schedule = ScheduleSettings(name="cosine", per="step", warmup_epochs=2, warmup_lr=0.1)
    rates = [learning_rate(time, 0.9, 8, schedule) for time in (0, 0.5, 1, 1.75, 2, 3)]
    curve = [0.45 * (1 + math.cos(math.pi * time / 8)) for time in (2, 3)]
    assert rates == pytest.approx([0.1, 0.3, 0.5, 0.8, *curve], rel=1e-14)


def test_warmup_per_epoch_rises_in_stairs() -> None:
    schedule = ScheduleSettings(name="constant", per="epoch", warmup_epochs=2, warmup_lr=0.1)
    rates = [learning_rate(time, 0.9, 8, schedule) for time in (0, 0.9, 1, 1.9, 2)]
    assert rates == pytest.approx([0.1, 0.1, 0.5, 0.5, 0.9], rel=1e-15)


def schedules(per: st.SearchStrategy[str]) -> st.SearchStrategy[ScheduleSettings]:
    rates = st.floats(0, 10)
    return st.builds(
        ScheduleSettings,
        name=st.sampled_from(["constant", "step", "cosine", "linear"]),
        per=per,
        warmup_epochs=st.floats(0, 50),
        warmup_lr=rates,
        final_lr=rates,
        milestones=st.lists(st.integers(0, 100), min_size=1, unique=True).map(sorted),
        gamma=st.floats(0, 1),
        lag=st.floats(0, 10),
    )


@given(
    schedule=schedules(st.sampled_from(["epoch", "step"])),
    base_lr=st.floats(0, 10),
    epochs=st.integers(1, 100),
    share=st.floats(0, 1),
)
def test_the_rate_stays_between_zero_and_the_largest_setting(
    schedule: ScheduleSettings, base_lr: float, epochs: int, share: float
) -> None:
    rate = learning_rate(share * epochs, base_lr, epochs, schedule)
    largest = max(base_lr, schedule.warmup_lr, schedule.final_lr)
    assert 0 <= rate <= largest * (1 + 1e-15)  # the last bit may round up


@given(schedule=schedules(st.just("epoch")), epoch=st.integers(0, 99), share=st.floats(0, 0.999))
def test_set_per_epoch_the_rate_is_that_of_its_start(schedule: ScheduleSettings, epoch: int, share: float) -> None:
    assert learning_rate(epoch + share, 0.1, 100, schedule) == learning_rate(epoch, 0.1, 100, schedule)


@given(schedule=schedules(st.just("step")), epoch=st.integers(0, 99))
def test_at_the_start_of_an_epoch_per_step_and_per_epoch_agree(schedule: ScheduleSettings, epoch: int) -> None:
    per_epoch = schedule.model_copy(update={"per": "epoch"})
    assert learning_rate(epoch, 0.1, 100, schedule) == learning_rate(epoch, 0.1, 100, per_epoch)


@given(
    schedule=schedules(st.just("step")), lag=st.integers(0, 20), epoch=st.integers(0, 99), share=st.floats(0, 0.999)
)
def test_a_lag_moves_the_whole_schedule_back(schedule: ScheduleSettings, lag: int, epoch: int, share: float) -> None:
    prompt, late = schedule.model_copy(update={"lag": 0}), schedule.model_copy(update={"lag": lag})
    time = epoch + share
    assert learning_rate(time, 0.1, 100, late) == learning_rate(max(0, time - lag), 0.1, 100, prompt)


def test_set_per_epoch_the_lag_counts_from_the_start_of_the_epoch() -> None:
    schedule = ScheduleSettings(name="linear", lag=1.5)
    rates = [learning_rate(time, 1.0, 10, schedule) for time in (0, 1.9, 2, 2.9, 3)]
    assert rates == pytest.approx([1, 1, 0.95, 0.95, 0.85], rel=1e-15)


# --- the recipes of the paper


def rates_of(recipe: str) -> list[float]:
    """The rate of every epoch of a recipe, with the batch it is written for."""
    config = compose_config([f"recipe={recipe}"])
    task = make_task(config, nn.Linear(2, 2), config.recipe.batch_size)
    epochs = config.recipe.epochs
    return [learning_rate(epoch, task.optimizer_settings.lr, epochs, task.schedule) for epoch in range(epochs)]


def cosine(time: float, peak: float, final: float, epochs: int) -> float:
    return final + (peak - final) * (1 + math.cos(math.pi * time / epochs)) / 2


def warmed_up_cosine(time: float, peak: float, warmup: int) -> float:
    return 1e-6 + (peak - 1e-6) * time / warmup if time < warmup else cosine(time, peak, 1e-5, 300)


RECIPES: dict[str, tuple[int, Callable[[int], float]]] = {
    "resnet": (100, lambda epoch: [0.1, 0.01, 0.001, 0.0001][epoch // 30]),
    "mobilenet": (150, lambda epoch: cosine(epoch, 0.05, 0, 150)),
    "mobilenetv3": (150, lambda epoch: cosine(epoch, 0.05, 0, 150)),
    "shufflenet": (240, lambda epoch: 0.5 * (240 - epoch) / 240),
    "deit": (300, lambda epoch: warmed_up_cosine(max(0, epoch - 1), 1e-3, 5)),
    "pvt": (300, lambda epoch: warmed_up_cosine(max(0, epoch - 1), 1e-3, 5)),
    "mlp": (300, lambda epoch: warmed_up_cosine(epoch, 7e-4, 20)),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_epoch_of_a_recipe_has_the_rate_of_its_formula(recipe: str) -> None:
    epochs, formula = RECIPES[recipe]
    assert rates_of(recipe) == pytest.approx([formula(epoch) for epoch in range(epochs)], rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("recipe", "peak", "warmup", "ahead"),
    [("deit", 1e-3, 5, 0), ("pvt", 1e-3, 5, 0), ("mlp", 7e-4, 20, 1)],
)
def test_recipes_equal_timms_scheduler_driven_as_their_scripts_do(
    recipe: str, peak: float, warmup: int, ahead: int
) -> None:
    """After each epoch, DeiT's script steps to that epoch's number and the MLPs' to the next one's."""
    optimizer = an_optimizer(peak)
    timms = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6)
    expected = []
    for epoch in range(300):
        expected.append(optimizer.param_groups[0]["lr"])
        timms.step(epoch + ahead)
    assert rates_of(recipe) == pytest.approx(expected, rel=1e-12, abs=0)
