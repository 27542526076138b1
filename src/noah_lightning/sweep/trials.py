"""What a search has asked for: ``trials.jsonl`` in the sweep's folder, a line for each trial, before it starts."""

import json
from pathlib import Path

from noah_lightning.errors import ConfigError, one_line
from noah_lightning.sweep.folder import TRIALS
from noah_lightning.sweep.space import Value


class Trials:
    """The values of each trial, by its number.

    Args:
        folder: of the sweep.

    Raises:
        ConfigError: the file there is not ours.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIALS
        self.values: list[dict[str, Value]] = []
        try:
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            for number, line in enumerate(map(json.loads, lines)):
                if line["number"] != number:
                    raise ValueError(f"trial {line['number']} stands in the place of {number}")
                self.values.append(dict(line["values"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} is no list of trials: {one_line(error)}") from error

    def add(self, values: dict[str, Value]) -> int:
        """Keep the values of a new trial; returns its number."""
        self.values.append(values)
        lines = [json.dumps({"number": number, "values": kept}) + "\n" for number, kept in enumerate(self.values)]
        new = self._path.with_suffix(".new")
        new.write_text("".join(lines))
        new.replace(self._path)  # a kill leaves the old file or the new one, never half a line
        return len(self.values) - 1
