import pytest
import torch
import torch.nn.functional as F

from fg_ssl_zoo.layers.queue import Queue


def vectors(count, seed):
    return 3 * torch.randn(count, 4, generator=torch.manual_seed(seed))


def test_it_starts_as_random_directions_of_unit_length():
    torch.manual_seed(0)
    items = Queue(500, 4).items
    torch.testing.assert_close(items.norm(dim=1), torch.ones(500))
    assert items.mean(dim=0).abs().max() < 0.1


@pytest.mark.parametrize("sizes", [[3, 3, 3], [5, 2, 4, 1], [7, 7], [6, 6, 6, 6]])
def test_after_every_push_it_holds_the_newest_and_the_ring_goes_on_at_the_beginning(sizes):
    torch.manual_seed(0)
    queue = Queue(7, 4)
    ring, place = list(queue.items.clone()), 0
    for step, size in enumerate(sizes):
        new = vectors(size, seed=step)
        queue.push(new)
        for row in new:  # the same with a loop
            ring[place] = row / row.norm()
            place = (place + 1) % 7
        torch.testing.assert_close(queue.items, torch.stack(ring))
        assert queue.place == place
    torch.testing.assert_close(queue.items.norm(dim=1), torch.ones(7))


def test_half_precision_vectors_are_kept_at_unit_length_in_float32():
    queue = Queue(3, 4)
    queue.push(vectors(3, seed=0).bfloat16())
    assert queue.items.dtype == torch.float32
    torch.testing.assert_close(queue.items.norm(dim=1), torch.ones(3))


def test_contents_and_place_are_its_state_and_nothing_of_it_is_trained():
    queue, other = Queue(5, 4), Queue(5, 4)
    queue.push(vectors(3, seed=0))
    other.load_state_dict(queue.state_dict())
    for one in (queue, other):
        one.push(vectors(4, seed=1))
    assert torch.equal(queue.items, other.items)
    assert queue.place == other.place == 2
    assert list(queue.parameters()) == []


def test_what_a_loss_has_seen_may_be_written_over_before_its_gradient():
    queue, x = Queue(5, 4), vectors(3, seed=0).requires_grad_()
    seen = queue.items.clone()
    loss = (x @ seen.T).square().sum()
    queue.push(x)
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * x.detach() @ seen.T @ seen)
    assert not queue.items.requires_grad
    torch.testing.assert_close(queue.items[:3], F.normalize(x.detach(), dim=1))


def test_more_vectors_than_it_holds_are_refused():
    with pytest.raises(ValueError, match="queue_size: 2 is smaller than the batch of 3 images"):
        Queue(2, 4).push(vectors(3, seed=0))
