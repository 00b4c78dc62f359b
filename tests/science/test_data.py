"""Tests of the DataModules and their batches."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cvae.data import ImagesDataModule, MNISTDataModule
from cvae.image_set import ImageSet
from harness.contract.errors import DataError
from harness.contract.sampler import GlobalBatchSampler, Rows
from tests.conftest import NUM_TRAIN
from tests.tally import Promise


def make_data(data_dir: Path, **settings: object) -> MNISTDataModule:
    arguments = {"batch_size": 32, "eval_batch_size": 16, "validation_size": 45, **settings}
    data = MNISTDataModule(data_dir, "KMNIST", **arguments)  # type: ignore[arg-type]
    data.setup()
    return data


def list_batches(sampler: GlobalBatchSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return [rows.indices.tolist() for rows in sampler]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_images", [1, 2, 33, 64, 101])
def test_ranks_split_every_batch_without_loss_or_repetition(
    num_images: int, world_size: int
) -> None:
    batches = list_batches(GlobalBatchSampler(num_images, 15, shuffle_seed=4))
    shares = [
        list_batches(GlobalBatchSampler(num_images, 15, 4, rank, world_size))
        for rank in range(world_size)
    ]
    assert sorted(i for batch in batches for i in batch) == list(range(num_images))
    assert {len(share) for share in shares} == {len(batches)}  # the same number on every rank
    for number, batch in enumerate(batches):
        assert sorted(batch) == sorted(i for share in shares for i in share[number])


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def list_order(seed: int, epoch: int) -> list[list[int]]:
        return list_batches(GlobalBatchSampler(100, 10, seed), epoch)

    assert list_order(1, 5) == list_order(1, 5)
    assert list_order(0, 5) != list_order(1, 5)
    assert list_order(1, 4) != list_order(1, 5)


def test_a_resumed_epoch_continues_at_its_next_batch() -> None:
    sampler = GlobalBatchSampler(100, 10, 1)
    whole = list_batches(sampler, 3)
    sampler.first_batch = 4
    assert list_batches(sampler, 3) == whole[4:]
    assert list_batches(sampler, 3) == whole  # only the first epoch is shortened


def test_batches_have_documented_shapes_and_types(data_dir: Path) -> None:
    data = make_data(data_dir)
    batches = list(data.train_dataloader())
    assert sum(len(b.x) for b in batches) == NUM_TRAIN - 45
    for x, y, indices, global_size in batches:
        assert x.shape == (len(indices), 1, 28, 28)
        assert x.dtype == y.dtype == torch.float32
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert y.shape == (len(indices), 10)
        assert (y.sum(1) == 1).all()
        assert global_size == len(indices)
    (x, _, _, _), *_ = make_data(data_dir, binarization="none").train_dataloader()
    assert x.max() <= 1
    assert len(x.unique()) > 2


def test_only_training_pixels_are_sampled_anew_in_every_epoch(data_dir: Path) -> None:
    data = make_data(data_dir)
    assert data.train is not None
    indices = torch.arange(20)
    first, again, later = (data.train[Rows(e, indices, 20)].x for e in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert data.validation is not None
    early, late = (data.validation[Rows(e, indices, 20)].x for e in (0, 1))
    assert torch.equal(early, late)


def test_splits_and_their_binarization_do_not_depend_on_the_seed(data_dir: Path) -> None:
    one, two = make_data(data_dir, seed=1), make_data(data_dir, seed=2)
    for split in ("validation", "test"):
        a, b = getattr(one, split), getattr(two, split)
        assert a.digest() == b.digest()
    assert one.train is not None
    assert two.train is not None
    assert torch.equal(one.train.pixels, two.train.pixels)
    larger = make_data(data_dir, validation_size=46)
    assert larger.validation is not None
    assert one.validation is not None
    assert len(larger.validation) == 46


def test_the_digests_of_binarized_validation_and_test_mnist(tmp_path: Path) -> None:
    """Results are comparable only as long as these digests do not change."""
    data = MNISTDataModule(tmp_path)
    data.prepare_data()
    data.setup()
    assert data.train is not None
    assert data.validation is not None
    assert data.test is not None
    assert [len(d) for d in (data.train, data.validation, data.test)] == [55000, 5000, 10000]
    assert data.validation.digest() == "be4b350cfe5329c0"
    assert data.test.digest() == "1af9fbcec5e6066c"


@pytest.mark.parametrize("size", [0, NUM_TRAIN, -3])
def test_an_impossible_validation_size_is_rejected(size: int, data_dir: Path) -> None:
    with pytest.raises(DataError, match="validation_size"):
        make_data(data_dir, validation_size=size)


def test_the_mean_image_lies_strictly_between_0_and_1(data_dir: Path) -> None:
    data = make_data(data_dir)
    assert data.train is not None
    data.train = ImageSet(data.train.pixels * 0, data.train.labels, 10)
    assert data.mean_image.min() > 0
    data.train.pixels += 255
    assert data.mean_image.max() < 1


def test_examples_show_every_label(data_dir: Path) -> None:
    assert make_data(data_dir).examples().y.argmax(1).tolist() == list(range(10))


def write_npz(folder: Path, **changes: object) -> None:
    arrays = {
        "train_images": np.zeros((20, 28, 28), np.uint8),
        "train_labels": np.arange(20) % 3,
        "test_images": np.zeros((6, 28, 28), np.uint8),
        "test_labels": np.arange(6) % 3,
        **changes,
    }
    np.savez(folder / "mine.npz", **arrays)  # type: ignore[arg-type]


def load_images(folder: Path, **settings: object) -> ImagesDataModule:
    arguments = {"validation_size": 5, "num_classes": 3, **settings}
    data = ImagesDataModule(folder, "mine", **arguments)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def test_images_of_an_npz_file_are_loaded(tmp_path: Path) -> None:
    write_npz(tmp_path)
    data = load_images(tmp_path)
    assert data.test is not None
    assert len(data.test) == 6
    assert next(iter(data.train_dataloader())).y.shape == (15, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((20, 28, 28))}, "unsigned bytes.*multiply by 255"),
        ({"train_images": np.zeros((20, 28, 28, 2), np.uint8)}, "must have 1 or 3 channels"),
        ({"train_images": np.zeros((20, 28, 28, 4), np.uint8)}, "drop the alpha channel"),
        ({"train_images": np.zeros((20, 3, 28, 3), np.uint8)}, "axis 1 or axis 3 may be"),
        (
            {"train_images": np.zeros((20, 28, 28, 3), np.uint8)},
            r"set data.image_shape=\[3, 28, 28",
        ),
        ({"class_names": np.array(["a", "b"])}, "must be 3 strings, one per class"),
        ({"class_names": np.arange(3)}, "class_names int64"),
        (
            {"test_images": np.zeros((0, 28, 28), np.uint8), "test_labels": np.zeros(0, int)},
            "no test image",
        ),
        ({"test_labels": np.arange(5)}, "test_labels"),
        ({"train_labels": np.arange(20)}, "num_classes=3"),
        ({"train_labels": np.arange(20) - 1}, "num_classes=3"),
        ({"train_images": np.zeros((20, 14, 14), np.uint8)}, r"\[1, 14, 14\]"),
    ],
)
def test_unusable_images_are_rejected(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_npz(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_images(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64, np.int64, np.float16, np.float64])
def test_labels_may_have_any_numeric_type(dtype: type, tmp_path: Path) -> None:
    write_npz(tmp_path)
    expected = load_images(tmp_path)
    write_npz(tmp_path, train_labels=(np.arange(20) % 3).astype(dtype))
    found = load_images(tmp_path)
    assert found.train is not None
    assert expected.train is not None
    assert torch.equal(found.train.labels, expected.train.labels)


def test_labels_may_be_boolean(tmp_path: Path) -> None:
    write_npz(tmp_path, train_labels=np.arange(20) % 2 > 0, test_labels=np.arange(6) % 2 > 0)
    assert load_images(tmp_path, num_classes=2).classes == [0, 1]


@pytest.mark.fault(Promise.INPUT, "labels of a wrong type or range")
@pytest.mark.parametrize(
    ("train_labels", "message"),
    [
        (np.linspace(0, 0.9, 20), "train labels such as 0.0473684: must be integers from 0 to 2"),
        (np.where(np.arange(20) == 3, np.nan, 1.0), "train labels such as nan"),
        (np.where(np.arange(20) == 3, np.inf, 1.0), "range from 1.0 to inf"),
        (np.array(["cat", "dog"] * 10), "train labels of type <U3: must be integers from 0 to 2"),
        (np.arange(20) % 3 * 1j, "train labels of type complex128"),
        (np.arange(20) % 3 + 1, "range from 1 to 3, but must be .* from 0 to 2; subtract 1"),
        (np.full(20, 2**64 - 1, np.uint64), "range from 18446744073709551615 to"),
        (np.full(20, -1, np.int8), "range from -1 to -1"),
    ],
)
def test_labels_of_a_wrong_type_or_range_are_rejected(
    train_labels: np.ndarray,  # type: ignore[type-arg]
    message: str,
    tmp_path: Path,
) -> None:
    write_npz(tmp_path, train_labels=train_labels)
    with pytest.raises(DataError, match=message) as caught:
        load_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_classes_without_images_are_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_npz(tmp_path, train_labels=np.arange(20) % 2 * 2, test_labels=np.arange(6) % 2)
    data = load_images(tmp_path, num_classes=4)
    data.setup()
    assert data.classes == [0, 2]
    assert data.examples().y.argmax(1).tolist() == [0]
    (message,) = [r.getMessage() for r in caplog.records if "num_classes" in r.getMessage()]
    assert "no training images of label 1, 3 (left out of grids and evaluation)" in message
    assert "no test images of label 2 (" in message
    write_npz(tmp_path, train_labels=np.zeros(20, int), test_labels=np.ones(6, int))
    with pytest.raises(DataError, match="no label has both training and test images"):
        load_images(tmp_path)


def make_pixels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_color_images_may_have_their_channels_first_or_last(tmp_path: Path) -> None:
    train, test = make_pixels((20, 9, 14, 3)), make_pixels((6, 9, 14, 3))
    shape = {"image_shape": (3, 9, 14), "binarization": "none"}
    write_npz(tmp_path, train_images=train, test_images=np.moveaxis(test, 3, 1))
    data = load_images(tmp_path, **shape)
    assert data.test is not None
    assert torch.equal(data.test.pixels, torch.from_numpy(test).permute(0, 3, 1, 2))
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (15, 3, 9, 14)
    assert data.mean_image.shape == (3, 9, 14)
    whole = np.concatenate([data.train.pixels, data.validation.pixels])  # type: ignore[union-attr]
    assert sorted(map(bytes, whole)) == sorted(map(bytes, np.moveaxis(train, 3, 1)))
    assert data.splits()["train"].inputs.shape == (15, 3, 9, 14)
    write_npz(
        tmp_path, train_images=np.zeros((20, 1, 8, 8), np.uint8), test_images=test[:, :8, :8, :1]
    )
    assert load_images(tmp_path, image_shape=(1, 8, 8)).mean_image.shape == (1, 8, 8)


def test_color_images_are_not_binarized(tmp_path: Path) -> None:
    write_npz(tmp_path)
    with pytest.raises(DataError, match=r"are not binarized; set data\.binarization=none"):
        load_images(tmp_path, image_shape=(3, 28, 28))
    pixels, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long()
    with pytest.raises(DataError, match="are not binarized"):
        ImageSet(pixels, labels, 10, binarization_seed=1)
    with pytest.raises(DataError, match="images of 2 channels"):
        ImageSet(pixels[:, :2], labels, 10)
    with pytest.raises(
        DataError, match=r"image_shape=\[3, 28, 28\]: the images have shape \[1, 28"
    ):
        load_images(tmp_path, image_shape=(3, 28, 28), binarization="none")


def test_an_npz_file_may_hold_class_names(tmp_path: Path) -> None:
    write_npz(tmp_path)
    assert load_images(tmp_path).class_names is None
    write_npz(tmp_path, class_names=np.array(["cat", "dog", "a bird with a long name"]))
    assert load_images(tmp_path).class_names == ["cat", "dog", "a bird with a long name"]


def test_the_digest_and_the_mean_cover_all_bytes() -> None:
    """Digests and means are computed in parts, for memory maps."""
    pixels = torch.from_numpy(make_pixels((601, 3, 5, 4)))
    found = ImageSet(pixels, torch.arange(601) % 10, 10)
    content = pixels.numpy().tobytes() + found.labels.numpy().tobytes()
    assert found.digest() == hashlib.sha256(content).hexdigest()[:16]
    data = MNISTDataModule("nowhere")
    data.train = found
    exact = (pixels.double().sum(0) / 255 + 0.5) / 602
    assert torch.equal(data.mean_image, exact.float())


def test_images_of_0_and_1_are_rejected(tmp_path: Path) -> None:
    write_npz(tmp_path, train_images=np.ones((20, 28, 28), np.uint8))
    with pytest.raises(DataError, match="range from 0 to 1, but white is 255; multiply"):
        load_images(tmp_path)


def test_a_missing_or_damaged_image_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.npz"):
        load_images(tmp_path)
    (tmp_path / "mine.npz").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"mine\.npz"):
        load_images(tmp_path)
