"""Registers the launcher and sweepers of harness.sweeps: Hydra looks in this namespace only."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from harness.sweeps import launcher, optuna_sweeper


class LocalLauncher(launcher.LocalLauncher):
    """Runs jobs in their own processes on this machine, a few at a time."""


class CheckedSweeper(BasicSweeper):
    """Runs every combination of the swept values; harness.command_line.hooks checks them first."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Skip Hydra's own check, which composes every job again."""


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """Searches hyperparameters with Optuna."""
