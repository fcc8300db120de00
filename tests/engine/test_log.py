"""What a run writes about itself."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fg_ssl_zoo.engine.log import LateTensorBoardTracker, write_held


def tensorboard_of(folder, name):
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_values_of_the_start_are_written_with_those_of_the_first_step(tmp_path):
    tracker = LateTensorBoardTracker("tensorboard", str(tmp_path))
    tracker.start()
    tracker.log({"a": 1.0}, step=0)
    assert not list(tmp_path.iterdir())  # TensorBoard is not even imported for them
    tracker.log({"a": 2.0}, step=10)
    tracker.log({"a": 0.5}, step=0)  # the start on all images, measured later
    assert tensorboard_of(tmp_path / "tensorboard", "a") == [(0, 1.0), (10, 2.0), (0, 0.5)]
    tracker.finish()


def test_before_a_checkpoint_values_are_written(tmp_path):
    tracker = LateTensorBoardTracker("tensorboard", str(tmp_path))
    tracker.start()
    tracker.log({"a": 1.0}, step=0)
    write_held([tracker])
    assert tensorboard_of(tmp_path / "tensorboard", "a") == [(0, 1.0)]
    tracker.finish()


def test_a_run_that_ends_at_once_has_its_values(tmp_path):
    tracker = LateTensorBoardTracker("tensorboard", str(tmp_path))
    tracker.start()
    tracker.log({"a": 1.0}, step=0)
    tracker.finish()
    assert tensorboard_of(tmp_path / "tensorboard", "a") == [(0, 1.0)]
