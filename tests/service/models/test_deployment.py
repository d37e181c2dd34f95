from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from service.errors import ConflictError, NotFoundError, TryLaterError, WeightsError
from service.models import deployment, destruction, registry
from service.models.commit_word import CommitWord
from service.models.deployment import abort, activate_first, commit, deploy, pointer, stage
from service.store.engine import session
from service.store.process_marks import this_host
from service.store.tables import ServingWorker
from tests.service.versions import add_version

pytestmark = pytest.mark.both_databases


@pytest.fixture
def digests(context):
    return [add_version(context, seed) for seed in range(3)]


def word(context) -> int:
    with CommitWord(context.settings.commit_word_path) as found:
        return found.read()


def update_worker(context, boot_id="a", **fields) -> None:
    now = context.now()
    with session(context.engine) as s:
        row = s.get(ServingWorker, boot_id) or ServingWorker(
            boot_id=boot_id, line="default", host=this_host(), pid=os.getpid(), expected=1,
            started_at=datetime.now(UTC), heartbeat_at=now, lease_until=now + timedelta(hours=1),
        )  # fmt: skip
        for name, value in fields.items():
            setattr(row, name, value)
        s.add(row)
        s.commit()


def test_the_first_version(context, digests):
    assert pointer(context) is None
    assert activate_first(context, digests[0]) == 1
    assert (pointer(context).committed_generation, pointer(context).committed_digest) == (1, digests[0])
    assert registry.get(context, digests[0]).state == "active"
    assert word(context) == 1
    assert activate_first(context, digests[0]) == 1
    with pytest.raises(ConflictError, match="Expected no active version"):
        activate_first(context, digests[1])


def test_staging_twice_gives_the_same_generation(context, digests):
    activate_first(context, digests[0])
    assert stage(context, digests[1]) == 2
    assert stage(context, digests[1]) == 2
    commit(context, 2)
    assert stage(context, digests[1]) == 2
    assert pointer(context).staging_generation is None


def test_another_staged_version_gives_way_and_numbers_never_return(context, digests):
    activate_first(context, digests[0])
    assert stage(context, digests[1]) == 2
    assert stage(context, digests[2]) == 3
    abort(context, 3)
    assert pointer(context).staging_generation is None
    assert stage(context, digests[2]) == 4


def test_a_commit_retires_the_version_before(context, digests):
    activate_first(context, digests[0])
    commit(context, stage(context, digests[1]))
    assert [registry.get(context, each).state for each in digests] == ["retired", "active", "candidate"]
    assert word(context) == 2
    assert commit(context, 2) == 2  # repeated after a kill


def test_a_commit_repeated_after_a_kill_writes_the_word(context, digests):
    activate_first(context, digests[0])
    stage(context, digests[1])
    commit(context, 2)
    context.settings.commit_word_path.unlink()
    commit(context, 2)
    assert word(context) == 2


def test_only_what_is_staged_can_be_committed(context, digests):
    activate_first(context, digests[0])
    with pytest.raises(ConflictError):
        commit(context, 2)
    stage(context, digests[1])
    abort(context, 2)
    with pytest.raises(ConflictError):
        commit(context, 2)
    assert word(context) == 1


def test_altered_unknown_and_destroyed_weights_are_not_staged(context, digests):
    activate_first(context, digests[0])
    registry.path(context.settings, digests[1]).write_bytes(b"something else")
    destruction.destroy(context, digests[2])
    for digest in digests[1:]:
        with pytest.raises(WeightsError):
            stage(context, digest)
    with pytest.raises(NotFoundError):
        stage(context, "e" * 64)
    assert pointer(context).committed_digest == digests[0]
    assert pointer(context).staging_digest is None


def test_rollback_is_a_new_generation_of_old_weights(context, digests):
    activate_first(context, digests[0])
    commit(context, stage(context, digests[1]))
    assert commit(context, stage(context, digests[0])) == 3
    assert registry.get(context, digests[0]).state == "active"
    assert registry.get(context, digests[1]).state == "retired"


