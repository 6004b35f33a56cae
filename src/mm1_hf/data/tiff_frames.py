"""The images of a TIFF file that holds several, such as the pages of a scanned document."""

import struct
from dataclasses import dataclass

from mm1_hf.data.documents import ImagePart, Unusable


# More images than any document has pages. A file may chain its images in a circle.
MAX_FRAMES = 4096

_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ENTRY_BYTES = 12


@dataclass(frozen=True)
class TiffFrame(ImagePart):
    """
    One image of a TIFF file. Its `source` is the content of the whole file.

    Args:
        offset: where the directory of the image begins, in bytes from the start of the file.
    """

    offset: int = 0

    @property
    def _content(self) -> bytes:
        # The file of this image alone: its head points at the image's directory. So the file is opened and limited as any
        # other. It is not kept, because the images of a file share one content.
        content = self.source
        assert isinstance(content, bytes)
        return content[:4] + struct.pack(f"{_ORDERS[content[:4]]}I", self.offset) + content[8:]


def tiff_frames(content: bytes, name: str) -> list[TiffFrame]:
    """
    The images of a TIFF file, in order. They are not decoded.

    Args:
        content: content of the file.
        name: where the file comes from, for error messages.

    Raises:
        Unusable: the file is not a TIFF file (BigTIFF is not read), its list of images is broken, or it has more than
            `MAX_FRAMES` images.
    """
    order = _ORDERS.get(content[:4])
    if order is None or len(content) < 8:
        raise Unusable("corrupt image", f"{name}: the file begins with {content[:4]!r}, which is not a TIFF file")
    offsets: list[int] = []
    (offset,) = struct.unpack_from(f"{order}I", content, 4)
    while offset:
        if offset in offsets or len(offsets) == MAX_FRAMES:
            raise Unusable("corrupt image", f"{name}: a TIFF file of more than {len(offsets)} images, or of a circle")
        offsets.append(offset)
        try:
            (entries,) = struct.unpack_from(f"{order}H", content, offset)
            (offset,) = struct.unpack_from(f"{order}I", content, offset + 2 + entries * _ENTRY_BYTES)
        except struct.error as error:
            raise Unusable("corrupt image", f"{name}: a TIFF file that ends in its list of images") from error
    return [TiffFrame(content, offset) for offset in offsets]
