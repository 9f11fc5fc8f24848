"""Atoms and labels: what is united, what freezes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamsparse.network.labels import NO_CHANNEL, AtomTable, Cause, Labels, collapse

WHY = Cause("because")


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
def test_classes_are_the_components_of_what_is_united(pairs: list[tuple[int, int]]) -> None:
    table = AtomTable()
    atoms = table.create(12, "layer")
    component = list(range(12))
    for left, right in pairs:
        table.unite(atoms[[left]], atoms[[right]], WHY)
        old, new = component[left], component[right]
        component = [new if c == old else c for c in component]
    of_atom = table.classes().of_atom[atoms]
    assert [[a == b for b in of_atom] for a in of_atom] == [[a == b for b in component] for a in component]


def test_a_frozen_atom_freezes_its_class_for_the_first_cause() -> None:
    table = AtomTable()
    atoms = table.create(4, "layer")
    table.unite(atoms[:1], atoms[1:2], WHY)
    table.freeze(atoms[1:2], Cause("first"))
    table.freeze(atoms[:3], Cause("second"))
    table.unite(atoms[3:], np.array([NO_CHANNEL]), Cause("padding"))
    classes = table.classes()
    reasons = [classes.cause[c].reason for c in classes.of_atom[atoms].tolist()]
    assert reasons == ["first", "first", "second", "padding"]


@given(st.integers(2, 5), st.integers(6, 9))
def test_a_view_in_two_dimensions_leaves_the_finer_partition(coarse: int, fine: int) -> None:
    table = AtomTable()
    atoms = table.create(coarse * fine, "layer")
    labels = Labels((1, coarse * fine, 2), 1, atoms).tensor().reshape(1, coarse, fine, 2)
    result = collapse(labels, table, WHY)
    assert result.dim == 2
    of_atom = table.classes().of_atom[atoms].reshape(coarse, fine)
    assert (of_atom == of_atom[:1]).all()
    assert len(np.unique(of_atom)) == fine


def test_labels_take_the_memory_of_their_channels_only() -> None:
    labels = Labels((1, 8, 512, 512), 1, AtomTable().create(8, "layer"))
    assert labels.tensor().untyped_storage().nbytes() == 8 * 8
    assert torch.equal(labels.tensor()[0, :, 3, 5], torch.arange(1, 9))
