"""Nested embeddings: whatever lies at whatever depth is moved, selected, stacked and gathered alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from diptych import distributed
from diptych.errors import ConfigError
from diptych.evaluation.rows import gather_embedding, stack
from diptych.head import gather_pairs
from diptych.types import Dims, Embedding, Pairs, TokenEmbedding, map_leaves
from diptych_heads.composite import Composite
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling


@dataclass(frozen=True)
class Parts:
    """A dataclass that is no embedding."""

    tokens: Tensor
    absent: Tensor | None = None


@dataclass(frozen=True)
class Nested(Embedding):
    inner: TokenEmbedding
    by_name: dict[str, Parts]
    two: tuple[Embedding, Parts]


DECLARED = frozenset({"text.inner.tokens", "text.by_name.a.tokens", "text.two.1.tokens", "image.two.0.pooled"})


def nested(rows: Tensor, words: int = 2) -> Nested:
    x = rows.double().unsqueeze(1)
    tokens = x.unsqueeze(2).repeat(1, words, 1)
    return Nested(
        x, TokenEmbedding(x, tokens, tokens[..., 0] >= 0), {"a": Parts(tokens)}, (Embedding(x), Parts(tokens))
    )


def leaves(value: object) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    map_leaves(lambda path, leaf: found.update({path: leaf}), value)
    return {path: leaf for path, leaf in found.items() if leaf is not None}


def same(value: Nested, expected: Nested) -> None:
    ours, theirs = leaves(value), leaves(expected)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 7
    for path, leaf in ours.items():
        assert torch.equal(leaf, theirs[path]), path


def test_every_tensor_of_a_nested_value_is_selected_and_moved():
    rows = torch.arange(5)
    same(nested(rows).select(torch.tensor([3, 1])), nested(torch.tensor([3, 1])))
    same(nested(rows).select(rows > 2), nested(torch.tensor([3, 4])))
    assert all(leaf.device.type == "meta" for leaf in leaves(nested(rows).to("meta")).values())


def test_nested_values_are_stacked_and_padded_to_the_longest():
    whole = stack([nested(torch.arange(2)), nested(torch.arange(2, 5), words=4)])
    assert whole.pooled.flatten().tolist() == [0, 1, 2, 3, 4]
    for tokens in (whole.inner.tokens, whole.by_name["a"].tokens, whole.two[1].tokens):
        assert tokens[..., 0].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [2] * 4, [3] * 4, [4] * 4]
    assert whole.inner.mask.sum(1).tolist() == [2, 2, 4, 4, 4]


def task_gathered(declared: frozenset[str]) -> tuple[dict[str, Tensor], dict[str, Tensor], Nested, Tensor]:
    """This process's two pairs, gathered for the loss and for evaluation, and a gradient through the former."""
    rows = torch.arange(2) + 2 * distributed.rank()
    here = nested(rows)
    here.inner.tokens.requires_grad_()
    hash = rows + 10
    world = gather_pairs(SimpleNamespace(gathers=declared), Pairs(here, here, rows, hash))
    (world.text.inner.tokens.sum() * (distributed.rank() + 1)).backward()
    everyone = gather_embedding(nested(rows, words=1 + distributed.rank()), torch.device("cpu"))
    gradient = here.inner.tokens.grad
    assert gradient is not None
    detached = [{path: leaf.detach() for path, leaf in leaves(panel).items()} for panel in (world.image, world.text)]
    return detached[0], detached[1], everyone, gradient


def test_declared_fields_at_any_depth_are_gathered_with_gradient_and_all_others_are_emptied(processes):
    expected = leaves(nested(torch.arange(4)))
    for image, text, everyone, gradient in processes.run(2, task_gathered, DECLARED):
        for panel, found in (("image", image), ("text", text)):
            assert found.keys() == expected.keys()
            for path, leaf in found.items():
                if f"{panel}.{path}" in DECLARED:
                    assert torch.equal(leaf, expected[path]), path
                else:
                    assert leaf.numel() == 0, path
        assert (gradient == 3).all()  # 1 and 2, of the two processes
        assert everyone.two[1].tokens[..., 0].tolist() == [[0, 0], [1, 0], [2, 2], [3, 3]]
        assert everyone.by_name["a"].tokens.shape == everyone.inner.tokens.shape == (4, 2, 1)


def test_a_nested_field_that_is_lacking_is_named():
    here = nested(torch.arange(2))
    head = SimpleNamespace(gathers=frozenset({"text.inner.words"}))
    with pytest.raises(ConfigError, match=r"gathers names text\.inner\.words, which .* image\.by_name\.a\.tokens"):
        gather_pairs(head, Pairs(here, here, torch.arange(2), torch.arange(2)))


def test_a_composite_in_a_composite_declares_the_whole_path_and_a_copy_asks_its_own_members():
    def inner(dims: Dims) -> Composite:
        return Composite(dims, heads=[Global, LocalPooling])

    head = Composite(Dims(4, 4, 4, 4), heads=[inner])
    assert head.gathers >= {"text.members.composite.members.local_pooling.tokens"}
    panels = [
        head._embedding({"composite": head.members["composite"]._embedding({"global": x, "local_pooling": x})})
        for x in (TokenEmbedding(torch.eye(4), torch.rand(4, 3, 4), torch.ones(4, 3, dtype=torch.bool)) for _ in "it")
    ]
    copied = copy.deepcopy(head)
    copied.members["composite"].members["local_pooling"].region_scale = 19.0
    before, after = head.heatmap(*panels), copied.heatmap(*panels)
    assert torch.equal(
        before,
        head.members["composite"]
        .members["local_pooling"]
        .heatmap(*(p.members["composite"].members["local_pooling"] for p in panels)),
    )
    assert not torch.equal(before, after)
    world = gather_pairs(head, Pairs(*panels, torch.arange(4), torch.arange(4)))
    assert head.losses(Pairs(*panels, torch.arange(4), torch.arange(4)), world).keys() == head.weights.keys()
