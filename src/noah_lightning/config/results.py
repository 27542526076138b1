"""Schema of results.json."""

from typing import Self

from pydantic import BaseModel, model_validator


class Results(BaseModel, frozen=True, strict=True, allow_inf_nan=False):
    """Results of a finished run: exact accuracies, as counts, or the mean average precision of a multi-label run.

    Fields that begin with ``ema`` are of the average of the weights, and None without one.
    """

    parameters: int
    epochs: int
    best_epoch: int  # counted from 1
    correct: int | None = None
    correct_top5: int | None = None
    images: int
    train_seconds: float
    images_per_second: float  # while training, without the first batch
    peak_memory: int | None = None  # bytes, of the first GPU
    ema_best_epoch: int | None = None
    ema_correct: int | None = None
    ema_correct_top5: int | None = None
    map: float | None = None  # percent
    ema_map: float | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.map is not None:
            if not (0 <= self.map <= 100 and self.images > 0):
                raise ValueError(f"mAP {self.map} % of {self.images} images is not possible")
        elif self.correct is None or self.correct_top5 is None:
            raise ValueError("it has neither correct and correct_top5 nor map")
        elif not 0 <= self.correct <= self.images > 0:
            raise ValueError(f"{self.correct} of {self.images} images is not possible")
        return self

    @property
    def multilabel(self) -> bool:
        return self.map is not None

    @property
    def top1(self) -> float:
        """Percent; of single-label runs only."""
        assert self.correct is not None
        return 100 * self.correct / self.images

    @property
    def score(self) -> float:
        """Top-1, or mean average precision of a multi-label run, in percent."""
        return self.top1 if self.map is None else self.map

    def text(self) -> str:
        """JSON without the fields of the other kind of run."""
        counts = {"correct", "correct_top5", "ema_correct", "ema_correct_top5"}
        others = counts if self.multilabel else {"map", "ema_map"}
        return self.model_dump_json(indent=2, exclude=others) + "\n"
