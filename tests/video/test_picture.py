"""Pictures as players show them: matrix, range, pixel aspect, fields, rotation and alpha."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers.ffmpeg import ffmpeg
from helpers.scenes import decoded, file_from, picture_of, scene
from helpers.videos import Image, constant, draw, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.video import picture
from granalign_fast.video.container import display_matrix
from granalign_fast.video.frames import probe, read_frames
from granalign_fast.video.picture import displayed_picture, displayed_size

MATRICES = {
    "BT.709": ("bt709", "bt709"),
    "BT.601, 525 lines": ("smpte170m", "smpte170m"),
    "BT.601, 625 lines": ("bt470bg", "bt470"),
    "SMPTE 240M": ("smpte240m", "smpte240m"),
}
FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p12le", "gray"]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_matrix_and_range_as_ffmpeg_converts_them(tmp_path: Path, name: str, full: bool) -> None:
    tag, matrix = MATRICES[name]
    levels = "pc" if full else "tv"
    for pixels in FORMATS:
        path = tmp_path / f"{pixels}.mkv"
        convert = f"scale=out_color_matrix={matrix}:out_range={levels},format={pixels}"
        file_from(path, scene(), f"{convert},setparams=colorspace={tag}:range={levels}")
        assert (frame := decoded(path)).color_range == (2 if full else 1), frame
        back = (
            f"scale=in_color_matrix={matrix}:in_range={levels}:out_range=pc:"
            f"flags=bilinear,format=rgb24"
        )
        raw = ffmpeg("-i", path, "-vf", back, "-frames:v", "1", "-f", "rawvideo", "-")
        expected = np.frombuffer(raw, np.uint8).reshape(180, 320, 3).astype(int)
        difference = np.abs(picture_of(path).astype(int) - expected)
        assert difference.mean() < (1.5 if pixels == "yuv420p10le" else 0.1), (
            pixels,
            difference.mean(),
        )
        if pixels.startswith(("yuv444", "gray")):
            assert difference.max() <= 1, (pixels, difference.max())


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((576, 720), "bt601"), ((480, 854), "bt601"), ((720, 1280), "bt709"), ((608, 1080), "bt709")],
)
def test_the_size_chooses_the_matrix_of_a_file_without_a_tag(
    tmp_path: Path, size: tuple[int, int], matrix: str
) -> None:
    filters = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv444p,setparams=colorspace="
    original = scene(*size)
    path = file_from(tmp_path / "a.mkv", original, filters + "unknown")
    assert decoded(path).colorspace == 2
    assert np.abs(picture_of(path).astype(int) - original).max() <= 4


@pytest.mark.parametrize(
    "pixels", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "rgb24", "gbrp", "gray", "bgra"]
)
def test_bt709_and_sd_frames_keep_the_bytes_of_plain_conversion(pixels: str) -> None:
    frame = av.VideoFrame.from_ndarray(scene(), format="rgb24").reformat(format=pixels)
    for matrix in (1, 2, 5, 6):
        for levels in (0, 1, 2):
            frame.colorspace, frame.color_range = matrix, levels
            expected = frame.to_ndarray(format="rgb24")
            np.testing.assert_array_equal(displayed_picture(frame), expected)
            np.testing.assert_array_equal(displayed_picture(frame, Fraction(1)), expected)


@pytest.mark.parametrize("matrix", range(20))
def test_a_matrix_that_swscale_refuses_still_gives_a_picture(matrix: int) -> None:
    for pixels in ("yuv444p", "gbrp", "gray", "yuv420p10le"):
        frame = av.VideoFrame.from_ndarray(scene(), format="rgb24").reformat(format=pixels)
        frame.colorspace, frame.color_trc, frame.color_primaries = matrix, 3, 3
        result = displayed_picture(frame)
        gray = scene().mean(-1) if pixels == "gray" else scene()[..., 1]
        assert np.abs(result[..., 1].astype(float) - gray).mean() < 30


ASPECTS = [
    ("dvd.mpg", (576, 720), Fraction(16, 15), 768, {"codec": "mpeg2video"}),
    ("dvd.ts", (576, 720), Fraction(64, 45), 1024, {"codec": "mpeg2video"}),
    ("ntsc.mkv", (480, 720), Fraction(8, 9), 640, {}),
    ("hdv.mp4", (1080, 1440), Fraction(4, 3), 1920, {}),
    ("odd.mp4", (48, 66), Fraction(12, 11), 72, {}),
    ("rounded.mkv", (48, 64), Fraction(40, 33), 78, {}),
]


@pytest.mark.parametrize(("name", "size", "aspect", "width", "settings"), ASPECTS)
def test_pixels_that_are_not_square(
    tmp_path: Path, name: str, size: tuple[int, int], aspect: Fraction, width: int, settings: Any
) -> None:
    rate = {"time_base": Fraction(1, 25), "options": {"b": "4M"}} if settings else {}
    path = render(tmp_path / name, constant(25, 1), size=size, aspect=aspect, **settings, **rate)
    result = picture_of(path)
    assert result.shape == (size[0], width, 3)
    assert read(result) == 12
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (width, size[0], 0)


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_the_width_is_scaled_before_the_frame_is_turned(
    tmp_path: Path, quarters: int, flip: bool
) -> None:
    upright = [draw(index, (64, 48)) for index in range(25)]
    mirrored = [image[:, ::-1] if flip else image for image in upright]
    stored = [np.ascontiguousarray(np.rot90(image, -quarters)) for image in mirrored]
    path = render(
        tmp_path / "a.mp4",
        constant(25, 1),
        size=stored[0].shape[:2],
        drawn=stored,
        rotation=90 * quarters,
        flip=flip,
        aspect=Fraction(3, 2),
    )
    result = picture_of(path)
    assert read(result) == 12
    assert result.shape == ((64, 72, 3) if quarters == 2 else (96, 48, 3))


def test_an_absurd_or_unknown_aspect_counts_as_square() -> None:
    frame = av.VideoFrame.from_ndarray(scene(), format="rgb24")
    for aspect in (None, Fraction(0), Fraction(1), Fraction(1, 9), Fraction(65535), Fraction(-1)):
        assert displayed_size(frame, aspect) == displayed_picture(frame, aspect).shape[:2]
        assert displayed_size(frame, aspect) == (180, 320)
    assert displayed_size(frame, Fraction(1, 8)) == (180, 40)


def with_fields(path: Path, order: str, codec: str, pix_fmt: str = "yuv420p") -> Path:
    """Write 25 interlaced frames; the fields of frame i show 2 i and, later, 2 i + 1."""
    size = (96, 128)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            codec, rate=25, options={"flags": "+ildct+ilme", "b": "8M", "qmax": "4", "bf": "0"}
        )
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=size[1], height=size[0], format=pix_fmt, time_base=Fraction(1, 25)
        )
        field = graph.add("setfield", order)
        graph.link_nodes(source, field, graph.add("buffersink")).configure()
        for index in range(25):
            first, second = draw(2 * index, size), draw(2 * index + 1, size)
            image = np.empty_like(first)
            top, bottom = (first, second) if order == "tff" else (second, first)
            image[::2], image[1::2] = top[::2], bottom[1::2]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.ts", "mpeg2video", "yuv422p"),
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv422p10le"),
    ],
)
def test_an_interlaced_frame_shows_its_first_field(
    tmp_path: Path, order: str, name: str, codec: str, pix_fmt: str
) -> None:
    path = with_fields(tmp_path / name, order, codec, pix_fmt)
    assert decoded(path).interlaced_frame
    (frame,) = read_frames(path)
    assert read(frame.image) == 24 and frame.time == pytest.approx(12 / 25, abs=1e-3)
    difference = np.abs(frame.image.astype(int) - draw(24, (96, 128)))
    assert np.median(difference) <= 4 and difference.mean() < 8


def interlaced(image: Image, pixels: str) -> av.VideoFrame:
    """Return the image as a frame that is flagged as interlaced, top field first."""
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=pixels, time_base=Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    graph.push(frame)
    result: Any = graph.pull()
    assert result.interlaced_frame
    return result  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "pixels",
    ["yuv420p", "nv12", "yuyv422", "p010le", "yuv422p10be", "gray", "gbrp", "yuva420p", "rgb24"],
)
def test_deinterlacing_keeps_the_colours_of_any_format(pixels: str) -> None:
    frame = interlaced(scene(), pixels)
    for matrix, levels in ((1, 1), (6, 1), (2, 2)):
        if not frame.format.is_rgb:
            frame.colorspace, frame.color_range = matrix, levels
        expected = frame.to_ndarray(format="rgb24").astype(int)
        assert np.abs(displayed_picture(frame).astype(int) - expected).mean() < 3


def test_tiny_interlaced_frames() -> None:
    for size in ((2, 2), (2, 64), (64, 2), (3, 3)):
        assert displayed_picture(interlaced(scene(*size), "yuv444p")).shape == (*size, 3)


def test_alpha_is_dropped() -> None:
    image = np.dstack([scene(), np.full((180, 320), 7, np.uint8)])
    frame = av.VideoFrame.from_ndarray(image, format="rgba")
    np.testing.assert_array_equal(displayed_picture(frame), scene())


def test_decoding_on_a_gpu_refuses_pictures_that_need_more_than_a_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granalign_fast.video.frames.import_module", lambda _: None)
    times = constant(25, 1)
    hdr = av.VideoFrame(32, 32, "yuv420p10le")
    hdr.color_trc = 16
    assert picture.conversion_reason(hdr) == "must be converted to BT.709 from HDR or a wide gamut"
    turned = render(tmp_path / "turned.mp4", times, rotation=90)
    mirrored = render(tmp_path / "mirrored.mp4", times, rotation=0, flip=True)
    assert display_matrix(decoded(mirrored)) is not None
    wide = render(tmp_path / "wide.mp4", times, aspect=Fraction(4, 3))
    fields = with_fields(tmp_path / "fields.mp4", "tff", "libx264")
    for path, message in {
        turned: "its frames must be turned by 90 degrees",
        mirrored: "its frames must be mirrored",
        wide: "its frames must be scaled to square pixels",
        fields: "its frames must be deinterlaced",
    }.items():
        with pytest.raises(GranAlignError, match=f"{message}, which device 'cuda' cannot do"):
            read_frames(path, device="cuda")
