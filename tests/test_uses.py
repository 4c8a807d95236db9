"""What people do with the script as a library: schedules, weights from elsewhere, exports, sweeps."""

import copy
import errno
import fcntl
from pathlib import Path

import pytest
import torch
from test_training import small_args

import meow_continuous_action as meow
from meow_continuous_action import Adam, CompiledStep, FlowPolicy, Transitions, dropout_masks, flatten, update

SETTINGS = 0.99, 0.005, 30.0  # gamma, tau, max_grad_norm


def batch(rows=64):
    obs, next_obs = torch.randn(2, rows, 5)
    return Transitions(obs, next_obs, torch.randn(rows, 3), torch.ones(rows, 1), torch.zeros(rows, 1))


def learners(change=lambda policy: None):
    """A flat policy, then changed, its target and optimizer."""
    torch.manual_seed(0)
    policy = flatten(FlowPolicy(5, 3, 0.25))
    target = flatten(copy.deepcopy(policy)).requires_grad_(False)
    change(policy)
    return policy, target, Adam(policy.vector, 1e-2)


@pytest.mark.parametrize("wrap", [lambda function: function, CompiledStep], ids=["eager", "compiled"])
def test_a_learning_rate_that_is_changed_takes_effect(wrap, capfd):
    policy, target, optimizer = learners()
    step, group = wrap(update), optimizer.param_groups[0]
    for rate, least, most in [(1e-2, 2e-3, 1), (1e-2, 2e-3, 1), (1e-4, 1e-9, 2e-4), (0.0, 0, 0), (1e-2, 2e-3, 1)]:
        group["lr"] = rate
        before = policy.vector.clone()
        step(policy, target, optimizer, batch(), *SETTINGS, dropout_masks(policy, 64))
        assert least <= (policy.vector - before).abs().max() <= most
    assert "running eager" not in capfd.readouterr().out
    first = group["lr"]
    group["lr"] = 0.5 * first
    assert first == pytest.approx(1e-2) and group["lr"] == pytest.approx(5e-3)
    with pytest.raises(AttributeError):  # would be ignored
        optimizer.lr = 0.1
    with pytest.raises(AttributeError):
        group["weight_decay"] = 0.1


