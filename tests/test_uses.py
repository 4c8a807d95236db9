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
    return Transitions(*torch.randn(3, rows, 5)[:2], torch.randn(rows, 3), torch.ones(rows, 1), torch.zeros(rows, 1))


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
    step, largest = wrap(update), []
    for rate in (1e-2, 1e-2, 1e-4, 0.0, 1e-2):
        optimizer.param_groups[0]["lr"] = rate
        before = policy.vector.clone()
        step(policy, target, optimizer, batch(), *SETTINGS, dropout_masks(policy, 64))
        largest.append(float((policy.vector - before).abs().max()))
    assert largest[3] == 0 and 0 < largest[2] < 2e-4 and min(largest[0], largest[1], largest[4]) > 2e-3
    assert "running eager" not in capfd.readouterr().out
    with pytest.raises(AttributeError):  # would be ignored
        optimizer.lr = 0.1
    with pytest.raises(AttributeError):
        optimizer.param_groups[0]["weight_decay"] = 0.1
    first = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.5 * first
    assert first == pytest.approx(1e-2) and optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


def test_a_compiled_update_refuses_what_it_would_ignore(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # in no time
    policy, target, optimizer = learners()
    step = CompiledStep(update)
    given = policy, target, optimizer, batch(), *SETTINGS, dropout_masks(policy, 64)
    step(*given)
    others = [(4, 0.9), (5, 0.1), (6, 1.0), (7, None), (3, batch(32)), (7, dropout_masks(policy, 32))]
    for index, other in others:
        with pytest.raises(ValueError, match="with other numbers, shapes or objects: make a new one"):
            step(*given[:index], other, *given[index + 1 :])
    policy.alpha = 0.3
    with pytest.raises(ValueError, match="with other numbers, shapes or objects: make a new one"):
        step(*given)
    policy.alpha = 0.25
    flatten(policy)
    policy.shifts.double().float()
    with pytest.raises(ValueError, match="call flatten"):
        step(*given)


def test_an_update_without_dropout_is_another_algorithm_and_has_to_be_asked_for():
    policy, target, optimizer = learners()
    with pytest.raises(TypeError, match="dropout"):
        update(policy, target, optimizer, batch(), *SETTINGS)


def vector_to_parameters(policy):
    vector = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
    torch.nn.utils.vector_to_parameters(vector, policy.parameters())


def new_data(policy):
    for param in policy.parameters():
        param.data = param.data + 0.01


def assign(policy):
    policy.load_state_dict({name: tensor.clone() for name, tensor in policy.state_dict().items()}, assign=True)


WAYS = {
    "nothing": lambda policy: None,
    "load_state_dict": lambda policy: policy.load_state_dict(FlowPolicy(5, 3, 0.25).state_dict()),
    "new data": new_data,
    "vector_to_parameters": vector_to_parameters,
    "load_state_dict(assign=True)": assign,
    "copy.copy": copy.copy,
    "share_memory": FlowPolicy.share_memory,
    "to double": FlowPolicy.double,
    "a part to double and back": lambda policy: policy.shifts.double().float(),
    "a new layer": lambda policy: policy.sigma_net.__setitem__(-1, torch.nn.Linear(64, 3)),
    "one more layer": lambda policy: policy.shifts.append(meow.MLP(5, 256, 1, torch.nn.init.zeros_)),
    "one layer less": lambda policy: policy.shifts.__delitem__(-1),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_sets_the_weights_all_of_them_learn_or_the_update_is_refused(way):
    policy, target, optimizer = learners(WAYS[way])
    before = {name: param.detach().clone() for name, param in policy.named_parameters()}
    try:
        for _ in range(20):
            update(policy, target, optimizer, batch(), *SETTINGS, dropout_masks(policy, 64))
    except ValueError as error:
        assert way not in ("nothing", "load_state_dict", "copy.copy") and "call flatten(policy)" in str(error)
        flatten(policy)  # what the sentence says is enough
        target, optimizer = flatten(copy.deepcopy(policy)).requires_grad_(False), Adam(policy.vector, 1e-2)
        data = [tensor.to(policy.vector.dtype) for tensor in batch()]
        for _ in range(20):
            update(policy, target, optimizer, Transitions(*data), *SETTINGS, None)
    moved = {name for name, param in policy.named_parameters() if not torch.equal(param, before[name])}
    assert moved == set(before)
    assert torch.equal(policy.vector, torch.nn.utils.parameters_to_vector(policy.parameters()))


def test_a_target_that_is_not_flat_is_refused():
    policy, target, optimizer = learners()
    with pytest.raises(ValueError, match="flatten"):
        update(policy, copy.deepcopy(FlowPolicy(5, 3, 0.25)), optimizer, batch(), *SETTINGS, None)
    new_data(target)
    with pytest.raises(ValueError, match="flatten"):
        update(policy, target, optimizer, batch(), *SETTINGS, None)


def test_a_policy_that_is_shared_and_flattened_again_learns_and_stays_shared():
    policy, *_ = learners(FlowPolicy.share_memory)
    assert all(param.is_shared() for param in policy.parameters())
    policy = flatten(FlowPolicy(5, 3, 0.25))
    policy.vector.share_memory_()
    torch.nn.utils.vector_to_parameters(policy.vector, policy.parameters())
    assert all(param.is_shared() for param in policy.parameters())
    target, optimizer = flatten(copy.deepcopy(policy)).requires_grad_(False), Adam(policy.vector, 1e-2)
    before = policy.vector.clone()
    update(policy, target, optimizer, batch(), *SETTINGS, None)
    assert not torch.equal(policy.vector, before) and all(param.is_shared() for param in policy.parameters())


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
        assert actions.shape == (rows, 3) and len(actions.unique(dim=0)) == rows
        torch.manual_seed(0)
        torch.testing.assert_close(actions, policy.act(torch.ones(rows, 5)))


def test_two_runs_of_one_process_do_not_see_each_other(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    torch.set_float32_matmul_precision("high")
    threads, ids = torch.get_num_threads(), set()
    try:
        for i, rate in enumerate((1e-3, 1e-4)):
            args = small_args(env_id="Pendulum-v1", exp_name=f"rate{rate}", learning_rate=rate, track=True)
            args.torch_threads, args.total_timesteps = threads + 1, 100
            _, run = meow.train(args)
            ids.add(run.state["wandb_id"])
            assert run.wandb.name == run.dir.name and run.wandb.config["learning_rate"] == rate
            assert len(ids) == len(list(tmp_path.glob("wandb/offline-run-*"))) == i + 1 and wandb.run is None
            assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, "high")
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_trains(code, script, monkeypatch):
    def flock(file, operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    flags = "--total-timesteps=100 --learning-starts=50 --eval-episodes=1 --batch-size=8 --buffer-size=100".split()
    result = script("--env-id=Counting-v0", *flags, "--checkpoint-frequency=1")
    assert result.returncode == 0, result.stderr
    (run_dir,) = Path("runs").iterdir()
    assert f"{run_dir} is not guarded against a second process" in result.stdout
    assert script("--resume", run_dir).returncode == 0
