"""The CUDA path against the CPU's. What needs a CUDA device is skipped where there is none."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import meow_continuous_action as meow
import meow_isaacgym
from meow_continuous_action import Adam, Args, CudaGraph, FlowPolicy, ReplayBuffer, SoftQLoss, learn_and_act, train

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
RATES = 0.99, 0.005, 30.0


def policy_and_target():
    torch.manual_seed(0)
    policy, target = FlowPolicy(11, 3, 0.25), FlowPolicy(11, 3, 0.25)
    return policy, target.requires_grad_(False)


def learner(nets, device):
    policy, target = (copy.deepcopy(net).to(device) for net in nets)
    return SoftQLoss(policy, target), Adam(policy.vector, 1e-3)


def filled_buffer(device):
    rb = ReplayBuffer(1000, 11, 3, seed=0, device=device)
    rows = torch.rand(1000, 27, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    rows[:, -1] = (rows[:, -1] > 0.5).float()
    rb.rows.copy_(rows)
    rb.added = 500
    rb.filled.fill_(500)
    return rb


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=needs_cuda)],  # the CPU: so that this file runs, as far as it can, everywhere
)
def test_steps_on_the_gpu_equal_those_on_the_cpu(device):
    nets, rb = policy_and_target(), filled_buffer("cpu")
    cpu, gpu = learner(nets, "cpu"), learner(nets, device)
    for _ in range(5):
        data, inputs = rb.sample(256), (nets[0].dropout_masks(256), torch.randn(1, 11), torch.randn(1, 3))
        q, numbers = learn_and_act(*cpu, data, *RATES, *inputs)
        gpu_data = meow.Transitions(*(x.to(device) for x in data))
        gpu_q, gpu_numbers = learn_and_act(*gpu, gpu_data, *RATES, *(x.to(device) for x in inputs))
        torch.testing.assert_close(gpu_q.cpu(), q, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(gpu_numbers.cpu(), numbers, atol=1e-3, rtol=1e-4)


@needs_cuda
def test_a_replayed_graph_equals_the_steps_it_captured():
    """Ten steps with their own draws: three as they are, the others replayed."""
    nets, vectors = policy_and_target(), []
    for graphed in (False, True):
        torch.manual_seed(3)
        rb, (soft_q_loss, optimizer) = filled_buffer("cuda"), learner(nets, "cuda")

        def step(obs, rb=rb, soft_q_loss=soft_q_loss, optimizer=optimizer):
            data, dropout = rb.sample(256, "cuda"), soft_q_loss.policy.dropout_masks(256)
            z = torch.randn(1, 3, device="cuda")
            return learn_and_act(soft_q_loss, optimizer, data, *RATES, dropout, obs, z)[1]

        run = CudaGraph(step, [rb.generator]) if graphed else step
        numbers = []
        for i in range(10):
            numbers.append(run(torch.full((1, 11), float(i), device="cuda")).cpu())
            rb.add(np.full(11, i), np.zeros(11), np.zeros(3), i, 0)  # what is replayed must see it
            with torch.random.fork_rng():  # as an evaluation does
                torch.manual_seed(0)
                torch.randn(1, device="cuda")
        vectors.append(torch.cat([soft_q_loss.policy.vector.cpu(), *numbers]))
    torch.testing.assert_close(vectors[1], vectors[0], atol=1e-3, rtol=1e-4)


@pytest.fixture
def replayed(monkeypatch):
    """The graphs of all replays so far."""
    graphs, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: graphs.append(graph) or replay(graph))
    return graphs


@needs_cuda
def test_a_run_cut_on_the_gpu_goes_on_there_and_its_model_plays_on_the_cpu(replayed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"env_id": "Counting-v0", "total_timesteps": 200, "learning_starts": 50, "batch_size": 8}
    settings |= {"buffer_size": 1000, "eval_episodes": 2, "eval_frequency": 50, "checkpoint_frequency": 100}
    args = Args(**settings, compile_min_timesteps=0)
    whole, cut = train(args), train(replace(args, exp_name="cut"))
    assert whole.policy.vector.is_cuda and len(whole.evaluations) == 5
    assert "compil" not in capsys.readouterr().out
    assert len(replayed) == 2 * (149 - 3)
    (checkpoint,) = Path(cut.run_dir, "checkpoints").glob("step_*200_*.pt")
    checkpoint.unlink()  # as if it had been killed before step 200
    resumed = train(replace(args, exp_name="cut", resume=cut.run_dir))
    assert len(replayed) == 2 * (149 - 3) + 100 - 3
    torch.testing.assert_close(resumed.policy.vector, whole.policy.vector, atol=1e-3, rtol=1e-4)
    policy, _ = meow.load_policy(f"{resumed.run_dir}/model.pt")
    assert torch.equal(policy.vector, resumed.policy.vector.cpu())


@needs_cuda
def test_a_run_without_a_graph_learns_the_same(replayed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"env_id": "Counting-v0", "total_timesteps": 100, "learning_starts": 50, "batch_size": 8}
    vectors = [train(Args(**settings, eval_episodes=1, cuda_graph=graph)).policy.vector for graph in (True, False)]
    assert len(replayed) == 49 - 3
    torch.testing.assert_close(vectors[1], vectors[0], atol=1e-3, rtol=1e-4)


@needs_cuda
@pytest.mark.parametrize("paper", [False, True])
def test_the_parallel_script_learns_as_one_graph(paper, replayed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"num_envs": 32, "batch_size": 256, "total_vector_steps": 1_500, "random_steps": 50, "tau": 0.01}
    settings |= {"learning_starts": 60, "alpha": 0.01, "log_frequency": 50, "gamma": 0.9, "normalize_samples": paper}
    make = {"make": "test_isaacgym:make_copying", "task": "Copying"}
    args = meow_isaacgym.Args(**make, **settings, compile_min_vector_steps=0)
    result = meow_isaacgym.train(args)
    assert result.agent.policy.vector.is_cuda and len(replayed) > 1_400
    assert "compil" not in capsys.readouterr().out
    assert result.returns[0][1] < -10 and result.returns[-1][1] > -2  # random actions; sampled ones at the end
