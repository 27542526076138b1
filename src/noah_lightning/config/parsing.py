"""Parsing of plain values into typed settings, with one-line error messages."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from noah_lightning.config.choices import Group
from noah_lightning.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings", bound=Group)


def parse(group: type[Settings], values: Mapping[str, Any], key: str = "") -> Settings:
    """The settings of one group, named ``key`` in messages.

    Raises:
        ConfigError: the first setting that is unknown, missing, of the wrong type or out of range.
    """
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
        if within := chosen_class(field, given):
            yield from known_settings(within, given if isinstance(given, Mapping) else {}, f"{prefix}{name}.")


def group_classes(field: FieldInfo) -> list[type[Group]]:
    """Classes of the group in a field: none if it is a single setting, several if ``name`` chooses one of them."""
    kinds = (field.annotation, *get_args(field.annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Group)]


def chosen_class(field: FieldInfo, given: Any) -> type[Group] | None:
    """Class of a ``given`` group: the only one, the one with its name, or that of plug-ins; otherwise None."""
    classes = group_classes(field)
    for kind in classes:  # the class of plug-ins is the last; its name has no default
        if len(classes) == 1 or kind.model_fields["name"].default in (name_in(given), PydanticUndefined):
            return kind
    return None


def name_in(given: Any) -> Any:
    """The ``name`` of a group of settings, or what is given in its place."""
    return given.get("name") if isinstance(given, Mapping) else getattr(given, "name", given)


def allowed(field: FieldInfo) -> str:
    """Allowed values in words, derived from type and bounds, such as ``an integer of at least 1, or null``."""
    typed: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return _words(TypeAdapter(typed).json_schema())


def shown(value: object) -> str:
    """A value as the user wrote it, in YAML."""
    return _word(value) if value is None or isinstance(value, bool) else repr(value)


def _message(error: ValidationError, group: type[Group], values: Mapping[str, Any], key: str) -> str:
    first = error.errors(include_url=False)[0]
    kind, fields = first["type"], dict(known_settings(group, values, f"{key}." if key else ""))
    name: str = key
    value: Any = values
    for part in first["loc"]:  # skips tags of unions and indices of lists
        inside = f"{name}.{part}" if name else str(part)
        if inside in fields or (kind == "extra_forbidden" and part == first["loc"][-1]):
            name, value = inside, value.get(part) if isinstance(value, Mapping) else value
    match kind:
        case "extra_forbidden":
            return f"unknown setting {name!r}{did_you_mean(name, fields)}"
        case "missing":
            return f"{name} is missing: it was deleted, or this is the configuration of another version"
        case "value_error":
            text = str(first["ctx"]["error"])
            return f"{name}={shown(value)} {text}" if text.startswith("must") else text
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{name}={shown(value)} must be a group of settings; set them one by one, {name}.NAME=…"
    return f"{name}={shown(value)} must be {allowed(fields[name])}"


def _words(schema: Mapping[str, Any]) -> str:
    """JSON schema to words."""
    if kinds := schema.get("anyOf"):
        null_last = sorted(kinds, key=lambda kind: kind.get("type") == "null")
        *others, last = [_words(kind).removeprefix("one of ") for kind in null_last]
        return f"{', '.join(others)}, or {last}"
    if "const" in schema or "enum" in schema:
        choices = dict.fromkeys(_word(choice) for choice in schema.get("enum", [schema.get("const")]))
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(choices)}"
    match kind := schema.get("type", ""):
        case "array":
            items = re.sub(r"\ban? (integer|number|string)", r"\1s", _words(schema["items"]))
            fewest = schema.get("minItems")
            if fewest and fewest == schema.get("maxItems"):
                return f"{fewest} {items}"
            return f"a list of {items}{', at least one' if fewest else ''}"
        case "integer" | "number":
            return f"{'an integer' if kind == 'integer' else 'a number'}{_range(schema)}"
        case "string" if "pattern" in schema:
            return f"{schema['title']}, such as {schema['examples'][0]}"
        case "string" if "maxLength" in schema:
            return f"a string of at most {schema['maxLength']} characters"
    simple = {"boolean": "true or false", "string": "a string", "object": "a group of settings", "null": "null"}
    return simple.get(kind, "any value")


_BOUNDS = {"exclusiveMinimum": "above", "minimum": "of at least", "exclusiveMaximum": "below", "maximum": "at most"}


def _range(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:g} to {schema['maximum']}"
    bounds = [f"{word} {schema[bound]:g}" for bound, word in _BOUNDS.items() if bound in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def _word(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
