"""benchmark/baselines/sac_isaacgym.py, the baseline of Fig. 4: its update, that it learns and resumes, its settings."""

import csv
from pathlib import Path

import pytest
import sac_isaacgym
import torch
from sac_isaacgym import SAC, Args, train
from test_cli import run

import meow_isaacgym

SCRIPT = Path(__file__).parent.parent / "benchmark" / "baselines" / "sac_isaacgym.py"
MUJOCO = ["--make", "benchmark.simulators.mujoco:make", "--task", "AntMujoco", "--num-envs", "8", "--batch-size", "32"]
MUJOCO += ["--random-steps", "5", "--learning-starts", "10", "--log-frequency", "55", "--checkpoint-frequency", "30"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(*flags) is `python sac_isaacgym.py ...` in an empty folder, but, for speed, in this process."""
    monkeypatch.chdir(tmp_path)
    for name in ("Args", "train"):  # as the last lines of the script do
        monkeypatch.setattr(meow_isaacgym, name, getattr(sac_isaacgym, name))

    def call(*flags):
        monkeypatch.setattr("sys.argv", [str(SCRIPT), *map(str, flags)])
        return meow_isaacgym.main()

    return call


def rows(run_dir):
    return [{**row, "seconds": 0} for row in csv.DictReader((run_dir / "returns.csv").open())]


def transitions(reward, terminated, batch=64):
    obs, ones = torch.zeros(batch, 3), torch.ones(batch, 1)
    return meow_isaacgym.Transitions(obs, obs, torch.zeros(batch, 2), reward * ones, terminated * ones)


def test_actions_are_clipped_and_the_log_density_is_that_before():
    torch.manual_seed(0)
    actor, obs = sac_isaacgym.Actor(3, 2).double(), torch.randn(500, 3, dtype=torch.float64)
    actor.log_std.data = torch.tensor([-1.0, -0.5], dtype=torch.float64)
    act, log_prob = actor(obs)
    inside = (act.abs() < 1).all(dim=1)
    assert 100 < inside.sum() < 500 and act.abs().max() == 1
    density = torch.distributions.Normal(torch.tanh(actor.mean(obs)), actor.log_std.exp()).log_prob(act).sum(dim=1)
    assert torch.allclose(density[inside], log_prob[inside, 0])


def test_an_update_moves_what_it_should_and_only_termination_cuts():
    torch.manual_seed(0)
    args = Args(task="AntMujoco", gamma=1.0, learning_rate=1e-3)
    agent = SAC(args, 3, 2, "cpu")
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    losses = agent.update(transitions(7.0, terminated=1.0))
    assert losses["qf_values"].item() == 7.0  # nothing but the reward
    moved = {name.split(".")[0] for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"actor", "critics", "targets", "log_alpha"}
    for name, target in agent.targets.state_dict().items():
        expected = (1 - args.tau) * before[f"targets.{name}"] + args.tau * agent.critics.state_dict()[name]
        assert torch.allclose(target, expected, atol=1e-7)
    alpha, log_prob = agent.log_alpha.exp().item(), agent.actor(torch.zeros(9_999, 3))[1].mean().item()
    losses = agent.update(transitions(0.0, terminated=0.0))
    next_q = torch.min(*(target(torch.zeros(1, 5)) for target in agent.targets)).item()
    assert losses["qf_values"].item() == pytest.approx(next_q - alpha * log_prob, abs=0.2)  # V of one sample each


def test_the_entropy_weight_falls_where_there_is_too_much_entropy():
    agent = SAC(Args(task="AntMujoco"), 3, 2, "cpu")
    for log_std, direction in ((-1.0, -1), (-5.0, 1)):  # entropies 0.8 and -7.2, above and below -2
        agent.actor.log_std.data.fill_(log_std)
        before = agent.log_alpha.item()
        agent.update(transitions(0.0, terminated=0.0, batch=256))
        assert (agent.log_alpha.item() - before) * direction > 0


def test_it_learns_a_task_with_a_known_optimum(tmp_path, monkeypatch):
    """At best 0, at random -13.3 an episode; measured at the end: -4.8."""
    monkeypatch.chdir(tmp_path)
    settings = {"num_envs": 16, "batch_size": 128, "total_vector_steps": 450, "random_steps": 50, "tau": 0.02}
    settings |= {"learning_starts": 60, "log_frequency": 50, "gamma": 0.9, "learning_rate": 1e-3}
    _, result = train(Args(make="test_isaacgym:make_copying", task="Copying", **settings))
    means = [float(row["mean"]) for row in rows(result.dir)]
    assert means[0] < -10 and means[-1] > -6
    # 10 steps of an episode, which a time limit ends, are stored, and the eleventh, which resets, is not
    assert result.rb.added == pytest.approx(450 * 16 * 10 / 11, rel=0.01)
    assert not result.rb.rows[: result.rb.added, -1].any()


def test_a_run_on_mujoco_resumes_bit_for_bit(tmp_path, command, capsys):
    assert run(*MUJOCO, "--total-vector-steps", "70", cwd=tmp_path, script=SCRIPT).returncode == 0
    (run_dir,) = tmp_path.glob("runs/*")
    assert command("--resume", run_dir, "--seed", "2") == 2
    assert "--seed must stay 1 with --resume" in capsys.readouterr().err
    assert command("--resume", run_dir, "--total-vector-steps", "110") == 0
    assert command(*MUJOCO, "--total-vector-steps", "110", "--exp-name", "whole") == 0
    (reference,) = tmp_path.glob("runs/*whole*")
    assert rows(run_dir) == rows(reference) != []
    ours, expected = (torch.load(folder / "checkpoint.pt") for folder in (run_dir, reference))
    assert ours["step"] == expected["step"] == 91
    assert all(map(torch.equal, ours["learned"][:-2], expected["learned"][:-2]))  # the last: statistics


def test_the_papers_settings_are_taken():
    humanoid, franka = Args(task="HumanoidMujoco"), Args(task="FrankaCabinet", alpha=0.5)
    assert (humanoid.alpha, humanoid.tau, humanoid.num_envs, humanoid.batch_size) == (0.025, 0.0025, 128, 1024)
    assert (franka.alpha, franka.tau, franka.num_envs, franka.batch_size) == (0.5, 0.025, 512, 256)
    assert [Args(task=task).alpha for task in ("Ant", "Anymal", "AllegroHand")] == [0.4, 0.01, 0.1]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--tau", "0"], "0 < tau <= 1 must hold, not --tau 0.0"),
        (["--learning-starts", "2"], "0 <= random_steps <= learning_starts must hold"),
        (["--task", "Nothing"], "--task Nothing"),
        (["--track=True"], "--track=True must be written without a value"),
        (["--resume", "nothing"], "--resume must name"),
    ],
)
def test_bad_input_is_refused_before_any_work(flags, words, tmp_path, command, capsys):
    assert command(*MUJOCO, *flags) == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
