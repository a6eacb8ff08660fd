"""The tables of COCO's 17 joints."""

from fastreid_star.coco import BONES, JOINT_NAMES, LEFT_RIGHT, NUM_JOINTS, PARTS


def test_bones_are_the_authors_in_their_order():
    written = (
        "15-13 13-11 16-14 14-12 11-12 5-11 6-12 5-6 5-7 6-8 7-9 8-10 1-2 0-1 0-2 1-3 2-4 3-5 4-6"
    )
    assert ["-".join(map(str, bone)) for bone in BONES] == written.split()


def test_a_mirror_swaps_the_names_sides_and_keeps_the_bones():
    for joint, partner in enumerate(LEFT_RIGHT):
        name = JOINT_NAMES[joint]
        expected = (
            name.replace("left", "right") if "left" in name else name.replace("right", "left")
        )
        assert JOINT_NAMES[partner] == expected
        assert LEFT_RIGHT[partner] == joint
    bones = {frozenset(bone) for bone in BONES}
    assert {frozenset((LEFT_RIGHT[i], LEFT_RIGHT[j])) for i, j in BONES} == bones


def test_every_joint_is_in_one_part_and_parts_are_symmetric():
    assert sorted(joint for joints in PARTS.values() for joint in joints) == list(range(NUM_JOINTS))
    for joints in PARTS.values():
        assert {LEFT_RIGHT[joint] for joint in joints} == set(joints)
    assert {JOINT_NAMES[joint].split("_")[-1] for joint in PARTS["legs"]} == {"knee", "ankle"}
    assert {JOINT_NAMES[joint].split("_")[-1] for joint in PARTS["arms"]} == {"elbow", "wrist"}