def test_no_rollback_to_weights_that_remember_an_erased_person(context, digests):
    activate_first(context, digests[0])
    commit(context, stage(context, digests[1]), forget_older=True)
    with pytest.raises(ConflictError, match="remember a person who was erased"):
        stage(context, digests[0])
    commit(context, stage(context, digests[2]))
    assert stage(context, digests[1]) == 4  # as old as the erasure itself is allowed


def test_a_spare_that_was_staged_in_vain_may_be_staged_after_an_erasure(context, digests):
    """It never served, and its roster says whom it remembers: the purge destroyed those that remember who went."""
    activate_first(context, digests[0])
    with session(context.engine) as s:
        spare = registry.find(s, digests[1])
        spare.state = registry.SPARE
        s.add(spare)
        s.commit()
    abort(context, stage(context, digests[1]))
    commit(context, stage(context, digests[2]), forget_older=True)
    assert stage(context, digests[1]) == 4


def test_deploying_where_nobody_serves(context, digests):
    activate_first(context, digests[0])
    found = deploy(context, digests[1], forget_older=True)
    assert (found.generation, found.digest, found.processes) == (2, digests[1], ())
    assert pointer(context).oldest_allowed_generation == 2


def test_the_commit_waits_for_staging_and_the_end_for_acknowledgement(context, digests):
    activate_first(context, digests[0])
    update_worker(context, acknowledged_generation=1)
    seen = []

    def sleep(_: float) -> None:
        seen.append(pointer(context).committed_generation)
        if len(seen) == 3:
            update_worker(context, staged_generation=2)
        if len(seen) == 6:
            update_worker(context, acknowledged_generation=2, acknowledged_at=context.now())

    found = deploy(context, digests[1], sleep=sleep)
    assert seen == [1, 1, 1, 2, 2, 2]
    assert [row.acknowledged_generation for row in found.processes] == [2]


def test_repeating_after_a_kill_between_commit_and_barrier_goes_on_waiting(context, digests):
    activate_first(context, digests[0])
    update_worker(context, acknowledged_generation=1)
    commit(context, stage(context, digests[1]))
    found = deploy(
        context, digests[1], sleep=lambda _: update_worker(context, staged_generation=2, acknowledged_generation=2)
    )
    assert found.generation == 2


def test_weights_nobody_can_load_are_taken_back(context, digests):
    activate_first(context, digests[0])
    update_worker(context, acknowledged_generation=1, last_error="generation 2: Expected weights of resnet18.")
    with pytest.raises(WeightsError, match=r"no serving process could load them\. generation 2: Expected weights of"):
        deploy(context, digests[1])
    assert pointer(context).staging_generation is None
    assert (pointer(context).committed_digest, word(context)) == (digests[0], 1)


def test_one_process_that_cannot_load_delays_until_time_is_over(context, digests):
    activate_first(context, digests[0])
    update_worker(context, "a", acknowledged_generation=1, expected=2, last_error="generation 2: No memory.")
    update_worker(context, "b", acknowledged_generation=1, expected=2, staged_generation=2)
    clock = iter(range(1000))
    with pytest.raises(TryLaterError, match="generation 2: No memory"):
        deploy(context, digests[1], timeout_seconds=5, sleep=lambda _: None, steady=lambda: float(next(clock)))
    assert pointer(context).staging_generation is None
    assert pointer(context).committed_generation == 1


def test_time_over_after_the_commit_leaves_the_version_active(context, digests):
    activate_first(context, digests[0])
    update_worker(context, acknowledged_generation=1, staged_generation=2)
    clock = iter(range(1000))
    with pytest.raises(TryLaterError, match="to answer with generation 2"):
        deploy(context, digests[1], timeout_seconds=5, sleep=lambda _: None, steady=lambda: float(next(clock)))
    assert pointer(context).committed_generation == 2


def test_the_prefix_of_failures_names_the_generation():
    assert not "generation 12: x".startswith(deployment.failure_prefix(1))
