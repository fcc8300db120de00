"""Kept images are what decoding gives, in bounded space, whatever is killed or runs beside."""

import errno
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from filelock import FileLock, Timeout

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.folders import FolderImages
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.data.picture_cache import PictureCache
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from tests.pictures import write_photos


@pytest.fixture
def photos(tmp_path):
    """Six JPEGs of other sizes."""
    (tmp_path / "photos").mkdir()
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 256, (400, 300 + 20 * number, 3))
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.jpg"), image.astype(np.uint8))
    names = [f"{number}.jpg" for number in range(6)]
    return FolderImages(tmp_path / "photos", names, name="photos")


def cached(photos, folder, most=1 << 30):
    images = FolderImages(photos.root, list(photos.paths), name="photos")
    images.cache = PictureCache(folder, most)
    return images


def files(folder):
    return [path for path in folder.glob("??/*") if path.suffix != ".part"]


VIEWS = RandomViews(32, augmentations_of("fine_grained"), (None, None))


def test_views_are_the_same_to_the_bit_with_and_without(photos, tmp_path):
    kept = cached(photos, tmp_path / "cache")
    without, filling, reading = (
        [ViewDataset(images, VIEWS, seed=0)[epoch, index]["images"] for index in range(6)]
        for epoch, images in ((0, photos), (0, kept), (0, kept))
    )
    for a, b, c in zip(without, filling, reading, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)
    assert len(files(tmp_path / "cache")) == 6


def test_a_kept_picture_is_not_decoded_again_and_may_be_written_to(photos, tmp_path):
    cache = PictureCache(tmp_path / "cache", 1 << 30)
    path = os.path.join(photos.root, "0.jpg")
    made = cache.get(path, None, lambda: photos[0]["image"])
    for _ in range(2):
        found = cache.get(path, None, lambda: pytest.fail("decoded"))
        assert np.array_equal(found, made)
        found[:] = 0  # a private copy of the file's pages
    assert cache.get(path, "reduced", lambda: made[::2, ::2]).shape == made[::2, ::2].shape


def test_a_changed_file_is_another_picture(photos, tmp_path):
    kept = cached(photos, tmp_path / "cache")
    before = kept.for_training(0, None)["image"].copy()
    path = os.path.join(photos.root, "0.jpg")
    cv2.imwrite(path, 255 - cv2.imread(path))
    os.utime(path, (1, 1))
    after = kept.for_training(0, None)["image"]
    assert np.array_equal(after, photos[0]["image"])
    assert not np.array_equal(after, before)


@pytest.mark.parametrize("damage", [b"", b"fgssl", None])
def test_a_file_that_is_not_whole_is_decoded_again(photos, tmp_path, damage):
    kept = cached(photos, tmp_path / "cache")
    kept.for_training(0, None)
    (file,) = files(tmp_path / "cache")
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert np.array_equal(kept.for_training(0, None)["image"], photos[0]["image"])
    assert np.array_equal(cached(photos, tmp_path / "cache").for_training(0, None)["image"],
                          photos[0]["image"])  # fmt: skip


def test_a_full_cache_keeps_what_it_has_and_says_so_once(photos, tmp_path, caplog):
    most = 3 * 400 * 320 * 2 + 100
    kept = cached(photos, tmp_path / "cache", most)
    for _ in range(2):
        for index in range(6):
            found = kept.for_training(index, None)["image"]
            assert np.array_equal(found, photos[index]["image"])
    there = files(tmp_path / "cache")
    assert len(there) == 2
    assert sum(file.stat().st_size for file in there) <= most
    (line,) = caplog.messages
    assert line.startswith("data.cache: ")
    assert "further images are decoded each time" in line


def test_an_unreadable_picture_is_the_same_error(photos, tmp_path):
    (tmp_path / "photos" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptImage, match=r"0\.jpg: not an image"):
        cached(photos, tmp_path / "cache").for_training(0, None)
    (tmp_path / "photos" / "1.jpg").unlink()
    with pytest.raises(CorruptImage, match=r"1\.jpg"):
        cached(photos, tmp_path / "cache").for_training(1, None)


