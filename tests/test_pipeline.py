import threading

import numpy as np
import pytest

from fdftnet_jax.data import images, pipeline, preprocess
from fdftnet_jax.errors import UserError

PREPROCESSING = preprocess.Preprocessing(size=4)


class StubRecords:
    """Records whose picture is one colour: their own index; counts the reads."""

    def __init__(self, number):
        self.reads = []
        self._records = [
            {
                "image": images.encode_png(np.full((4, 4, 3), i, np.uint8)),
                "label": i % 2,
            }
            for i in range(number)
        ]

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i):
        self.reads.append(i)
        return self._records[i]


def view_source(number, **options):
    return pipeline.ViewSource(StubRecords(number), PREPROCESSING, **options)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def indices(batches):
    return np.concatenate([batch["index"] for batch in batches])


def assert_batches_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_view_source_items():
    source = view_source(7)
    assert len(source) == 7
    for i in (3, 6, 3):
        item = source[i]
        assert item["image"].dtype == np.uint8
        np.testing.assert_array_equal(item["image"], np.full((4, 4, 3), i))
        assert item["label"] == i % 2 and item["label"].dtype == np.int32
        assert item["index"] == i and item["index"].dtype == np.int32


def test_view_source_applies_the_preprocessing():
    image = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    records = [{"image": images.encode_png(image), "label": 1}]
    source = pipeline.ViewSource(records, PREPROCESSING)
    np.testing.assert_array_equal(source[0]["image"], PREPROCESSING(image))


@pytest.mark.parametrize(("megabytes", "kept"), [(2048, 30), (1, 20), (0, 0)])
def test_views_are_kept_up_to_the_budget(megabytes, kept):
    # 128 x 128 x 3 bytes: 20 views fill a megabyte.
    records = StubRecords(30)
    source = pipeline.ViewSource(records, preprocess.Preprocessing(size=128), megabytes)
    first = [source[i] for i in range(30)]
    assert len(records.reads) == 30
    second = [source[i] for i in range(30)]
    assert len(records.reads) == 30 + 30 - kept
    assert_batches_equal(first, second)


def test_a_changed_item_does_not_change_the_kept_one():
    source = view_source(1)
    for _ in range(3):
        item = source[0]
        np.testing.assert_array_equal(item["image"], 0)
        item["image"][:] = 9


def test_views_are_right_when_many_threads_read():
    source = view_source(50)
    errors = []

    def read():
        for i in range(50):
            item = source[i]
            if not (np.all(item["image"] == i) and item["label"] == i % 2):
                errors.append(i)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_labels():
    labels = pipeline.labels(StubRecords(5))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [0, 1, 0, 1, 0])


LABELS = np.array([0, 1, 1, 0, 0, 1, 1, 1, 0, 1])


def test_draw_shots():
    drawn, found = pipeline.draw_shots(LABELS, 3, seed=0)
    assert found == (3, 3)
    np.testing.assert_array_equal(drawn, np.unique(drawn))
    np.testing.assert_array_equal(np.bincount(LABELS[drawn]), [3, 3])


def test_draw_shots_takes_what_is_there_and_says_so():
    drawn, found = pipeline.draw_shots(LABELS, 5, seed=0)
    assert found == (4, 5)
    np.testing.assert_array_equal(np.bincount(LABELS[drawn]), [4, 5])


def test_zero_shots_are_all():
    drawn, found = pipeline.draw_shots(LABELS, 0, seed=0)
    assert found == (4, 6)
    np.testing.assert_array_equal(drawn, np.arange(10))


def test_draw_shots_follows_the_seed():
    labels = np.arange(1000) % 2
    draws = [pipeline.draw_shots(labels, 50, seed)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    # Two draws of a tenth share a tenth by chance.
    assert len(np.intersect1d(draws[0], draws[2])) < 30


def test_fewer_shots_are_a_subset_of_more():
    few, many = (pipeline.draw_shots(LABELS, shots, seed=3)[0] for shots in (2, 4))
    assert set(few) < set(many)


def test_subset_keeps_the_index_of_the_whole():
    subset = pipeline.Subset(view_source(9), np.array([2, 5, 8]))
    assert len(subset) == 3
    assert [int(subset[i]["index"]) for i in range(3)] == [2, 5, 8]


@pytest.mark.parametrize("threads", [0, 4])
def test_train_batches(threads):
    batches = pipeline.train_batches([(view_source(10), 1.0)], 4, 0, threads=threads)
    for batch in take(batches, 6):
        assert batch["image"].shape == (4, 4, 4, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], batch["index"] % 2)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])


