"""The CUDA path against the CPU's. What needs a CUDA device is skipped where there is none."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import meow_continuous_action as meow
import meow_isaacgym
from meow_continuous_action import Adam, Args, CudaGraph, FlowPolicy, ReplayBuffer, learn_and_act, train

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SETTINGS = 0.99, 0.005, 30.0


def learner(device):
    """A policy, its target and its optimizer, the same at each call."""
    torch.manual_seed(0)
    policy, target = FlowPolicy(11, 3, 0.25).to(device), FlowPolicy(11, 3, 0.25).to(device)
    return policy, target.requires_grad_(False), Adam(policy.vector, 1e-3)


def filled_buffer(device):
    rb = ReplayBuffer(1000, 11, 3, device)
    rows = torch.rand(500, 27, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    rows[:, -1] = (rows[:, -1] > 0.5).float()
    rb.set_rows(rows)
    return rb


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=needs_cuda)],  # the CPU: so that this file runs, as far as it can, everywhere
)
def test_steps_on_the_gpu_equal_those_on_the_cpu(device):
    rb, cpu, gpu = filled_buffer("cpu"), learner("cpu"), learner(device)
    for _ in range(5):
        inputs = cpu[0].dropout_masks(256), torch.randn(1, 11), torch.randn(1, 3)
        data = rb.sample(256)
        outputs = learn_and_act(*cpu, data, *SETTINGS, *inputs)
        gpu_data = meow.Transitions(*(x.to(device) for x in data))
        gpu_outputs = learn_and_act(*gpu, gpu_data, *SETTINGS, *(x.to(device) for x in inputs))
        for found, expected in zip(gpu_outputs, outputs, strict=True):
            torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-4)


@needs_cuda
def test_a_replayed_graph_equals_the_steps_it_captured():
    """Ten steps with their own draws: three as they are, the others replayed."""
    vectors = []
    for graphed in (False, True):
        rb, nets = filled_buffer("cuda"), learner("cuda")
        torch.manual_seed(3)

        def step(obs, rb=rb, nets=nets):
            data, dropout, z = rb.sample(256), nets[0].dropout_masks(256), torch.randn(1, 3, device="cuda")
            u, loss, _, grad_norm = learn_and_act(*nets, data, *SETTINGS, dropout, obs, z)
            return torch.cat([u[0], torch.stack([loss, grad_norm])])

        run, numbers = CudaGraph(step) if graphed else step, []
        for i in range(10):
            numbers.append(run(torch.full((1, 11), float(i), device="cuda")).cpu())
            rb.add(np.full(11, i), np.zeros(11), np.zeros(3), i, 0)  # what is replayed must see it
            streams = meow.random_streams()  # as an evaluation does
            torch.manual_seed(0)
            torch.randn(1, device="cuda")
            meow.set_random_streams(streams)
        vectors.append(torch.cat([nets[0].vector.cpu(), *numbers]))
    torch.testing.assert_close(vectors[1], vectors[0], atol=1e-3, rtol=1e-4)


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
    args = Args(**settings, buffer_size=1000, eval_episodes=2, eval_frequency=50, checkpoint_frequency=100)
    whole, _ = train(args)
    assert whole.vector.is_cuda and len(replayed) == 150 - 3
    plain, _ = train(replace(args, exp_name="plain", cuda_graph=False))
    _, cut = train(replace(args, exp_name="cut", total_timesteps=100))
    assert len(replayed) == 150 - 3 + 50 - 3
    resumed, run = train(replace(args, exp_name="cut", resume=str(cut.dir)))
    assert len(replayed) == 150 - 3 + 50 - 3 + 100 - 3
    assert "compiling" not in capsys.readouterr().out
    for policy in (plain, resumed):
        torch.testing.assert_close(policy.vector, whole.vector, atol=1e-3, rtol=1e-4)
    assert torch.equal(meow.load_policy(run.dir)[0].vector, copy.deepcopy(resumed).cpu().vector)


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
    means = [mean for _, _, mean, _, _ in run.state["rows"]]
    assert means[0] < -10 and means[-1] > -2  # random actions; sampled ones at the end
