"""Panorama files with metadata, written byte by byte."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def xmp(**values: float) -> bytes:
    """A GPano packet as Ricoh's cameras write it: `PoseHeadingDegrees=12.5` and so on."""
    tags = "".join(f"<GPano:{name}>{value}</GPano:{name}>" for name, value in values.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/">{tags}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def jpeg(pixels: np.ndarray, packet: bytes = b"", gps: dict[int, object] | None = None, quality: int = 98) -> bytes:
    """pixels: uint8 (H, W, 3) RGB. packet: XMP. gps: tags of EXIF's GPS directory."""
    if gps is None:
        data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    else:
        exif = Image.Exif()
        exif[0x8825] = gps
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality, exif=exif)
        data = stream.getvalue()
    if packet:
        content = b"http://ns.adobe.com/xap/1.0/\x00" + packet
        data = data[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + data[2:]
    return data


def write_png(path: Path, pixels: np.ndarray, alpha: np.ndarray | None = None) -> Path:
    bgr = pixels[..., ::-1] if alpha is None else np.dstack([pixels[..., ::-1], alpha])
    cv2.imwrite(str(path), bgr)
    return path
