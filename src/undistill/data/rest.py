"""What a subset leaves out: images of the same kind that its owner does not have."""

from __future__ import annotations

from dataclasses import replace

from undistill.data import load_dataset, parse_dataset_spec, register_dataset
from undistill.data.dataset import Dataset, stratified_split
from undistill.errors import RecipeError

__all__ = ["rest"]


@register_dataset("rest")
def rest(of: str) -> Dataset:
    """Return the training images that a subset leaves out, with the same test images: a thief's, say.

    Args:
        of: Spec with a ``subset``, such as ``digits(subset=1000)``, whose images none of these is.

    Raises:
        RecipeError: The spec names no subset.
        DataError: The data are missing, damaged or not usable.
    """
    spec = parse_dataset_spec(of)
    kwargs = dict(spec.kwargs)
    subset = kwargs.pop("subset", None)
    if subset is None:
        raise RecipeError(f"rest: of={of!r} leaves nothing out; give it a subset, such as {spec.name}(subset=1000)")
    whole = load_dataset(type(spec)(spec.name, kwargs))
    count = round(subset * len(whole.train)) if isinstance(subset, float) else subset
    left = whole.train.subset(stratified_split(whole.train.y, count, seed=0)[0])
    note = "; ".join(filter(None, (whole.note, f"the {len(left):,} training images that {of} leaves out")))
    return replace(whole, name=f"rest of {whole.name}", train=left, note=note)