def test_a_compiled_update_refuses_what_it_would_ignore(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # in no time
    policy, target, optimizer = learners()
    step = CompiledStep(update)
    given = [policy, target, optimizer, batch(), *SETTINGS, dropout_masks(policy, 64)]
    step(*given)
    others = [(4, 0.9), (5, 0.1), (6, 1.0), (7, None), (3, batch(32)), (7, dropout_masks(policy, 32))]
    for index, other in others:
        changed = given.copy()
        changed[index] = other
        with pytest.raises(ValueError, match="with other numbers, shapes or objects: make a new one"):
            step(*changed)
    policy.alpha = 0.3
    with pytest.raises(ValueError, match="with other numbers, shapes or objects: make a new one"):
        step(*given)
    policy.alpha = 0.25
    policy.shifts.double().float()
    with pytest.raises(ValueError, match="call flatten"):
        step(*given)


def new_data(policy):
    for param in policy.parameters():
        param.data = param.data + 0.01


WAYS = {
    "nothing": lambda policy: None,
    "load_state_dict": lambda policy: policy.load_state_dict(FlowPolicy(5, 3, 0.25).state_dict()),
    "new data": new_data,
    "copy.copy": copy.copy,
    "share_memory": FlowPolicy.share_memory,
    "a part to double and back": lambda policy: policy.shifts.double().float(),
    "a new layer": lambda policy: policy.sigma_net.__setitem__(-1, torch.nn.Linear(64, 3)),
    "one more layer": lambda policy: policy.shifts.append(meow.MLP(5, 256, 1, torch.nn.init.zeros_)),
    "one layer less": lambda policy: policy.shifts.__delitem__(-1),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_sets_the_weights_all_of_them_learn_or_the_update_is_refused(way):
    policy, target, optimizer = learners(WAYS[way])
    before = copy.deepcopy(policy)
    try:
        update(policy, target, optimizer, batch(), *SETTINGS, None)
    except ValueError as error:
        assert way not in ("nothing", "load_state_dict", "copy.copy") and "call flatten(policy)" in str(error)
        flatten(policy)  # what the sentence says is enough
        target, optimizer = flatten(copy.deepcopy(policy)).requires_grad_(False), Adam(policy.vector, 1e-2)
    for _ in range(20):
        update(policy, target, optimizer, batch(), *SETTINGS, dropout_masks(policy, 64))
    for param, old in zip(policy.parameters(), before.parameters(), strict=True):
        assert not torch.equal(param, old)
    assert torch.equal(policy.vector, torch.nn.utils.parameters_to_vector(policy.parameters()))


def test_a_target_that_is_not_flat_is_refused_and_an_update_must_say_that_it_has_no_dropout():
    policy, target, optimizer = learners()
    with pytest.raises(TypeError, match="dropout"):
        update(policy, target, optimizer, batch(), *SETTINGS)
    new_data(target)
    for not_flat in (target, FlowPolicy(5, 3, 0.25)):
        with pytest.raises(ValueError, match="flatten"):
            update(policy, not_flat, optimizer, batch(), *SETTINGS, None)


def test_a_policy_that_is_shared_and_flattened_again_learns_and_stays_shared():
    policy, *_ = learners(FlowPolicy.share_memory)
    assert all(param.is_shared() for param in policy.parameters())
    policy = flatten(FlowPolicy(5, 3, 0.25))
    policy.vector.share_memory_()
    torch.nn.utils.vector_to_parameters(policy.vector, policy.parameters())
    target, optimizer = flatten(copy.deepcopy(policy)).requires_grad_(False), Adam(policy.vector, 1e-2)
    before = policy.vector.clone()
    update(policy, target, optimizer, batch(), *SETTINGS, None)
    assert not torch.equal(policy.vector, before)
    assert all(param.is_shared() for param in policy.parameters())


class Act(torch.nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, obs):
        return self.policy.act(obs)


def by_trace(act):
    return torch.jit.trace(act, torch.randn(1, 5), check_trace=False)


def by_export(act):
    rows = torch.export.Dim("rows")
    return torch.export.export(act, (torch.randn(3, 5),), dynamic_shapes=({0: rows},)).module()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", [by_trace, by_export])
def test_an_exported_policy_takes_any_number_of_rows_and_draws_noise_for_each(way):
    policy, *_ = learners()
    exported = way(Act(policy))
    for rows in (1, 2, 7):
        torch.manual_seed(0)
        actions = exported(torch.ones(rows, 5))
        assert len(actions.unique(dim=0)) == rows
        torch.manual_seed(0)
        torch.testing.assert_close(actions, policy.act(torch.ones(rows, 5)))


def test_two_runs_of_one_process_do_not_see_each_other(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    for rate in (1e-3, 1e-4):
        args = small_args(total_timesteps=60, learning_rate=rate, track=True)
        args.torch_threads = threads + 1
        _, run = meow.train(args)
        assert run.wandb.name == run.dir.name and run.wandb.config["learning_rate"] == rate and wandb.run is None
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
    wandb.teardown()  # writes what is left
    for record in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        assert b"eval/episodic_return" in record.read_bytes()
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


def test_a_file_system_without_locks_is_told_and_trains(script, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    flags = "--total-timesteps=100 --learning-starts=50 --eval-episodes=1 --batch-size=8 --buffer-size=100".split()
    result = script("--env-id=Counting-v0", *flags, "--checkpoint-frequency=1")
    assert result.returncode == 0, result.stderr
    (run_dir,) = Path("runs").iterdir()
    assert f"{run_dir} is not guarded against a second process" in result.stdout
    assert script("--resume", run_dir).returncode == 0
