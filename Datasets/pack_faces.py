"""Pack the faces of the four lists into one small archive, for a machine that has only the repository.

    python Datasets/pack_faces.py pack --data Datasets --archive faces.zip
    python Datasets/pack_faces.py unpack --archive faces.zip --data Datasets
    python train_h2l.py --data Datasets --resize 64 --crop 64       # the faces are framed already

HR faces become JPEGs of the 64x64 crop that training sees, real LR faces PNGs of their 16x16 px. The archive is a ZIP file
with the lists in it.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder
from Datasets.faces import prepare_faces  # noqa: E402
from utils import UserError, check_framing, run_script, write_whole  # noqa: E402

LISTS = ("HR_train", "HR_test", "LR_train", "LR_test")


def pack(data: Path, archive: Path, cache: Path, resize: int, crop: int, quality: int) -> None:
    """Write the archive of the four lists in `data`. quality: of the JPEGs, 1 to 95."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as file:
            for name in LISTS:
                rows = pack_list(file, data / f"{name}.csv", cache, resize, crop, quality)
                file.writestr(f"{name}.csv", "\n".join(["path", *rows, ""]))

    write_whole(archive, write)
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


def pack_list(file: zipfile.ZipFile, path: Path, cache: Path, resize: int, crop: int, quality: int) -> list[str]:
    """Add the faces of one list to the archive; returns their names in it."""
    hr = path.name.startswith("HR")
    faces = prepare_faces(path, path.name[:2], cache, resize, crop)
    names = [f"{path.stem}/{number:06d}.{'jpg' if hr else 'png'}" for number in range(len(faces))]
    for number, name in enumerate(names):
        face = Image.fromarray(faces[number : number + 1][0][0].permute(1, 2, 0).numpy())
        stream = io.BytesIO()
        if hr:
            face.save(stream, "JPEG", quality=quality, optimize=True)
        else:
            face.save(stream, "PNG", optimize=True)
        file.writestr(name, stream.getvalue())
    print(f"{path}: {len(names)} faces")
    return names


def unpack(archive: Path, data: Path) -> None:
    """Extract an archive of `pack`; `data` becomes a data folder. Does nothing if the lists are there already."""
    if all((data / f"{name}.csv").exists() for name in LISTS):
        print(f"{data} has the four lists already: nothing to unpack")
        return
    try:
        with zipfile.ZipFile(archive) as file:
            lists = [f"{name}.csv" for name in LISTS]
            if not set(lists) <= set(file.namelist()):
                raise UserError(f"{archive} has no {lists[0]}: it takes an archive of pack_faces.py")
            names = [name for name in file.namelist() if name not in lists]
            file.extractall(data, [*names, *lists])  # the lists last: where they are, all of it is
    except FileNotFoundError as error:
        raise UserError(f"{archive} is missing: make it with pack_faces.py pack") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is truncated or no ZIP file ({error}): copy it again") from error
    print(f"{data}: {len(names)} faces; train with --data {data} --resize 64 --crop 64")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pack", "unpack"))
    parser.add_argument("--archive", type=Path, default=Path("faces.zip"), help="the archive (default: faces.zip)")
    parser.add_argument("--data", type=Path, default=Path("Datasets"), help="folder of the lists (default: Datasets)")
    parser.add_argument("--cache", help="pack: folder of the prepared faces (default: .cache in the data folder)")
    parser.add_argument("--resize", type=int, default=100, help="pack: as in training (default: 100)")
    parser.add_argument("--crop", type=int, default=64, help="pack: as in training (default: 64)")
    parser.add_argument("--quality", type=int, default=80, help="pack: of the JPEGs, 1 to 95 (default: 80)")
    options = parser.parse_args(argv)
    check_framing(parser, options)
    if not 1 <= options.quality <= 95:
        parser.error(f"--quality {options.quality}: must be 1 to 95")
    if options.command == "unpack":
        unpack(options.archive, options.data)
    else:
        cache = Path(options.cache or options.data / ".cache")
        pack(options.data, options.archive, cache, options.resize, options.crop, options.quality)


if __name__ == "__main__":
    run_script(main)
