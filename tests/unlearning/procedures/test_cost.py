import copy

import pytest
import torch

from unlearning.procedures.cost import metered, report


@pytest.fixture
def net():
    return torch.nn.Linear(3, 2)


def test_counts_examples_forward_and_backward(net):
    with metered(net) as meter:
        net(torch.zeros(5, 3)).sum().backward()
        net(torch.zeros(4, 3))
    assert (meter.n_forward, meter.n_backward) == (9, 5)


def test_a_second_backward_counts_again(net):
    with metered(net) as meter:
        loss = net(torch.zeros(5, 3)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert (meter.n_forward, meter.n_backward) == (5, 10)


def test_no_gradient_no_backward(net):
    with metered(net) as meter, torch.no_grad():
        net(torch.zeros(5, 3))
    assert (meter.n_forward, meter.n_backward) == (5, 0)


def test_copies_count_for_the_same_run(net):
    with metered(net) as meter:
        copy.deepcopy(net)(torch.zeros(2, 3))
        copy.deepcopy(copy.deepcopy(net))(torch.zeros(1, 3))
    assert meter.n_forward == 3


def test_nothing_is_left_behind(net):
    mine = []
    net.register_forward_hook(lambda *_: mine.append(1))
    with metered(net) as meter:
        twin = copy.deepcopy(net)
        meter.detach(twin)
        twin(torch.zeros(1, 3))
    net(torch.zeros(1, 3))
    assert meter.n_forward == 0
    assert len(net._forward_hooks) == 1
    assert len(mine) == 2  # the hooks of others stay


def test_runs_are_counted_apart(net):
    other = torch.nn.Linear(3, 2)
    with metered(net) as outer:
        with metered(other) as inner:
            other(torch.zeros(2, 3))
            report(n_forward=100, n_backward=10)
        net(torch.zeros(1, 3))
        report(n_forward=1000, n_backward=0)
    assert (inner.n_forward, inner.n_backward) == (102, 10)
    assert (outer.n_forward, outer.n_backward) == (1001, 0)


def test_report_outside_a_run_is_ignored():
    report(n_forward=1, n_backward=1)
