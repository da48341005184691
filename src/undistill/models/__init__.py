"""Networks by name: the paper's families, entry points, and any ``module:callable``.

A family is one file. Its factories take ``num_classes``, ``in_channels`` and ``image_size`` from the data set and
whatever else a spec sets: ``preresnet20(width=0.5)``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from undistill.code import current_directory_importable, forget_changed
from undistill.errors import RecipeError, ShapeError, UndistillError, did_you_mean
from undistill.registry import Registry, Spec

__all__ = [
    "MODELS",
    "PREPARED_FROM",
    "ModelFactory",
    "PreparedFromImages",
    "build_model",
    "check_model",
    "check_model_spec",
    "list_models",
    "maker_of",
    "register_model",
]

ModelFactory = Callable[..., nn.Module]

MODELS: Registry[ModelFactory] = Registry("model", "undistill.models")
register_model = MODELS.register

PREPARED_FROM = 5000  # images, or as many as there are


@runtime_checkable
class PreparedFromImages(Protocol):
    """A net of which a part is estimated from training images before training begins, such as a whitening."""

    def prepare_from_images(self, images: Tensor) -> None:
        """Estimate it from normalized training images (N, C, H, W), on the net's device, not augmented."""


_FROM_DATA = ("num_classes", "in_channels", "image_size")
_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def list_models() -> tuple[str, ...]:
    """Return the names of all registered models, sorted."""
    return MODELS.names()


def build_model(
    spec: str | Mapping[str, Any] | Spec,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    seed: int | None = None,
) -> nn.Module:
    """Build a network on the CPU and check that it answers with ``(B, num_classes)`` logits.

    Args:
        spec: A registered name or ``module:callable``, with keyword arguments: ``"resnet18"``,
            ``"preresnet20(width=0.5)"``, ``{"name": "my_pkg.nets:make", "depth": 3}``. A module is looked up on the
            import path, then in the current directory; the callable is an ``nn.Module`` subclass or names the
            parameter ``num_classes`` (nothing else is called), and receives those of ``num_classes``,
            ``in_channels`` and ``image_size`` that it names.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels.
        seed: Makes the initial weights depend on nothing but this number, and leaves torch's random state as it was.
            ``None`` draws from the current state.

    Raises:
        RecipeError: The name is unknown, an argument is unknown or has a bad value, or the callable cannot be used.
        ShapeError: The network cannot take such images, or its output is not ``(B, num_classes)``.
    """
    spec = Spec.parse(spec)
    factory = _import_factory(spec.name) if ":" in spec.name else MODELS[spec.name]
    if problems := _argument_problems(spec, factory):
        raise RecipeError(problems)
    data = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    accepted = _parameters(factory)
    arguments = {key: value for key, value in data.items() if accepted is None or key in accepted}
    # Built on the CPU whatever the default device is, so that a seed gives the same weights on every machine.
    with _seeded(seed), torch.device("cpu"):
        model = _call(spec, factory, {**arguments, **spec.kwargs})
        check_model(model, name=str(spec), **data)
    return model


def check_model_spec(spec: str | Mapping[str, Any] | Spec) -> list[str]:
    """Return what is wrong with a spec, without building it; an empty list if nothing is.

    Of ``module:callable`` only the form is looked at: the module is not imported.
    """
    try:
        spec = Spec.parse(spec)
        if ":" in spec.name:
            _split_path(spec.name)
            return []
        return _argument_problems(spec, MODELS[spec.name])
    except RecipeError as error:
        return list(error.problems)


def maker_of(spec: str) -> str | ModelFactory | None:
    """Return what makes the net of a checked spec: a factory, or the name of a module, which is not imported.

    None stands for one that was handed over in Python.
    """
    name = Spec.parse(spec).name
    if name == "instance":
        return None
    return _split_path(name)[0] if ":" in name else MODELS[name]


