"""Tests of the oracle: its training and its cache."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cvae.evaluation import oracle
from cvae.evaluation.claim import NotApplicable
from cvae.evaluation.oracle import Classifier, Oracle, train_classifier
from cvae.evaluation.style import style
from cvae.models import VAE
from cvae.types import Split
from tests.science.evaluation.sampled.subjects import make_subject
from tests.science.evaluation.synthetic import TEST, TRAIN, VALIDATION


def test_the_oracle_learns_grey_and_binarized_images(trained_oracle: Oracle) -> None:
    assert trained_oracle.accuracy(TEST.grey.float() / 255, TEST.labels) > 0.95
    assert trained_oracle.accuracy(TEST.inputs.float() / 255, TEST.labels) > 0.95


def test_the_oracle_is_cached_and_trained_again_if_damaged(
    trained_oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained_oracle.folder is not None
    before = trained_oracle.classifier.state_dict()
    (file,) = trained_oracle.folder.glob("oracle-*.pt")
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "train_classifier", lambda *a: pytest.fail("trained again"))
        again = Oracle(TRAIN, VALIDATION, 3, trained_oracle.folder).classifier
    torch.testing.assert_close(again.state_dict(), before)
    content = file.read_bytes()
    trained: list[Classifier] = []
    calls: list[bytes] = []

    def train_once(*arguments: Any) -> Classifier:
        if not trained:
            trained.append(train_classifier(*arguments))
        calls.append(file.read_bytes())
        return trained[0]

    damages = [b"", b"<html>", content[: len(content) // 2]]
    monkeypatch.setattr(oracle, "train_classifier", train_once)
    for damage in damages:
        file.write_bytes(damage)
        rebuilt = Oracle(TRAIN, VALIDATION, 3, trained_oracle.folder).classifier
        torch.testing.assert_close(rebuilt.state_dict(), before)
    assert calls == damages
    assert file.stat().st_size > len(content) // 2
    assert not list(trained_oracle.folder.glob(".*.tmp"))


def test_the_oracle_of_color_images_learns_and_is_cached(tmp_path: Path) -> None:
    def convert_to_color(split: Split) -> Split:
        grey = split.grey.repeat(1, 3, 1, 1) // torch.tensor([1, 2, 3])[:, None, None]
        return Split(grey.to(torch.uint8), grey.to(torch.uint8), split.labels)

    train, test = convert_to_color(TRAIN), convert_to_color(TEST)
    found = Oracle(train, convert_to_color(VALIDATION), 3, tmp_path)
    assert found.accuracy(test.grey.float() / 255, test.labels) > 0.95
    again = Oracle(train, convert_to_color(VALIDATION), 3, tmp_path).classifier
    torch.testing.assert_close(again.state_dict(), found.classifier.state_dict())


def test_thickness_and_slant_are_not_measured_in_color(trained_oracle: Oracle) -> None:
    subject = make_subject(VAE, trained_oracle)
    subject.test = subject.test._replace(grey=subject.test.grey.expand(-1, 3, -1, -1))
    with pytest.raises(NotApplicable, match="thickness and slant need grey images"):
        style(subject)


def test_the_cache_key_depends_on_the_training_labels(trained_oracle: Oracle) -> None:
    other = TRAIN._replace(labels=TRAIN.labels.roll(1))
    assert Oracle(other, VALIDATION, 3)._cache_key() != trained_oracle._cache_key()


def test_training_with_validation_images_returns_a_classifier_in_evaluation_mode() -> None:
    model = train_classifier((TRAIN.grey, TRAIN.labels), (TEST.grey, TEST.labels), 3, 2, 0.5)
    assert isinstance(model, Classifier)
    assert not model.training
