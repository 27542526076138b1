"""Table of all settings: defaults and meanings from ``conf/``, allowed values from the schema."""

import re
from collections.abc import Iterator

from noah_lightning.analysis.tables import Table
from noah_lightning.config.compose import config_dir
from noah_lightning.config.heads import SETTINGS
from noah_lightning.config.parsing import allowed, known_settings
from noah_lightning.config.schema import RunConfig
from noah_lightning.errors import ConfigError

# The files that list all settings of a group; the other files of a group only change some.
FILES = (
    *("config.yaml", "recipe/plain.yaml", "trainer/default.yaml", "model/timm.yaml"),
    *(f"head/{name}.yaml" for name in SETTINGS),
    *("data/digits.yaml", "data/fashion_mnist.yaml", "data/mnist.yaml", "data/imagefolder.yaml"),
    *("data/digits_multilabel.yaml", "data/coco.yaml"),
    *("data/imagenet.yaml", "data/packed.yaml", "logger/wandb.yaml"),
)
_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>[^#\n]*?))?(?:\s*# ?(?P<meaning>.*))?$")


def settings_table(prefix: str = "") -> Table:
    """Every setting whose dotted name begins with ``prefix``; raises ConfigError if there are none."""
    rows = [row for file in FILES for row in _rows_of(file) if row[0].startswith(prefix)]
    if not rows:
        raise ConfigError(f"no setting begins with {prefix!r}; see noah settings for all")
    columns = ["setting", "default", "values", "meaning"]
    return Table(columns, rows, left=columns)


def _rows_of(file: str) -> Iterator[list[str]]:
    group, _, option = file.rpartition("/")
    name = option.removesuffix(".yaml")
    fields = dict(known_settings(RunConfig, {group: {"name": name}} if group else {}))
    path: list[str] = [group] if group else []
    for line in (config_dir() / file).read_text(encoding="utf-8").splitlines():
        if not (match := _LINE.match(line)):
            continue
        depth = len(match["indent"]) // 2 + bool(group)
        path[depth:] = [match["key"]]
        key, value = ".".join(path), (match["value"] or "").strip()
        if key in fields and value:
            shown = f"{key} ({group}={name})" if group in ("head", "data", "logger") else key
            yield [shown, value, allowed(fields[key]), (match["meaning"] or "").strip()]
