"""A whole mirror against the published checksums; and what the table promises about itself."""
import warnings

from flowmag_nb.assets import asset_path, list_assets, verify_assets


def test_nothing_in_the_mirror_is_wrong(mirror):
    states = verify_assets(mirror).state
    assert not states.eq("wrong").any(), states[states == "wrong"]
    assert states.eq("ok").any()


def test_folders_and_files_resolve(mirror):
    assert asset_path("drum", mirror).name == "drum.mp4"
    assert len(list(asset_path("twocats-frames", mirror).glob("*.png"))) == 20


def test_a_clip_that_arrives_by_hand_is_checked(tmp_path):
    (tmp_path / "magnifiers").mkdir()
    (tmp_path / "magnifiers" / "raft_chkpt_00140.pth").write_bytes(b"weights")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert asset_path("flowmag-raft", tmp_path).read_bytes() == b"weights"
    assert "no checksum is known" in str(said[0].message)


def test_every_asset_states_its_licence():
    assert list_assets().licence.str.len().gt(0).all()
