"""What a classifier said of every image, in the order of the data set."""

from torch import Tensor
from torch.distributed import get_world_size
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Predictions(Metric):
    """Labels and first guesses of one validation, in which process r of W sees the images r, r + W, r + 2W, ..."""

    full_state_update = False
    labels: list[Tensor]
    guesses: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("labels", "guesses"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep a batch: logits (B, K), labels (B,), below 0 for padding."""
        self.labels.append(labels)
        self.guesses.append(logits.detach().argmax(dim=1))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Labels and guesses (images,), on the CPU."""
        processes = get_world_size() if self._is_synced else 1
        labels, guesses = (
            dim_zero_cat(parts).cpu().unflatten(0, (processes, -1)).T.flatten()  # (W m,) -> (W, m) -> (m W,)
            for parts in (self.labels, self.guesses)
        )
        images = labels >= 0
        return labels[images], guesses[images]
