"""HTML pages of reports, each in one file that opens offline."""

from typing import Any


def render(template: str, **values: Any) -> str:
    """A template of this package, filled in; ``values`` are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("noah_lightning.analysis", "")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, loader=loader, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
