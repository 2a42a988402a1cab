"""What a file is by its content, and what is no picture by its name; no decoding."""

import importlib
import zlib
from struct import pack, unpack

from PIL import features

# Formats that Pillow needs a plug-in for: name -> (package, module)
PLUGINS = {
    "HEIC": ("pillow-heif", "pillow_heif"),
    "AVIF": ("pillow-avif-plugin", "pillow_avif"),
    "JPEG XL": ("pillow-jxl-plugin", "pillow_jxl"),
}
PLUGIN_EXTENSIONS = {".heic", ".heif", ".avif", ".jxl"}
BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # the chunks that the pixels depend on


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden or was made by an operating system, by its name alone.

    Such are ._name.png and __MACOSX (in every zip file made on a Mac), .DS_Store, Thumbs.db and
    .git.
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def plugin_format(head: bytes) -> str | None:
    """The format, by the first 64 bytes or more, of a file that Pillow needs a plug-in for, or None."""
    if head[:2] == b"\xff\x0a" or head[4:12] == b"JXL \r\n\x87\n":
        return "JPEG XL"
    if head[4:8] == b"ftyp":  # the container of MP4 videos, too; its major brand and then the compatible ones
        brands = {head[start : start + 4] for start in (8, *range(16, min(len(head), int.from_bytes(head[:4], "big")), 4))}
        return next((name for name, known in BRANDS.items() if brands & known), None)
    return None


def load_plugin(name: str) -> bool:
    """Let Pillow read a format of PLUGINS; False if its package is not installed."""
    if name == "AVIF" and features.check("avif"):  # Pillow's wheels have it
        return True
    try:
        module = importlib.import_module(PLUGINS[name][1])
    except ImportError:
        return False
    register = getattr(module, "register_heif_opener", None)  # the others register when imported
    if register:
        register()
    return True


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or JPEG file without its metadata, but for EXIF (orientation); None for other formats.

    For files that Pillow refuses because of a text, colour profile or tag that is damaged or too
    large. The pixels are the same: Pillow does not apply what is left out.
    """
    if content.startswith(PNG_SIGNATURE):
        return _png_without_metadata(content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg_without_metadata(content)
    return None


def _png_without_metadata(content: bytes) -> bytes:
    """A PNG file: chunks of length (4 bytes), name (4), data and check sum (4)."""
    parts, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position + 8 <= len(content):
        (length,) = unpack(">I", content[position : position + 4])
        name = content[position + 4 : position + 8]
        end = position + 12 + length
        if name == b"eXIf":
            chunk = content[position + 4 : end - 4]
            parts.append(pack(">I", length) + chunk + pack(">I", zlib.crc32(chunk)))
        elif name in PNG_PIXELS:
            parts.append(content[position:end])
        position = end
    return b"".join(parts)


def _jpeg_without_metadata(content: bytes) -> bytes:
    """A JPEG file: segments of FF, marker (1 byte), length (2) and data, up to the first scan."""
    parts, position = [content[:2]], 2
    while position + 4 <= len(content) and content[position] == 0xFF and content[position + 1] != 0xDA:
        marker, (length,) = content[position + 1], unpack(">H", content[position + 2 : position + 4])
        segment = content[position : position + 2 + length]
        application = 0xE0 <= marker <= 0xEF or marker == 0xFE
        exif = marker == 0xE1 and segment[4:10] == b"Exif\0\0"
        adobe = marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16  # tells the colour space
        if not application or exif or adobe:
            parts.append(segment)
        position += 2 + length
    return b"".join([*parts, content[position:]])
