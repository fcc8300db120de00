"""Where images lie on the sheet, to the pixel."""

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.data.contact_sheet import CAPTION, GAP, contact_sheet, save_png

RED, BLUE = np.full((10, 20, 3), (255, 0, 0), np.uint8), np.full((7, 7, 3), (0, 0, 255), np.uint8)
GREY = np.full((30, 30), 100, np.uint8)


def test_pictures_keep_their_proportions_and_their_places():
    sheet = contact_sheet([[RED, BLUE], [GREY]], cell=32)
    assert sheet.shape == (GAP + 2 * (32 + GAP), GAP + 2 * (32 + GAP), 3)
    first = sheet[GAP : GAP + 32, GAP : GAP + 32]
    np.testing.assert_array_equal(first[8:24], np.full((16, 32, 3), (255, 0, 0)))
    assert (first[:8] == 255).all()
    assert (first[24:] == 255).all()
    assert (sheet[GAP : GAP + 32, 2 * GAP + 32 : 2 * GAP + 64] == (0, 0, 255)).all()
    assert (sheet[2 * GAP + 32 : 2 * GAP + 64, GAP : GAP + 32] == 100).all()
    assert (sheet[2 * GAP + 32 :, 2 * GAP + 32 :] == 255).all()


def test_captions_stay_in_their_strip():
    bare = contact_sheet([[RED], [BLUE]], cell=32)
    sheet = contact_sheet([[RED], [BLUE]], ["a bird with a very long name", "b"], cell=32)
    assert sheet.shape[0] == bare.shape[0] + 2 * CAPTION
    assert (sheet[GAP : GAP + CAPTION] < 255).any()
    np.testing.assert_array_equal(sheet[GAP + CAPTION :][: 32 + GAP], bare[GAP:][: 32 + GAP])
    with pytest.raises(ValueError, match="1 for 2 rows"):
        contact_sheet([[RED], [BLUE]], ["one"])


def test_titles_stand_above_their_columns_in_whole_words():
    bare = contact_sheet([[RED, BLUE]], cell=64)
    sheet = contact_sheet([[RED, BLUE]], cell=64, titles=["picture", "epoch 1, view 2"])
    above = 2 * CAPTION  # "epoch 1," and "view 2", of which each fits into 64 pixels
    assert sheet.shape[0] == bare.shape[0] + above
    np.testing.assert_array_equal(sheet[GAP + above :], bare[GAP:])
    strip = sheet[: GAP + above]
    edge = GAP + 64
    assert (strip[:CAPTION, :edge] == 255).all()  # one line, right above its image
    assert (strip[CAPTION:, :edge] < 255).any()
    assert (strip[:CAPTION, edge:] < 255).any()
    with pytest.raises(ValueError, match="titles: 1 for 2 columns"):
        contact_sheet([[RED, BLUE]], titles=["picture"])


def test_save_png_keeps_the_colours(tmp_path):
    sheet = contact_sheet([[RED, BLUE]])
    save_png(tmp_path / "new" / "sheet.png", sheet)
    read = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    np.testing.assert_array_equal(read[..., ::-1], sheet)
