"""The suite for stores fails what is broken: one store for each promise, at least."""

from tempfile import gettempdir

import broken_stores as broken
import pytest
from makers import InMemory, OnDisk
from twins import must_fail, without_twin

from ghostserve.parity import ParityStore, StoreGeometry
from ghostserve.parity.file_store import FileStore
from ghostserve.testing.stores import StoreConformance

TWINS = [
    ("test_a_fresh_store_has_nothing_committed", broken.Trusting),
    ("test_what_is_written_and_settled_is_read_back", broken.NeverCommits),
    ("test_a_parity_shard_is_read_alone", broken.ShardsSwapped),
    ("test_many_ranges_are_one_write_and_one_read", broken.SortsRanges),
    ("test_no_slots_are_no_write", broken.WritesNothingAsAll),
    ("test_another_generation_does_not_count", broken.IgnoresGeneration),
    ("test_another_block_or_place_does_not_count", broken.IgnoresBlock),
    ("test_reuse_takes_the_older_generation_away", broken.KeepsGenerations),
    ("test_slots_that_are_not_written_stay_as_they_were", broken.WholeBlocks),
    ("test_writing_again_is_the_last_write", broken.KeepsGenerations),
    ("test_a_full_store_holds_every_slot_apart", broken.Overlapping),
    ("test_the_caller_s_buffers_are_free_after_write", broken.KeepsBuffers),
    ("test_settling_again_changes_nothing", broken.SettlesBegun),
    ("test_the_epoch_is_shared_and_never_goes_back", broken.GoesBack),
    ("test_writers_of_an_older_epoch_change_nothing", broken.AcceptsOldEpochs),
    ("test_writers_of_a_later_epoch_change_nothing", broken.AcceptsLaterEpochs),
    ("test_a_fence_while_the_payload_is_copied_leaves_it_uncommitted", broken.ChecksOnce),
    ("test_a_fence_before_the_end_of_a_flush", broken.SettlesUnderAnyEpoch),
    ("test_what_is_left_of_an_older_epoch_is_not_committed_by_the_next", broken.SettlesUnderAnyEpoch),
    ("test_after_a_fence_the_new_epoch_writes_and_the_old_content_stays", broken.NoSecondWrite),
    ("test_what_is_committed_survives_its_writer", broken.Forgets),
    ("test_what_is_committed_survives_its_maker", broken.ClearsOnClose),
    ("test_closing_twice_is_closing_once", broken.ClosesAgain),
    ("test_a_writer_that_dies_in_the_payload_leaves_old_or_nothing", broken.CommitsFirst),
    ("test_a_writer_that_dies_in_the_checksums_leaves_old_or_nothing", broken.SealsByHalves),
    ("test_what_a_death_left_is_written_again_under_the_next_epoch", broken.NoSecondWrite),
    ("test_between_begin_and_commit_nothing_counts", broken.ClearsNothing),
    ("test_a_table_says_the_same_as_its_ranges", broken.TablesElsewhere),
    ("test_a_fence_between_begin_and_commit_leaves_the_slots_uncommitted", broken.AcceptsOldEpochs),
    ("test_bytes_that_a_device_puts_at_the_address_are_the_payload", broken.AddressElsewhere),
    ("test_slots_that_the_store_does_not_have_are_refused", broken.Wraps),
    ("test_parity_of_another_shape_is_refused_with_both_shapes", broken.AnyShape),
    ("test_checksums_of_another_shape_are_refused_with_both_shapes", broken.AnyChecksums),
    ("test_attach_refuses_another_geometry_and_names_the_number", broken.AttachesAnything),
    ("test_a_store_that_does_not_fit_on_the_machine_is_refused", broken.Shrinks),
    ("test_it_has_no_name_and_is_this_user_s_only", broken.Readable),
]


def suite_of(kind: type[ParityStore]) -> StoreConformance:
    """The suite over stores of class `kind`."""
    on_disk = issubclass(kind, FileStore)

    class Suite(OnDisk if on_disk else InMemory, StoreConformance):
        def create(self, geometry: StoreGeometry, epoch: int = 1) -> ParityStore:
            return kind.create_in(gettempdir(), geometry, epoch) if on_disk else kind.create(geometry, epoch)

        def attach(self, fds: tuple[int, ...], geometry: StoreGeometry) -> ParityStore:
            return kind.attach_file(*fds, geometry) if on_disk else kind.attach(*fds, geometry)

    return Suite()


@pytest.mark.parametrize(("promise", "kind"), TWINS)
def test_what_is_broken_fails(promise: str, kind: type[ParityStore]) -> None:
    getattr(suite_of(FileStore if issubclass(kind, FileStore) else ParityStore), promise)()
    must_fail(suite_of(kind), promise)


def test_every_promise_has_a_twin() -> None:
    assert without_twin(StoreConformance, [promise for promise, _ in TWINS]) == set()
