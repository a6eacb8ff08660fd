"""Small SYSU-MM01, RegDB and LLCM in their layouts, with drawn images; identities have a color."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (16, 8)  # height, width


def picture(pid, infrared, rng):
    """The bytes of a small image: the color of the identity, gray in infrared, and noise."""
    color = np.array([37 * pid % 256, 91 * pid % 256, 151 * pid % 256])
    color = np.full(3, color.mean()) if infrared else color
    pixels = (color + rng.integers(-20, 21, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_image(path: Path, pid, infrared, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(pid, infrared, rng))


# --- SYSU-MM01 ---

SYSU_IDS = {"train": [1, 4], "val": [2], "test": [12, 6, 17, 9]}
# images of each test identity: by camera 1 to 6
SYSU_TEST = {
    6: [3, 12, 4, 1, 2, 3],
    9: [11, 5, 3, 0, 4, 2],
    12: [0, 4, 2, 0, 0, 0],  # its only match is in the room of its query
    17: [2, 3, 0, 10, 13, 4],
}


def write_sysu(folder: Path, *, seed=0, mat=False) -> Path:
    """Write a small SYSU-MM01, with the official permutations as its MATLAB file has them.

    Args:
        mat: the lists of identities are MATLAB files, not text files.
    """
    rng = np.random.default_rng(seed)
    (folder / "exp").mkdir(parents=True)
    for name, pids in SYSU_IDS.items():
        if mat:
            savemat(folder / "exp" / f"{name}_id.mat", {"id": np.array([pids])})
        else:
            text = ",".join(map(str, pids)) + "\n"
            (folder / "exp" / f"{name}_id.txt").write_text(text)
    counts = {pid: [2] * 6 for pid in (1, 2, 4)} | SYSU_TEST
    cells = np.empty((6, 1), object)
    for camera in range(6):
        cells[camera, 0] = np.empty((1, max(counts)), object)
        for pid in range(1, max(counts) + 1):
            count = counts.get(pid, [0] * 6)[camera]
            orders = [rng.permutation(count) + 1 for _ in range(10)]
            cells[camera, 0][0, pid - 1] = np.array(orders, np.uint16).reshape(10, count)
            for number in range(1, count + 1):
                path = folder / f"cam{camera + 1}/{pid:04d}/{number:04d}.jpg"
                write_image(path, pid, camera + 1 in (3, 6), rng)
    savemat(folder / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})
    return folder


# --- RegDB ---


def write_regdb(folder: Path, *, seed=0, identities=8, images=2, splits=(1, 2)) -> Path:
    """Write a small RegDB: half of the identities of each split are for training."""
    rng = np.random.default_rng(seed)
    (folder / "idx").mkdir(parents=True)
    names = {}
    for pid in range(1, identities + 1):
        for kind, letter in (("Visible", "v"), ("Thermal", "t")):
            own = [
                f"{kind}/{pid}/male_back_{letter}_{7 * pid + n}_{pid}.bmp" for n in range(images)
            ]
            names[kind, pid] = own
            for name in own:
                write_image(folder / name, pid, kind == "Thermal", rng)
    for split in splits:
        order = (rng.permutation(identities) + 1).tolist()
        halves = {"train": order[: identities // 2], "test": order[identities // 2 :]}
        for part, pids in halves.items():
            for kind in ("Visible", "Thermal"):
                lines = [f"{n} {label}" for label, pid in enumerate(pids) for n in names[kind, pid]]
                path = folder / "idx" / f"{part}_{kind.lower()}_{split}.txt"
                path.write_text("\n".join(lines) + "\n")
    return folder


# --- LLCM ---

LLCM_TEST = [11, 3, 8, 5]


def write_llcm(folder: Path, *, seed=0) -> Path:
    """Write a small LLCM; test identities are seen by some cameras only."""
    rng = np.random.default_rng(seed)
    (folder / "idx").mkdir(parents=True)
    (folder / "idx" / "test_id.txt").write_text(",".join(map(str, LLCM_TEST)) + "\n")
    for kind in ("vis", "nir"):
        lines = []
        for label, pid in enumerate((1, 2, 7)):
            for number in range(2):
                name = f"{kind}/{pid:04d}/{pid:04d}_c0{1 + number}_s1{pid}_f{number}_{kind}.jpg"
                lines.append(f"{name} {label}")
                write_image(folder / name, pid, kind == "nir", rng)
        (folder / "idx" / f"train_{kind}.txt").write_text("\n".join(lines) + "\n")
        for pid in LLCM_TEST:
            for camera in (1, 2, 4, 9) if kind == "nir" else (1, 3, 4):
                for number in range(int(rng.integers(0, 4)) + (camera == 1)):
                    place = f"test_{kind}/cam{camera}/{pid:04d}"
                    name = f"{pid:04d}_c0{camera}_s{number}_f{rng.integers(1000)}_{kind}.jpg"
                    write_image(folder / place / name, pid, kind == "nir", rng)
    return folder


WRITERS = {"SYSU-MM01": write_sysu, "RegDB": write_regdb, "LLCM": write_llcm}
