"""Say what is wrong with a recipe in the words of whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from undistill.errors import RecipeError, did_you_mean

__all__ = ["describe", "several"]

Location = tuple[str, ...]


def several(error: RecipeError) -> PydanticCustomError:
    """Carry the problems of a nested value through pydantic, which knows one message an error."""
    return PydanticCustomError("problems", "{text}", {"text": str(error), "problems": list(error.problems)})


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
