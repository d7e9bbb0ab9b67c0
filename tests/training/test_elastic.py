"""A run goes on with other processes, devices, replicas, workers, batch parts and kernels, and learns the same."""

import signal

import numpy as np
import pytest

from tests.training.lives import Run, wait_until
from tests.training.test_loop import last_step, losses, records

# At the paper's rates rounding stays as small as it is; Adam amplifies it where a gradient is nothing else.
OPTIONS = {"steps": 40, "batch_size": 8, "checkpoint_every": 40, "learning_rate": 1e-5, "encoder_lr_scale": 0.01}


@pytest.mark.slow
def test_a_run_that_is_moved_and_moved_back_has_the_losses_of_one_that_stays(tmp_path):
    straight, moved = (Run(tmp_path, name, **OPTIONS) for name in ("straight", "moved"))
    straight.move(1, devices=8)
    straight.finish()
    computed = {"model.late.remat": True, "model.decoder.remat": True, "model.decoder.packed": True}
    layouts = {(1, 8): {}, (2, 2): {"data.workers": 1, "train.accumulate": 2, "replicas": 2} | computed}
    began = []
    for processes, devices in [*layouts, (1, 8)]:
        moved.move(processes, devices, **layouts[processes, devices])
        started = moved.start()
        if len(began) < 2:
            assert wait_until(lambda: moved.began_at() is not None, started[0]), moved.said()
            goal = moved.began_at() + 5
            assert wait_until(lambda goal=goal: last_step(moved.workdir) >= goal, started[0]), moved.said()
            started[-1].send_signal(signal.SIGTERM)
        expected = 143 if len(began) < 2 else 0
        assert [process.wait(timeout=120) for process in started] == [expected] * processes, moved.said()
        began.append(moved.began_at())
    print("moved at", began)
    assert 0 == began[0] < began[1] < began[2] < OPTIONS["steps"]
    assert [record["step"] for record in records(moved.workdir)] == list(range(1, OPTIONS["steps"] + 1))
    of_moved, of_straight = ([line["loss"] for line in losses(run.workdir)] for run in (moved, straight))
    print("furthest apart", np.max(np.abs(np.subtract(of_moved, of_straight))), "from", of_straight[0])
    np.testing.assert_allclose(of_moved, of_straight, rtol=1e-5)
    assert np.std(of_straight) > 1e-3  # other images would show