def check_model(model: nn.Module, *, name: str, num_classes: int, in_channels: int, image_size: int) -> None:
    """Run two black images through ``model`` in eval mode; its modes are restored afterwards.

    Args:
        model: Any module, on any device.
        name: What to call the model in a message.
        num_classes: Number of logits expected.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels.

    Raises:
        ShapeError: The model fails on such a batch, or its output is not a ``(2, num_classes)`` tensor.
    """
    modes = {module: module.training for module in model.modules()}
    first = next(model.parameters(), None)
    images = torch.zeros(2, in_channels, image_size, image_size, device=None if first is None else first.device)
    given = f"a batch of shape {tuple(images.shape)}"
    try:
        with torch.no_grad():
            logits = model.eval()(images)
    except ShapeError:
        raise
    except Exception as error:
        raise ShapeError(
            f"model {name!r} fails on {given}: {_one_line(error)}; give it arguments that fit these images, or "
            "choose another model"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise ShapeError(
            f"model {name!r} turns {given} into {shape}, expected (2, {num_classes}); make it return one row of "
            f"{num_classes} logits an image"
        )


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the CPU generator inside the block and put its state back afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _call(spec: Spec, factory: ModelFactory, arguments: Mapping[str, Any]) -> nn.Module:
    """Call ``factory`` and check that a module comes out."""
    try:
        model = factory(**arguments)
    except UndistillError:
        raise
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model '{spec}' cannot be built: {_one_line(error)}; correct its arguments") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model '{spec}' returned {type(model).__name__}, expected a torch.nn.Module")
    return model


def _parameters(factory: ModelFactory) -> dict[str, inspect.Parameter] | None:
    """Return the parameters that can be given by keyword; None if any keyword is taken."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in _BY_KEYWORD}


def _argument_problems(spec: Spec, factory: ModelFactory) -> list[str]:
    """Return one line for each argument of ``spec`` that ``factory`` cannot take, and each one it lacks."""
    problems = [
        f"model {spec.name!r}: {key} comes from the data set; leave it out of the spec"
        for key in spec.kwargs
        if key in _FROM_DATA
    ]
    accepted = _parameters(factory)
    if accepted is None:
        return problems
    options = [name for name in accepted if name not in _FROM_DATA]
    for key in spec.kwargs:
        if key not in accepted and key not in _FROM_DATA:
            hint = did_you_mean(key, options) or f" it takes: {', '.join(options) or 'no arguments'}"
            problems.append(f"model {spec.name!r} has no argument {key!r};{hint}")
    problems += [
        f"model {spec.name!r} needs the argument {name!r}: write {spec.name}({name}=...)"
        for name in options
        if accepted[name].default is inspect.Parameter.empty and name not in spec.kwargs
    ]
    return problems


def _split_path(path: str) -> tuple[str, str]:
    """Split ``"module:callable"``."""
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in f"{module}.{name}".split(".")):
        raise RecipeError(f"cannot read the model {path!r}: expected module:callable, such as my_package.nets:make")
    return module, name


def _import_factory(path: str) -> ModelFactory:
    """Import ``"module:callable"``."""
    module_name, name = _split_path(path)
    forget_changed(module_name)
    try:
        with current_directory_importable():
            found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise RecipeError(
            f"cannot import {module_name!r} for the model {path!r}: {_one_line(error)}; expected a module that is "
            "installed or lies in the current directory"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found)) or " name a function or a class that it defines"
            raise RecipeError(f"the module {module_name!r} has no {name!r} to build a model with;{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise RecipeError(f"the model {path!r} is of type {type(found).__name__}, expected a function or a class")
    if not _builds_models(found):
        raise RecipeError(
            f"the model {path!r} was not called: expected a subclass of torch.nn.Module, or a function with a "
            "parameter named num_classes; write one that builds the network"
        )
    factory: ModelFactory = found
    return factory


def _builds_models(found: Callable[..., Any]) -> bool:
    """Tell a model from any other callable, so that a recipe cannot run ``os:system``."""
    if isinstance(found, type) and issubclass(found, nn.Module):
        return True
    try:
        parameter = inspect.signature(found).parameters.get("num_classes")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind in _BY_KEYWORD


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
