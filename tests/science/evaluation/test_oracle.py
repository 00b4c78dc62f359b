"""The oracle: what it learns, and where it is kept."""

import pytest
import torch

from cvae.evaluation import oracle
from cvae.evaluation.oracle import Classifier, Oracle, train_classifier
from tests.science.evaluation.known import TEST, TRAIN, VALIDATION


def test_the_oracle_learns_grey_and_binarized_images(known: Oracle) -> None:
    assert known.accuracy(TEST.grey.float() / 255, TEST.labels) > 0.95
    assert known.accuracy(TEST.inputs.float() / 255, TEST.labels) > 0.95


def test_the_oracle_is_kept_and_rebuilt_when_damaged(
    known: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known.folder is not None
    before = known.classifier.state_dict()
    (file,) = known.folder.glob("oracle-*.pt")
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "train_classifier", lambda *a: pytest.fail("trained again"))
        again = Oracle(TRAIN, VALIDATION, 3, known.folder).classifier
    torch.testing.assert_close(again.state_dict(), before)
    content = file.read_bytes()
    for damage in (b"", b"<html>", content[: len(content) // 2]):
        file.write_bytes(damage)
        rebuilt = Oracle(TRAIN, VALIDATION, 3, known.folder).classifier
        torch.testing.assert_close(rebuilt.state_dict(), before)
    assert file.stat().st_size > len(content) // 2
    assert not list(known.folder.glob(".*.tmp"))


def test_other_digits_have_another_oracle(known: Oracle) -> None:
    other = TRAIN._replace(labels=TRAIN.labels.roll(1))
    assert Oracle(other, VALIDATION, 3)._key() != known._key()


def test_validation_selects_and_the_test_images_are_not_asked() -> None:
    """Whatever the validation labels are, the epoch kept is one that was best on them."""
    model = train_classifier((TRAIN.grey, TRAIN.labels), (TEST.grey, TEST.labels), 3, 2, 0.5)
    assert isinstance(model, Classifier)
    assert not model.training
