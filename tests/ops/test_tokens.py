import torch

from fg_ssl_zoo.ops.tokens import tokens_to_map


def test_token_i_is_the_pixel_in_row_i_over_width():
    tokens = torch.arange(2 * 6 * 3).reshape(2, 6, 3)
    found = tokens_to_map(tokens, 2)  # 2 rows of 3
    assert found.shape == (2, 3, 2, 3)
    for i in range(6):
        assert torch.equal(found[:, :, i // 3, i % 3], tokens[:, i])


def test_a_map_is_square_where_no_height_is_given():
    assert tokens_to_map(torch.zeros(1, 9, 4)).shape == (1, 4, 3, 3)
