"""A fingerprint changes with all that changes features, and with nothing else."""

from fastreid_star.engine.defaults import load_config
from fastreid_star.inference import StarPredictor
from fastreid_star.inference.fingerprint import differences, fingerprint


def test_fingerprints_differ_where_features_do(runs, star):
    def of(*options):
        cfg = load_config(str(runs / "STAR" / "config.yaml"), list(options))
        return fingerprint(star.model, cfg)

    own = star.fingerprint
    for harmless in (
        ("MODEL.DEVICE", "npu", "DATASETS.ROOT", "elsewhere"),
        ("MODEL.LOSSES.TRI.MARGIN", "9.0", "SOLVER.BASE_LR", "7.0"),
    ):
        assert differences(own, of(*harmless)) == []
    for key, value in (
        ("INPUT.CLIP.LENGTH", "5"),
        ("INPUT.SIZE_TEST", "[64,32]"),
        ("INPUT.BLANK", "True"),
        ("MODEL.HEADS.GEM_P", "1.0"),
        ("MODEL.PIXEL_MEAN", "[0,0,0]"),
    ):
        (found,) = differences(own, of(key, value))
        assert found.startswith(key)


def test_any_weight_or_buffer_but_the_losses_changes_the_fingerprint(runs, star):
    other = StarPredictor.from_run(runs / "STAR", "cpu")
    assert other.fingerprint == star.fingerprint
    state = other.model.state_dict()
    assert any(name.startswith("losses.") for name in state)
    for name, value in state.items():
        before = value.clone()
        value.view(-1)[-1] += 1
        found = differences(fingerprint(other.model, other.cfg), star.fingerprint)
        assert found == ([] if name.startswith("losses.") else ["other weights"]), name
        value.copy_(before)
