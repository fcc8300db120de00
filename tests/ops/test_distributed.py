"""Gradients of what processes exchange; what they compute is in `engine/test_processes.py`."""

import torch

from fg_ssl_zoo.ops import distributed


def test_the_gradient_of_gathered_rows_is_not_changed_where_others_read_it(monkeypatch):
    def of_two(parts, x):
        for part in parts:
            part.copy_(x)

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_gather", of_two)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda x: x.mul_(2))
    x, beside = torch.ones(3, 2, requires_grad=True), torch.ones(6, 2, requires_grad=True)
    read_later = beside * 1
    (distributed.gather(x) + read_later).square().sum().backward()
    assert x.grad is not None
    assert beside.grad is not None
    assert x.grad.tolist() == [[8.0, 8.0]] * 3  # 2 (1 + 1), summed over two processes
    assert beside.grad.tolist() == [[4.0, 4.0]] * 6
