"""Checks values against the types of arguments, and describes these types in words."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from harness.config.annotations import Factory
from harness.config.keys import format_value
from harness.config.signatures import Parameter

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, regex_engine="python-re")


def arguments_model(name: str, parameters: Mapping[str, Parameter]) -> type[BaseModel]:
    """Return a pydantic model with a field for each argument, all of them optional.

    Args:
        name: title of the model.
        parameters: arguments by name. One whose annotation pydantic rejects accepts any value.
    """
    types = {key: parameter.value_type for key, parameter in parameters.items()}
    try:
        return _build_model(name, types)
    except Exception:  # pydantic raises many types, for example for a range of text
        return _build_model(name, {key: t if _is_valid(t) else Any for key, t in types.items()})


def _is_valid(value_type: Any) -> bool:
    try:
        json_schema(_build_model("one", {"value": value_type}))
    except Exception:
        return False
    return True


def _build_model(name: str, types: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        f"field_{number}": (value_type, Field(None, alias=key))
        for number, (key, value_type) in enumerate(types.items())
    }
    return create_model(name, __config__=_STRICT, **fields)


def wrong_values(
    model_class: type[BaseModel], node: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the key of each value with a wrong type or range, and describe the valid values."""
    try:
        model_class.model_validate(dict(node))
    except ValidationError as error:
        failed = {e["loc"][0] for e in error.errors(include_url=False, include_context=False)}
        properties = json_schema(model_class)["properties"]
        yield from ((key, describe_valid_values(properties[key])) for key in node if key in failed)


def json_schema(model_class: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a model."""
    return model_class.model_json_schema()


def factory_of(value_type: Any) -> Factory | None:
    """Return the Factory in a type, or None if the argument is not a ``_partial_`` node."""
    for part in (*getattr(value_type, "__metadata__", ()), *get_args(value_type)):
        if isinstance(part, Factory):
            return part
        if (inside := factory_of(part)) is not None:
            return inside
    return None


def describe_valid_values(schema: Mapping[str, Any]) -> str:
    """Return what a JSON Schema allows, such as "an integer of at least 1 or null"."""
    if "anyOf" in schema:
        choices = [*dict.fromkeys(map(describe_valid_values, schema["anyOf"]))]
        lists = [f"a list, each {choice}" for choice in choices]
        return " or ".join("a list of these" if c in lists else c for c in choices)
    if "const" in schema:
        return format_value(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(dict.fromkeys(map(format_value, schema['enum'])))}"
    match schema.get("type"):
        case "integer":
            return f"{_describe_factor(schema, 'an integer')}{_describe_range(schema)}"
        case "number":
            return f"{_describe_factor(schema, 'a number')}{_describe_range(schema)}"
        case "string":
            return f"text{_describe_text(schema)}"
        case "array":
            return _describe_list(schema)
        case "boolean":
            return "true or false"
        case "object":
            return "a group of settings"
        case "null":
            return "null"
    return "any value"


def _describe_factor(schema: Mapping[str, Any], noun: str) -> str:
    return f"a multiple of {schema['multipleOf']:g}" if "multipleOf" in schema else noun


def _describe_range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    upper = None if high is below is None else f"{high:g}" if below is None else f"below {below:g}"
    upper = str(high) if isinstance(high, int) else upper
    if above is not None:
        return f" above {above:g}" + (f" and at most {upper}" if upper else "")
    if low is not None:
        return f" from {low:g} to {upper}" if upper else f" of at least {low:g}"
    return f" of at most {upper}" if high is not None else f" {upper}" if upper else ""


def _describe_text(schema: Mapping[str, Any]) -> str:
    if "pattern" in schema:
        return f" {schema.get('description', 'that matches ' + schema['pattern'])}"
    low, high = schema.get("minLength"), schema.get("maxLength")
    if high is not None:
        return f" of {low} to {high} characters" if low else f" of at most {high} characters"
    return " that is not empty" if low == 1 else f" of at least {low} characters" if low else ""


def _describe_list(schema: Mapping[str, Any]) -> str:
    if items := schema.get("prefixItems"):
        kinds = dict.fromkeys(map(describe_valid_values, items))
        all_items = ", ".join(map(describe_valid_values, items))
        each = f"each {next(iter(kinds))}" if len(kinds) == 1 else all_items
        return f"a list of {len(items)}, {each}"
    low, high = schema.get("minItems"), schema.get("maxItems")
    size = f" of at least {low}" if low else ""
    size = size if high is None else f" of {high}" if low == high else f" of at most {high}"
    size = " that is not empty" if (low, high) == (1, None) else size
    items = schema.get("items")
    return f"a list{size}, each {describe_valid_values(items)}" if items else f"a list{size}"
