"""MEow learns: it swings up a pendulum, from the defaults, in a few minutes of one core."""

import csv

import numpy as np

from meow_continuous_action import Args, train


def test_pendulum_is_swung_up(tmp_path, monkeypatch):
    """Measured: for seeds 1 to 4 two evaluations first average above -200 at 5,000, 5,000, 6,000 and 6,000 steps.

    What follows is not tested: seeds 1 and 2 fell to -660 and -762 for some evaluations before 10,000 steps.
    """
    monkeypatch.chdir(tmp_path)
    args = Args(env_id="Pendulum-v1", seed=1, total_timesteps=7_000, learning_starts=1_000, eval_frequency=1_000)
    _, run = train(args)
    with open(run.dir / "evaluations.csv") as file:
        means = [float(row["mean"]) for row in csv.DictReader(file)]
    assert means[0] < -900  # the task is not solved by an untrained policy
    assert max(np.add(means[1:], means[:-1])) / 2 > -200
