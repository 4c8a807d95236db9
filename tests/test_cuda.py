"""The CUDA path against the CPU's. What needs a CUDA device is skipped where there is none."""

import copy
import csv
from dataclasses import replace

import pytest
import torch

import meow_continuous_action as meow
import meow_isaacgym
from meow_continuous_action import Adam, Args, CapturedStep, FlowPolicy, ReplayBuffer, dropout_masks, flatten, train

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SETTINGS = 0.99, 0.005, 30.0


def learner(device):
    """A policy, its target and its optimizer, the same at each call."""
    torch.manual_seed(0)
    policy = flatten(FlowPolicy(11, 3, 0.25).to(device))
    return policy, flatten(copy.deepcopy(policy)).requires_grad_(False), Adam(policy.vector, 1e-3)


def filled_buffer(device):
    rb = ReplayBuffer(1000, 11, 3, device)
    rows = torch.rand(500, 27, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    rows[:, -1] = (rows[:, -1] > 0.5).float()
    rb.set_rows(0, rows)
    return rb


def act(policy, obs, z):
    with torch.no_grad():
        return policy(obs, z)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=needs_cuda)],  # the CPU: so that this file runs, as far as it can, everywhere
)
def test_steps_on_the_gpu_equal_those_on_the_cpu(device):
    rb, cpu, gpu = filled_buffer("cpu"), learner("cpu"), learner(device)
    for _ in range(5):
        data, dropout, obs, z = rb.sample(256), dropout_masks(cpu[0], 256), torch.randn(1, 11), torch.randn(1, 3)
        outputs = *meow.update(*cpu, data, *SETTINGS, dropout), act(cpu[0], obs, z)
        gpu_data = meow.Transitions(*(x.to(device) for x in data))
        gpu_outputs = meow.update(*gpu, gpu_data, *SETTINGS, dropout.to(device))
        gpu_outputs = *gpu_outputs, act(gpu[0], obs.to(device), z.to(device))
        for found, expected in zip(gpu_outputs, outputs, strict=True):
            torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-4)


@needs_cuda
def test_captured_functions_equal_the_functions_and_take_a_schedule():
    """Ten steps with their own draws: three as they are, the others replayed, the last three at rate 0."""
    vectors = []
    for captured in (False, True):
        rb, nets = filled_buffer("cuda"), learner("cuda")
        update, forward, numbers = meow.update, act, []
        if captured:
            update, forward = CapturedStep(meow.update), CapturedStep(act)
        torch.manual_seed(3)
        for i in range(10):
            nets[2].param_groups[0]["lr"] = 1e-3 if i < 7 else 0.0
            before, dropout = nets[0].vector.clone(), dropout_masks(nets[0], 256)
            loss, _, norm = update(*nets, rb.sample(256), *SETTINGS, dropout)
            assert torch.equal(before, nets[0].vector) == (i >= 7)
            u = forward(nets[0], torch.full((1, 11), float(i), device="cuda"), torch.randn(1, 3, device="cuda"))
            numbers += [loss.cpu()[None], norm.cpu()[None], u[0].cpu()]
            streams = meow.random_streams()  # as an evaluation does
            torch.manual_seed(0)
            torch.randn(1, device="cuda")
            meow.set_random_streams(streams)
        vectors.append(torch.cat([nets[0].vector.cpu(), *numbers]))
    torch.testing.assert_close(vectors[1], vectors[0], atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="with other numbers, shapes or objects"):
        update(*nets, rb.sample(128), *SETTINGS, dropout_masks(nets[0], 128))


@pytest.fixture
def replayed(monkeypatch):
    """The graphs of all replays so far."""
    graphs, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: graphs.append(graph) or replay(graph))
    return graphs


@needs_cuda
def test_a_run_cut_on_the_gpu_resumes_there_learns_as_without_a_graph_and_its_model_plays_on_the_cpu(
    replayed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = {"env_id": "Hopper-v4", "total_timesteps": 200, "learning_starts": 50, "batch_size": 8}
    args = Args(**settings, buffer_size=1000, eval_episodes=2, eval_frequency=50, checkpoint_frequency=10)
    whole, _ = train(args)
    assert whole.vector.is_cuda and len(replayed) == 2 * (150 - 3)  # updates and actions
    plain, _ = train(replace(args, exp_name="plain", cuda_graph=False))
    _, cut = train(replace(args, exp_name="cut", total_timesteps=100))
    assert len(replayed) == 2 * (150 - 3 + 50 - 3)
    resumed, run = train(replace(args, exp_name="cut", resume=str(cut.dir)))
    assert "compiling" not in capsys.readouterr().out
    for policy in (plain, resumed):
        torch.testing.assert_close(policy.vector, whole.vector, atol=1e-3, rtol=1e-4)
    played = torch.nn.utils.parameters_to_vector(meow.load_policy(run.dir)[0].parameters())
    assert torch.equal(played, resumed.vector.cpu())


@needs_cuda
@pytest.mark.parametrize("paper", [False, True])
def test_the_parallel_script_learns_as_one_graph(paper, replayed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"num_envs": 32, "batch_size": 256, "total_vector_steps": 1_500, "random_steps": 50, "tau": 0.01}
    settings |= {"learning_starts": 60, "alpha": 0.01, "log_frequency": 50, "gamma": 0.9, "normalize_samples": paper}
    make = {"make": "test_isaacgym:make_copying", "task": "Copying"}
    agent, run = meow_isaacgym.train(meow_isaacgym.Args(**make, **settings))
    assert agent.policy.vector.is_cuda and len(replayed) > 1_400
    assert "compil" not in capsys.readouterr().out
    means = [float(row["mean"]) for row in csv.DictReader(run.state["table"].splitlines())]
    assert means[0] < -10 and means[-1] > -2  # random actions; sampled ones at the end
