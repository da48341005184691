"""Say what is wrong with a recipe in the words of whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from undistill.errors import RecipeError, did_you_mean
from undistill.registry import Spec

__all__ = ["checked_spec", "describe", "several"]

_INSTANCE = "instance("  # the spec of an object that Python code handed over

Location = tuple[str, ...]


def several(error: RecipeError) -> PydanticCustomError:
    """Carry the problems of a nested value through pydantic, which knows one message an error."""
    return PydanticCustomError("problems", "{text}", {"text": str(error), "problems": list(error.problems)})


def checked_spec(value: Any, parse: Callable[..., Spec], check: Callable[[str], list[str]]) -> str:
    """Return the spec of a field in its one form, or raise its problems as pydantic expects them.

    Args:
        value: What was given; the spec of an object that was handed over in Python stays as it is.
        parse: Reads it.
        check: Returns what is wrong with it.
    """
    if isinstance(value, str) and value.startswith(_INSTANCE):
        return value
    try:
        spec = str(parse(value))
        problems = check(spec)
    except RecipeError as error:
        raise several(error) from error
    if problems:
        raise several(RecipeError(problems))
    return spec


def describe(error: ValidationError, schema: type[BaseModel]) -> Iterator[tuple[Location, str]]:
    """Yield location and message of every problem in ``error``.

    Args:
        error: What pydantic raised.
        schema: The class whose fields are suggested for a misspelled key.
    """
    for item in error.errors(include_url=False):
        location = tuple(str(part) for part in item["loc"])
        context = item.get("ctx", {})
        if item["type"] == "problems":
            for problem in context["problems"]:
                yield location, _at(location, problem)
        elif item["type"] == "extra_forbidden":
            known = did_you_mean(location[-1], schema.model_fields) or f" known: {', '.join(schema.model_fields)}"
            yield location, f"unknown field {'.'.join(location)!r};{known}"
        elif item["type"] == "missing":
            yield location, _at(location, "is missing")
        elif item["type"] == "value_error":
            yield location, _at(location, str(context["error"]))
        else:
            message = item["msg"].partition("should ")[2] or item["msg"]
            yield location, _at(location, f"must {message}, got {item['input']!r}")


def _at(location: Location, message: str) -> str:
    return f"{'.'.join(location)}: {message}" if location else message
