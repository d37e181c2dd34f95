import pytest
import torch

from unlearning.methods.remix import RemixSettings, mix_filters, remix
from unlearning.procedures.modules import layer_weights


@pytest.fixture
def network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5), torch.nn.BatchNorm2d(8), torch.nn.Linear(300, 20))


def rows(weight):
    return weight.detach().flatten(1)


def test_a_layer_looks_at_what_it_looked_at_before_and_keeps_its_size(feed, network):
    before = {name: rows(weight).clone() for name, weight in layer_weights(network).items()}
    others = {name: p.detach().clone() for name, p in network.named_parameters() if name not in before}
    mix_filters(network, 0.8, feed)
    for name, weight in layer_weights(network).items():
        was, now = before[name], rows(weight)
        assert not torch.allclose(now, was, atol=1e-2)
        mixture = torch.linalg.lstsq(was.T, now.T).solution  # every row is a mixture of the rows there were
        torch.testing.assert_close(was.T @ mixture, now.T, atol=1e-4, rtol=1e-3)
        # the two parts are independent: sizes add up but for 2·.6·.8·cos, and cos is within three times 1 / √n_out²
        assert abs(float(now.norm() / was.norm()) ** 2 - 1.0) < 0.96 * 3 / len(was)
    assert all(torch.equal(network.get_parameter(name), p) for name, p in others.items())


def test_how_much_stays_of_every_unit(feed):
    network = torch.nn.Sequential(torch.nn.Linear(400, 300))
    was = rows(network[0].weight).clone()
    mix_filters(network, 0.6, feed)
    kept = torch.nn.functional.cosine_similarity(was, rows(network[0].weight), dim=1)
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.02)


def test_a_layer_of_zeros_stays_finite(feed):
    network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    torch.nn.init.zeros_(network[0].weight)
    mix_filters(network, 0.5, feed)
    assert torch.equal(network[0].weight, torch.zeros(3, 4))


def test_no_mixing_no_repair_is_the_original(model, retain, as_bound, same):
    settings = as_bound(RemixSettings, mixed_share=0.0, epochs=0.0)
    assert same(remix(model, None, retain, settings=settings, seed=1, device="cpu"), model)


def test_all_mixed_no_unit_is_what_it_was(model, retain, as_bound):
    result = remix(
        model, None, retain, settings=as_bound(RemixSettings, mixed_share=1.0, epochs=0.0), seed=1, device="cpu"
    )
    for name, weight in layer_weights(model).items():
        if len(weight) >= 16:
            alike = torch.nn.functional.cosine_similarity(rows(weight), rows(result.get_parameter(name)), dim=1)
            assert abs(float(alike.mean())) < 0.5
