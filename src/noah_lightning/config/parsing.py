"""Parsing of plain values into typed settings, with one-line error messages."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from noah_lightning.config.choices import PLUGINS, VARIANTS
from noah_lightning.config.schema import RunConfig
from noah_lightning.config.types import Group
from noah_lightning.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings", bound=Group)


def parse_config(content: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from plain values.

    Raises:
        ConfigError: the first setting that is unknown, missing, of the wrong type or out of range.
    """
    return parse(RunConfig, content)


def parse(group: type[Settings], values: Mapping[str, Any], key: str = "") -> Settings:
    """The settings of one group, named ``key`` in messages; raises ConfigError as :func:`parse_config`."""
    try:
        return group.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_message(error, group, values, key)) from None


def known_settings(
    group: type[Group], values: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Each setting of a group with its dotted name; ``values`` choose the head, data set and logger by ``name``."""
    for name, field in group.model_fields.items():
        yield f"{prefix}{name}", field
        given = values.get(name)
        within = _class_of(name, field, given)
        if within is not None:
            yield from known_settings(within, given if isinstance(given, Mapping) else {}, f"{prefix}{name}.")


def allowed(field: FieldInfo) -> str:
    """Allowed values in words, derived from type and bounds, such as ``an integer of at least 1, or null``."""
    typed: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return _words(TypeAdapter(typed).json_schema())


def _class_of(name: str, field: FieldInfo, given: Any) -> type[Group] | None:
    """Class of the group in a field; None if it is not a group."""
    if name in VARIANTS and not isinstance(field.annotation, type):
        chosen = given.get("name") if isinstance(given, Mapping) else None
        return VARIANTS[name].get(str(chosen), PLUGINS.get(name))
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Group) else None


def _message(error: ValidationError, group: type[Group], values: Mapping[str, Any], key: str) -> str:
    first = error.errors(include_url=False)[0]
    prefix = f"{key}." if key else ""
    fields = dict(known_settings(group, values, prefix))
    name, kind = prefix.removesuffix("."), first["type"]
    value: Any = values
    for part in first["loc"]:  # skips tags of unions and indices of lists
        inside = f"{prefix}{part}"
        if inside in fields or (kind == "extra_forbidden" and part == first["loc"][-1]):
            name, prefix = inside, f"{inside}."
            value = value.get(part) if isinstance(value, Mapping) else value
    if kind == "extra_forbidden":
        return f"unknown setting {name!r}{did_you_mean(name, fields)}"
    if kind == "missing":
        return f"{name} is missing: it was deleted, or this is the configuration of another version"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        chosen = value.get("name") if isinstance(value, Mapping) else value
        return f"{name}.name={_shown(chosen)} must be one of {', '.join(VARIANTS[name])}"
    if kind == "value_error":
        text = str(first["ctx"]["error"])
        return f"{name}={_shown(value)} {text}" if text.startswith("must") else text
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{name}={_shown(value)} must be a group of settings; set them one by one, {name}.NAME=…"
    return f"{name}={_shown(value)} must be {allowed(fields[name])}"


def _words(schema: Mapping[str, Any]) -> str:
    """JSON schema to words."""
    if "anyOf" in schema:
        return _alternatives([part for part in schema["anyOf"] if part.get("type") != "null"], schema["anyOf"])
    if "const" in schema or "enum" in schema:
        choices = list(dict.fromkeys(map(_value, schema.get("enum", [schema.get("const")]))))
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    kind = schema.get("type")
    if kind == "array":
        count = schema.get("minItems")
        exact = f"{count} " if count is not None and count == schema.get("maxItems") else "a list of "
        some = ", at least one" if count == 1 and not exact[0].isdigit() else ""
        return f"{exact}{_plural(_words(schema.get('items', {})))}{some}"
    if kind in ("integer", "number"):
        return f"{'an integer' if kind == 'integer' else 'a number'}{_range(schema)}"
    if kind == "string" and "pattern" in schema:
        return f"{schema['title']}, such as {schema['examples'][0]}"
    if kind == "string" and "maxLength" in schema:
        return f"a string of at most {schema['maxLength']} characters"
    return {"boolean": "true or false", "string": "a string", "object": "a group of settings"}.get(
        str(kind), "any value"
    )


def _alternatives(kinds: list[Mapping[str, Any]], every: list[Mapping[str, Any]]) -> str:
    parts = [_words(part).removeprefix("one of ") for part in kinds] + (["null"] if len(kinds) < len(every) else [])
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"


def _range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema["type"] == "integer" and below is not None:
        high, below = below - 1, None
    if low is not None and high is not None:
        return f" from {low:g} to {high}"
    ends = [f"above {above:g}"] if above is not None else [f"of at least {low:g}"] if low is not None else []
    ends += [f"below {below:g}"] if below is not None else [f"at most {high:g}"] if high is not None else []
    return f" {' and '.join(ends)}" if ends else ""


def _plural(words: str) -> str:
    return (
        words.replace("an integer", "integers", 1).replace("a number", "numbers", 1).replace("a string", "strings", 1)
    )


def _value(choice: object) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _shown(value: object) -> str:
    """A value as the user wrote it, in YAML."""
    return "null" if value is None else _value(value) if isinstance(value, bool) else repr(value)
