import pytest


@pytest.mark.long
def test_a_tied_head_in_another_stage_learns_over_steps_what_one_process_does(make_run, run_together):
    settings = {"steps": 6, "optimizer": {"name": "adamw", "learning_rate": 0.003}}
    one = make_run("one", **settings)
    stages = make_run("stages", parallel={"dp_replicate": 1, "pp": 2}, micro_batch_size=4, **settings)
    run_together([one, stages])
    for name in ("train/loss", "train/grad_norm"):
        assert stages.values(name) == pytest.approx(one.values(name), rel=1e-5)