def test_every_epoch_has_every_example_in_a_new_order():
    batches = pipeline.train_batches([(view_source(30), 1.0)], 4, seed=0)
    epochs = indices(take(batches, 30)).reshape(4, 30)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(30), (4, 1)))
    assert len(np.unique(epochs, axis=0)) == 4


def test_order_follows_the_seed():
    runs = [
        indices(take(pipeline.train_batches([(view_source(30), 1.0)], 10, seed), 9))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    # Neither the order of seed 0 nor its later epochs.
    epochs = {tuple(epoch) for epoch in runs[0].reshape(3, 30)}
    assert not epochs & {tuple(epoch) for epoch in runs[2].reshape(3, 30)}


MIXTURE = [(view_source(10), 3.0), (view_source(7), 1.0)]


@pytest.mark.parametrize("start", [1, 5, 17])
def test_a_resumed_run_reads_on_where_it_stopped(start):
    undisturbed = take(pipeline.train_batches(MIXTURE, 4, seed=2), 20)
    resumed = pipeline.train_batches(MIXTURE, 4, seed=2, start_step=start)
    assert_batches_equal(take(resumed, 20 - start), undisturbed[start:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_rows_of_the_global_batch(processes):
    whole = take(pipeline.train_batches(MIXTURE, 8, seed=0, start_step=3), 5)
    chunks = [
        take(
            pipeline.train_batches(
                MIXTURE,
                8,
                seed=0,
                start_step=3,
                process_index=p,
                process_count=processes,
            ),
            5,
        )
        for p in range(processes)
    ]
    for step, batch in enumerate(whole):
        for key, value in batch.items():
            joined = np.concatenate([chunk[step][key] for chunk in chunks])
            np.testing.assert_array_equal(joined, value)


def test_mixture_follows_the_weights():
    low = view_source(20)
    high = pipeline.Subset(view_source(60), np.arange(20, 60))
    batches = pipeline.train_batches([(low, 1.0), (high, 3.0)], 8, seed=0)
    drawn = indices(take(batches, 10))
    assert np.sum(drawn < 20) == 20 and np.sum(drawn >= 20) == 60
    np.testing.assert_array_equal(np.sort(drawn[drawn < 20]), np.arange(20))


def test_members_of_one_size_are_shuffled_apart():
    members = [(view_source(40), 1.0), (view_source(40), 1.0)]
    drawn = indices(take(pipeline.train_batches(members, 8, seed=0), 10))
    assert not np.array_equal(drawn[0::2], drawn[1::2])


@pytest.mark.parametrize("batches", [pipeline.train_batches, pipeline.eval_batches])
def test_batch_size_must_suit_the_processes(batches):
    source = [(view_source(4), 1.0)] if "train" in batches.__name__ else view_source(4)
    options = {"seed": 0} if "train" in batches.__name__ else {}
    with pytest.raises(UserError, match="choose a multiple of 3"):
        batches(source, 8, **options, process_count=3)


@pytest.mark.parametrize("number", [1, 7, 8, 9, 16, 0])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_image_is_scored_exactly_once(number, processes):
    chunks = [
        list(
            pipeline.eval_batches(
                view_source(number), 8, process_index=p, process_count=processes
            )
        )
        for p in range(processes)
    ]
    assert {len(chunk) for chunk in chunks} == {-(-number // 8)}
    rows: dict[str, list] = {key: [] for key in ("image", "label", "index", "mask")}
    for step in range(-(-number // 8)):
        for chunk in chunks:
            assert chunk[step]["image"].shape == (8 // processes, 4, 4, 3)
            assert chunk[step]["mask"].dtype == np.float32
            for key, value in rows.items():
                value.extend(chunk[step][key])
    real = np.array(rows["mask"]) == 1
    np.testing.assert_array_equal(np.array(rows["index"])[real], np.arange(number))
    np.testing.assert_array_equal(np.array(rows["label"])[real], np.arange(number) % 2)
    for key, filling in (("mask", 0), ("image", 0), ("label", 0), ("index", -1)):
        assert np.all(np.array(rows[key])[~real] == filling)
