"""BatchNorms with sets of their own for some rows equal BatchNorms of these rows alone."""

import copy

import pytest
import torch
from torch import nn

from fastreid_star.errors import UserError
from fastreid_star.modeling.average import averaged, follow
from fastreid_star.modeling.layers.split_norm import rows_of, split_norms

CPU = torch.device("cpu")


def network(number=3):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    split_norms(net, number)
    for place, norms in enumerate((net[1].sets, net[3].sets)):
        for number, norm in enumerate(norms):
            nn.init.constant_(norm.weight, 1 + number + place)
            nn.init.uniform_(norm.running_mean)
    return net.double()


def plain(net, number):
    """The same network with one set, as an ordinary network."""
    parts = [part.sets[number] if hasattr(part, "sets") else part for part in net]
    return copy.deepcopy(nn.Sequential(*parts))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sets", [[0, 0, 1, 1, 2], [2, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
def test_each_set_sees_its_own_rows(sets, training):
    net, sets = network().train(training), torch.tensor(sets)
    x = torch.randn(5, 2, 3, 2, dtype=torch.float64)
    rows_of(net).take(sets, CPU)
    expected = torch.empty(5, 4, 3, 2, dtype=torch.float64)
    for number in sets.unique().tolist():
        alone = plain(net, number).train(training)
        expected[sets == number] = alone(x[sets == number])
    assert torch.equal(net(x), expected)
    unused = sorted({0, 1, 2} - {*sets.tolist()})
    assert not any(net[1].sets[number].num_batches_tracked for number in unused)


def test_all_rows_of_one_set_and_rows_chosen_by_flags():
    net = network().eval()
    x = torch.randn(4, 2, 3, 2, dtype=torch.float64)
    rows_of(net).all_take(2)
    assert torch.equal(net(x), plain(net, 2)(x))
    rows_of(net).choose(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    chosen = net(x)
    rows_of(net).take(torch.tensor([0, 1, 1, 0]), CPU)
    torch.testing.assert_close(chosen, net(x))


def test_a_copy_has_rows_of_its_own_and_weights_of_one_norm_fill_all_sets():
    net = network()
    twin = copy.deepcopy(net)
    assert rows_of(twin) is twin[3].rows is not rows_of(net)
    split = nn.Sequential(nn.BatchNorm1d(3))
    single = {name: value + 2 for name, value in split.state_dict().items()}
    split_norms(split, 2)
    split.load_state_dict(single)
    assert all(torch.equal(norm.weight, single["0.weight"]) for norm in split[0].sets)
    split.load_state_dict(split.state_dict())  # its own names are not taken for another network's
    with pytest.raises(UserError, match="no BatchNorm"):
        split_norms(nn.Sequential(nn.Linear(2, 2)), 2)


def test_an_average_follows_by_name_and_does_not_learn():
    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    average = averaged(source)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    before = [parameter.clone() for parameter in average.parameters()]
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    follow(average, source, lambda name: 0.5 if name.startswith("1.") else 0.25)
    moved = [new - old for new, old in zip(average.parameters(), before, strict=True)]
    expected = [0.25, 0.25, 0.5, 0.5]
    assert [part.mean().item() for part in moved] == pytest.approx(expected, abs=1e-6)
