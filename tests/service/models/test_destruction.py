"""Weights are destroyed together or one by one, finally, and never those in service."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from service.context import LINE
from service.errors import ConflictError, WeightsError
from service.models import deployment, destruction, registry
from service.store.engine import session
from service.store.tables import Deployment, ModelVersion
from tests.service.versions import add_version

pytestmark = pytest.mark.both_databases


def test_destroyed_weights_are_overwritten_gone_and_do_not_come_back(context, tmp_path, monkeypatch):
    digest = add_version(context, 1)
    path = registry.path(context.settings, digest)
    keeper = tmp_path / "hard-link"  # shows what the blocks of the file hold after its removal
    keeper.hardlink_to(path)
    partial = path.with_name(f".{path.name}.0123456789abcdef.tmp")
    partial.write_bytes(path.read_bytes())
    destruction.destroy(context, digest)
    assert not path.exists()
    assert not partial.exists()
    assert set(keeper.read_bytes()) == {0}
    row = registry.get(context, digest)
    assert (row.state, row.destroyed_at) == ("destroyed", context.now())
    with pytest.raises(WeightsError, match="destroyed"):
        registry.load_checked(context, digest)
    with pytest.raises(WeightsError, match="destroyed on purpose"):
        add_version(context, 1)


def test_destroying_again_finishes_what_a_kill_interrupted(context, clock):
    digest = add_version(context, 1)
    with session(context.engine) as s:
        row = s.get(ModelVersion, digest)
        row.state = "destroyed"
        s.add(row)
        s.commit()
    destruction.destroy(context, digest)
    first = registry.get(context, digest).destroyed_at
    clock.advance(hours=1)
    destruction.destroy(context, digest)
    assert registry.get(context, digest).destroyed_at == first
    assert not registry.path(context.settings, digest).exists()


def test_the_active_and_the_staged_version_are_not_destroyed(context):
    active, staged = add_version(context, 1), add_version(context, 2)
    deployment.activate_first(context, active)
    deployment.stage(context, staged)
    for digest in (active, staged):
        with pytest.raises(ConflictError, match="out of service"):
            destruction.destroy(context, digest)
        assert registry.load_checked(context, digest)


def test_several_are_destroyed_together_and_none_if_one_is_in_service(context):
    active, *spares = (add_version(context, seed) for seed in range(1, 4))
    deployment.activate_first(context, active)
    with pytest.raises(ConflictError, match="out of service"):
        destruction.destroy(context, *spares, active)
    assert all(registry.load_checked(context, digest) for digest in spares)
    n_transactions = 0

    def count(_: object) -> None:
        nonlocal n_transactions
        n_transactions += 1

    event.listen(context.engine, "commit", count)
    destruction.destroy(context, *spares)
    assert n_transactions <= 2  # the rows say so before and after, each once for all
    assert [registry.get(context, digest).state for digest in spares] == ["destroyed", "destroyed"]
    assert not any(registry.is_held(context, digest) for digest in spares)


def test_everything_older_is_destroyed_and_refused_for_ever(context, clock):
    digests = [add_version(context, seed) for seed in range(4)]  # the last is never deployed
    deployment.activate_first(context, digests[0])
    for digest in digests[1:3]:
        clock.advance(seconds=1)
        deployment.commit(context, deployment.stage(context, digest))
    clock.advance(seconds=1)
    later = add_version(context, 9)
    assert set(destruction.destroy_older_than(context, 3)) == {digests[0], digests[1], digests[3]}
    assert [registry.get(context, each).state for each in digests] == ["destroyed", "destroyed", "active", "destroyed"]
    assert registry.get(context, later).state == "candidate"
    assert deployment.pointer(context).oldest_allowed_generation == 3
    assert destruction.destroy_older_than(context, 3) == ()  # of what was destroyed before it says nothing
    assert {row.digest for row in destruction.refused(context)} == {digests[0], digests[1], digests[3]}


def test_after_a_restore_no_version_need_have_the_oldest_generation_allowed(context):
    digests = [add_version(context, 0)]
    deployment.activate_first(context, digests[0])
    with session(context.engine) as s:  # as a restore leaves it: somebody is to be erased from the first one again
        pointer = s.get_one(Deployment, LINE)
        pointer.oldest_allowed_generation = 2
        s.add(pointer)
        s.commit()
    assert destruction.destroy_refused(context) == ()
    digests += [add_version(context, seed) for seed in (1, 2)]
    deployment.abort(context, deployment.stage(context, digests[1]))  # the number is not given again
    deployment.deploy(context, digests[2])
    destruction.destroy(context, digests[1])
    assert destruction.destroy_refused(context) == (digests[0],)


def test_nothing_is_destroyed_while_an_older_generation_answers(context):
    first, second = add_version(context, 1), add_version(context, 2)
    deployment.activate_first(context, first)
    deployment.stage(context, second)
    with pytest.raises(ConflictError, match="generation 2 to be active"):
        destruction.destroy_older_than(context, 2)
    assert registry.load_checked(context, first)


def test_candidates_are_destroyed_but_not_the_staged_one(context):
    active, staged, failed = (add_version(context, seed) for seed in range(3))
    deployment.activate_first(context, active)
    deployment.stage(context, staged)
    assert destruction.destroy_candidates(context) == (failed,)
    assert registry.load_checked(context, active)
    assert registry.load_checked(context, staged)
    assert registry.get(context, failed).state == "destroyed"
    assert not registry.path(context.settings, failed).exists()


def test_older_weights_are_gone_from_the_disk_and_the_committed_ones_are_not(context):
    first, second = add_version(context, 1), add_version(context, 2)
    deployment.activate_first(context, first)
    deployment.commit(context, deployment.stage(context, second))
    destruction.destroy_older_than(context, 2)
    assert [registry.path(context.settings, each).exists() for each in (first, second)] == [False, True]


def test_what_an_interrupted_purge_left_is_destroyed_later(context):
    """The refusal of older generations is written first; a kill right after it must not leave their weights."""
    assert destruction.destroy_refused(context) == ()
    first, second = add_version(context, 1), add_version(context, 2)
    deployment.activate_first(context, first)
    deployment.commit(context, deployment.stage(context, second))
    assert destruction.destroy_refused(context) == ()
    assert registry.load_checked(context, first)  # nothing is refused yet
    with session(context.engine) as s:
        pointer = s.get(Deployment, LINE)
        pointer.oldest_allowed_generation = 2
        s.add(pointer)
        s.commit()
    assert destruction.destroy_refused(context) == (first,)
    assert registry.get(context, first).state == "destroyed"
    assert not registry.path(context.settings, first).exists()


def test_weights_that_a_backup_brought_back_are_destroyed_again(context, tmp_path):
    gone, kept = add_version(context, 1), add_version(context, 2)
    path = registry.path(context.settings, gone)
    content = path.read_bytes()
    destruction.destroy(context, gone)
    path.write_bytes(content)
    keeper = tmp_path / "hard-link"
    keeper.hardlink_to(path)
    destruction.confirm_destroyed(context)
    assert not path.exists()
    assert set(keeper.read_bytes()) == {0}
    assert registry.load_checked(context, kept)


def test_what_a_killed_addition_left_goes_with_the_weights(context):
    first, second = add_version(context, 1), add_version(context, 2)
    deployment.activate_first(context, second)
    path = registry.path(context.settings, first)
    left, of_another = (each.with_name(f".{each.name}.0123456789abcdef.tmp") for each in (
        path, registry.path(context.settings, second)
    ))  # fmt: skip
    for temporary in (left, of_another):
        temporary.write_bytes(path.read_bytes())
    destruction.destroy(context, first)
    assert not path.exists()
    assert not left.exists()
    assert of_another.exists()  # it may be written at this moment
