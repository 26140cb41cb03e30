from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from helpers import reference
from helpers.devices import DEVICES, call

from granalign_fast.kernels import ContextRules, context

# float32 sums over up to 19 clips of up to 384 numbers; half precision rounds the result once more.
TOLERANCE = {np.float32: 1e-5, np.float16: 1e-3}


def rows(seed, clips, dim, dtype):
    """Scenes: neighbours are alike."""
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal((clips, dim)).cumsum(axis=0) + rng.standard_normal((clips, dim))
    return (walk / np.linalg.norm(walk, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("lengths", "dim"), [([1], 1), ([19, 0, 1, 2], 33), ([75], 384), ([7, 300], 5)], ids=str
)
@pytest.mark.parametrize(
    "rules", [ContextRules(), ContextRules(radius=9, power=0), ContextRules(radius=0)], ids=str
)
@pytest.mark.parametrize("rescale", [False, True])
def test_equals_the_reference(device, dtype, lengths, dim, rules, rescale):
    embeddings = rows(dim, sum(lengths), dim, dtype)
    if rescale:  # rows of other lengths, as mixed ones are
        embeddings *= np.random.default_rng(1).uniform(0.5, 1, (len(embeddings), 1)).astype(dtype)
    offsets = np.cumsum([0, *lengths])
    got = call(context, device, embeddings, offsets, rules=rules, rescale=rescale)
    assert got.dtype == dtype
    for begin, end in pairwise(offsets):
        want = reference.context(embeddings[begin:end], rules, rescale)
        np.testing.assert_allclose(got[begin:end], want, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_arrays_that_begin_anywhere(device, dtype):
    """A row is a multiple of 16 bytes long, but does not lie on one."""
    straight = rows(2, 21, 16, dtype)
    moved = np.empty(straight.size + 1, dtype)
    moved[1:] = straight.ravel()
    got = call(context, device, moved[1:].reshape(straight.shape), [0, 9, 21], rules=ContextRules())
    for part in (slice(0, 9), slice(9, 21)):
        want = reference.context(straight[part], ContextRules())
        np.testing.assert_allclose(got[part], want, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rules", [ContextRules(radius=2, power=0), ContextRules(radius=64)])
def test_a_nan_reaches_no_further_than_the_radius(device, rules):
    embeddings = rows(3, 200, 12, np.float32)
    offsets = [0, 91, 200]
    straight = call(context, device, embeddings, offsets, rules=rules)
    embeddings[90] = np.nan  # the last of the first video
    mixed = call(context, device, embeddings, offsets, rules=rules)
    beyond = 90 - rules.radius
    if device != "numpy":  # whose products are of more than the neighbourhood
        np.testing.assert_array_equal(mixed[:beyond], straight[:beyond])
    np.testing.assert_array_equal(mixed[91:], straight[91:])
    assert np.isnan(mixed[beyond:91]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_not_hidden(device):
    embeddings = rows(1, 60, 8, np.float32)
    embeddings[30, 3] = np.nan
    mixed = call(context, device, embeddings, [0, 60], rules=ContextRules())
    assert np.isnan(mixed[30]).all()


def test_no_videos():
    assert context(np.zeros((0, 4), np.float32), [0], rules=ContextRules()).shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"), [({"radius": 65}, "radius: got 65"), ({"power": -1}, "power: got -1")]
)
def test_bad_rules_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ContextRules(**change)