def test_a_folder_that_cannot_be_written_costs_no_picture(photos, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    kept = cached(photos, tmp_path / "cache")
    for index in range(2):
        assert np.array_equal(kept.for_training(index, None)["image"], photos[index]["image"])
    (line,) = caplog.messages
    assert "cannot be written" in line


def _read_all(photos, folder, most, rounds):
    kept = cached(photos, folder, most)
    for _ in range(rounds):
        for index in range(6):
            assert np.array_equal(kept.for_training(index, None)["image"], photos[index]["image"])


def test_a_full_disk_is_tried_once_and_counts_nothing(photos, tmp_path, caplog, monkeypatch):
    tries = []

    def no_space(file, image):
        tries.append(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "cache"
    with monkeypatch.context() as full:
        full.setattr("fg_ssl_zoo.data.picture_cache._write", no_space)
        images = cached(photos, folder)
        for index in range(6):
            images.for_training(index, None)
    assert len(tries) == 1
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.text
    assert int((folder / "bytes").read_text()) == 0
    cached(photos, folder).for_training(0, None)  # the next run, with space again
    assert len(files(folder)) == 1


def test_a_lock_that_is_not_given_back_is_waited_for_once(photos, tmp_path, caplog, monkeypatch):
    waits = []

    class Held(FileLock):
        def acquire(self, *args, **kwargs):
            waits.append(self.lock_file)
            raise Timeout(self.lock_file)

    monkeypatch.setattr("fg_ssl_zoo.data.picture_cache.FileLock", Held)
    images = cached(photos, tmp_path / "cache")
    for index in range(6):
        images.for_training(index, None)
    assert len(waits) == 1
    assert "another process has locked" in caplog.text


def test_processes_share_a_cache_and_its_bound(photos, tmp_path):
    most = 3 * 400 * 330 * 4
    context = multiprocessing.get_context("fork")
    readers = [
        context.Process(target=_read_all, args=(photos, tmp_path / "cache", most, 2))
        for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    there = files(tmp_path / "cache")
    assert there
    assert sum(file.stat().st_size for file in there) <= most
    assert not list((tmp_path / "cache").glob("??/*.part"))


def test_threads_share_a_cache(photos, tmp_path, caplog):
    kept = cached(photos, tmp_path / "cache")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: kept.for_training(n % 6, None)["image"], range(48)))
    for number, image in enumerate(found):
        assert np.array_equal(image, photos[number % 6]["image"])
    assert len(files(tmp_path / "cache")) == 6
    assert not list((tmp_path / "cache").glob("??/*.part"))
    assert not caplog.messages


def _killed_while_it_writes(photos, folder):
    type(folder).replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # of this process alone
    cached(photos, folder).for_training(0, None)


def test_a_killed_process_leaves_no_half_picture(photos, tmp_path):
    victim = multiprocessing.get_context("fork").Process(
        target=_killed_while_it_writes, args=(photos, tmp_path / "cache")
    )
    victim.start()
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    assert not files(tmp_path / "cache")
    kept = cached(photos, tmp_path / "cache")
    assert np.array_equal(kept.for_training(0, None)["image"], photos[0]["image"])
    assert len(files(tmp_path / "cache")) == 1


def test_a_count_that_was_cut_off_is_taken_from_the_files(photos, tmp_path):
    kept = cached(photos, tmp_path / "cache")
    kept.for_training(0, None)
    count = tmp_path / "cache" / "bytes"
    used = int(count.read_text())
    count.write_text("")
    kept.for_training(1, None)
    assert int(count.read_text()) == used + 16 + 3 * 400 * 320


def test_the_recipe_switches_it_on_for_folders_alone(birds, tmp_path):
    write_photos(tmp_path / "birds", birds, classes=True)
    train, test = load_splits(Data(path=str(tmp_path / "birds"), cache=True, cache_gb=0.5))
    assert train.images.cache.most == 500_000_000
    assert test is not None
    plain, _ = load_splits(Data(path=str(tmp_path / "birds")))
    assert plain.images.cache is None
    with pytest.raises(ValueError, match=r"^data\.cache: .* those of drawn are not; set"):
        load_splits(Data(num_images=16, cache=True))
