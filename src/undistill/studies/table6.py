"""Table 6 of the paper: what a thief without data (DAFL) gets from a normal and from a nasty ResNet-34.

The paper does not name the students; they are ResNet-18, as in the DAFL paper.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021.
    Chen et al., "Data-Free Learning of Student Networks", ICCV 2019.
"""

from __future__ import annotations

from undistill.recipe import Recipe
from undistill.studies.changes import Changes, adapt
from undistill.studies.datafree import data_free
from undistill.studies.paper import load_paper
from undistill.studies.protocol import nasty, normal
from undistill.studies.study import STUDIES
from undistill.studies.tables import TableStudy

__all__ = ["table6"]


@STUDIES.register("table6")
def table6(*, seeds: int, changes: Changes) -> TableStudy:
    """Return Table 6: ResNet-34 on CIFAR-10 and CIFAR-100."""
    paper = load_paper()["table6"]

    def recipe(row: str, column: str, seed: int) -> Recipe:
        data, kind = paper.columns[column].dataset, paper.rows[row].kind
        teacher = (normal if kind == "normal" else nasty)(data, "resnet34", seed)
        if paper.columns[column].measure == "teacher":
            return adapt(teacher, changes)
        return data_free(data, "dafl", teacher, changes)

    cells = {
        (row, column): tuple(recipe(row, column, seed) for seed in range(seeds))
        for row in paper.rows
        for column in paper.columns
    }
    return TableStudy("table6", paper.title, seeds, changes, paper, cells)
