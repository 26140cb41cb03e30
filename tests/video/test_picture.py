"""Pictures as players show them, judged by the ffmpeg command and by formulas in double precision.

The SDR scene is the truth for its HDR versions, which ffmpeg's `zscale` grades.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from helpers.videos import constant, draw, ffmpeg, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.video import picture
from granalign_fast.video.container import display_matrix
from granalign_fast.video.frames import probe, read_frames
from granalign_fast.video.picture import displayed_picture, displayed_size, tone_map

Image = npt.NDArray[np.uint8]
WHITE = 203.0


def scene(height: int = 180, width: int = 320) -> Image:
    """Draw discs of many colours over a gradient, and a grey ramp from black to white."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    image = np.stack([0.2 + 0.5 * x, 0.3 + 0.5 * y, 0.7 - 0.5 * y * x], -1)
    for _ in range(60):
        row, column, radius = random.random(), random.random(), 0.03 + 0.12 * random.random()
        disc = (y - row) ** 2 * (height / width) ** 2 + (x - column) ** 2 < radius**2
        image[disc] = random.random(3) * 0.9 + 0.05
    image[: height // 9] = x[0, :, None]
    return np.rint(image * 255).astype(np.uint8)


def file_from(path: Path, image: Image, filters: str, *options: str) -> Path:
    """Write three equal frames through FFmpeg's filters, by default without loss in Matroska."""
    height, width = image.shape[:2]
    options = options or ("-c:v", "ffv1")
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25")
    ffmpeg(*raw, "-i", "-", "-vf", filters, *options, path, data=image.tobytes() * 3)
    return path


def picture_of(path: Path) -> Image:
    """Return the picture of the file's only clip."""
    (frame,) = read_frames(path)
    assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous
    info = probe(path)
    assert frame.image.shape == (info.height, info.width, 3)
    return frame.image


def decoded(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def contrast_and_saturation(image: Image) -> tuple[float, float]:
    """Return the standard deviation of luma, and the mean distance of a pixel from grey."""
    pixels = image.astype(np.float64)
    luma = pixels @ [0.2126, 0.7152, 0.0722]
    return float(luma.std()), float((pixels.max(-1) - pixels.min(-1)).mean())


LINEAR = (
    "setparams=color_primaries=bt709:color_trc=bt709:colorspace=gbr:range=pc,format=gbrp,"
    "zscale=t=linear:p=bt709:npl=203,format=gbrpf32le,zscale=p=bt2020,"
)
GRADES = {
    "PQ": "zscale=t=smpte2084:m=bt2020nc:r=limited:npl=203,format=yuv420p10le",
    "PQ, 12 bit, 4:4:4": "zscale=t=smpte2084:m=bt2020nc:r=limited:npl=203,format=yuv444p12le",
    "PQ, full range": "zscale=t=smpte2084:m=bt2020nc:r=full:npl=203,format=yuv422p10le",
    "PQ, RGB": "zscale=t=smpte2084:m=gbr:r=full:npl=203,format=gbrp10le",
    "PQ, luma matrix of BT.709": "zscale=t=smpte2084:m=bt709:npl=203:r=limited,format=yuv444p10le",
    "PQ, primaries of BT.709":
        "zscale=p=bt709,zscale=t=smpte2084:m=bt709:npl=203:r=limited,format=yuv444p10le",
    "PQ, without tags for matrix and primaries":
        "zscale=t=smpte2084:m=bt2020nc:r=limited:npl=203,format=yuv420p10le,"
        "setparams=color_primaries=unknown:colorspace=unknown",
    "HLG": "zscale=t=arib-std-b67:m=bt2020nc:r=limited:npl=203:agamma=0,format=yuv420p10le",
    "HLG, full range":
        "zscale=t=arib-std-b67:m=bt2020nc:r=full:npl=203:agamma=0,format=yuv420p10le",
    "BT.2020, SDR": "zscale=t=2020_10:m=bt2020nc:r=limited,format=yuv420p10le",
    "BT.2020, SDR, 8 bit": "zscale=t=bt709:m=bt2020nc:r=limited,format=yuv444p",
    "Display P3": "zscale=p=smpte432,zscale=t=bt709:m=bt709:r=limited,format=yuv444p10le",
}  # fmt: skip


@pytest.mark.parametrize("name", GRADES)
def test_a_graded_scene_looks_like_the_scene_in_sdr(tmp_path: Path, name: str) -> None:
    original = scene()
    path = file_from(tmp_path / "a.mkv", original, LINEAR + GRADES[name])
    result = picture_of(path)
    contrast, saturation = contrast_and_saturation(original)
    ours = contrast_and_saturation(result)
    assert ours[0] == pytest.approx(contrast, rel=0.03)
    assert ours[1] == pytest.approx(saturation, rel=0.03)
    assert np.abs(result.astype(int) - original).mean() < 2


def test_without_tone_mapping_the_scene_would_look_wrong(tmp_path: Path) -> None:
    """The condition of the test above: the files differ from SDR by far more than its limits."""
    contrast, saturation = contrast_and_saturation(scene())
    for name in ("PQ", "HLG"):
        path = file_from(tmp_path / "a.mkv", scene(), LINEAR + GRADES[name])
        stored = contrast_and_saturation(decoded(path).to_ndarray(format="rgb24"))
        assert stored[0] < 0.8 * contrast and stored[1] < 0.7 * saturation


def pq(light: float) -> float:
    """Return the signal of light in cd/m2: the inverse EOTF of SMPTE ST 2084."""
    power = (light / 10000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def light_of(signal: float) -> float:
    """Return the light in cd/m2 of a PQ signal, by bisection of `pq`."""
    low, high = 0.0, 10000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if pq(middle) < signal else (low, middle)
    return low


def hlg(light: float) -> float:
    """Return the signal of grey light in cd/m2 on a screen of 1,000 cd/m2: BT.2100, table 5."""
    scene_light = (light / 1000) ** (1 / 1.2)
    if scene_light <= 1 / 12:
        return float((3 * scene_light) ** 0.5)
    return float(0.17883277 * np.log(12 * scene_light - 0.28466892) + 0.55991073)


def sdr(light: float) -> float:
    """Return the 8-bit signal of light in cd/m2 on an SDR screen: BT.1886."""
    return 255 * min(max(light / WHITE, 0), 1) ** (1 / 2.4)


def dimmed(light: float, peak: float) -> float:
    """Return the light after the EETF of BT.2390 from a screen of `peak` to one of 203 cd/m2."""
    e1, top = pq(light) / pq(peak), pq(WHITE) / pq(peak)
    knee = 1.5 * top - 0.5
    if e1 < knee:
        return light
    t = (e1 - knee) / (1 - knee)
    p = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    return light_of((p + (-2 * t**3 + 3 * t**2) * top) * pq(peak))


def signal_of(patches: list[list[float]], curve: Any) -> npt.NDArray[np.uint16]:
    """Return a 16-bit signal with a band of 20 rows for each RGB triple of light."""
    values = [[curve(light) * 65535 for light in patch] for patch in patches]
    bands = np.repeat(np.rint(values).astype(np.uint16)[:, None], 20, axis=0)
    return np.repeat(bands, 30, axis=1)


@pytest.mark.parametrize(("transfer", "curve"), [(16, pq), (18, hlg)])
@pytest.mark.parametrize("peak", [100.0, 203.0, 400.0, 1000.0])
def test_grey_light_follows_the_formulas(transfer: int, curve: Any, peak: float) -> None:
    lights = [0.0, 0.05, 1.0, 10.0, 26.0, 50.0, 100.0, 150.0, 203.0, 300.0, 600.0, 1000.0]
    lights = [light for light in lights if light <= peak]
    result = tone_map(signal_of([[light] * 3 for light in lights], curve), transfer, 9)
    for band, light in enumerate(lights):
        shown = dimmed(light, peak) if peak > WHITE else light
        for value in result[20 * band + 10, 15]:
            assert abs(value - sdr(shown)) < 1.01, (light, value)


def test_pq_up_to_its_limit_and_above_the_peak() -> None:
    lights = [100.0, 4000.0, 10000.0]
    result = tone_map(signal_of([[light] * 3 for light in lights], pq), 16, 9)
    for band, light in enumerate(lights):
        assert abs(result[20 * band + 10, 15, 0] - sdr(dimmed(light, 10000))) < 1.01
    # A few brilliant pixels do not darken the others.
    image = signal_of([[100.0] * 3] * 40, pq)
    image[0, 0] = 65535
    result = tone_map(image, 16, 9)
    assert abs(result[-1, -1, 0] - sdr(100)) < 1.01 and (result[0, 0] == 255).all()


def test_colours_are_converted_to_bt709_and_keep_their_hue() -> None:
    # BT.709's green in BT.2020, by the matrix of BT.2087, annex 1
    green = [0.3293 * 150, 0.9195 * 150, 0.0880 * 150]
    # light twice as bright as white in the proportions 4:2:1, without a change of primaries
    orange = [406.0, 203.0, 101.5]
    (one,) = tone_map(signal_of([green], pq), 16, 9)[:1, 0]
    assert one[0] <= 8 and one[2] <= 8 and abs(one[1] - sdr(150)) < 2
    (one,) = tone_map(signal_of([orange], pq), 16, None)[:1, 0]
    assert [abs(value - sdr(WHITE / 2**power)) < 1.01 for power, value in enumerate(one)] == [
        True
    ] * 3
    # Red of BT.2020 is outside BT.709: it becomes BT.709's most saturated red.
    (one,) = tone_map(signal_of([[150.0, 0, 0]], pq), 16, 9)[:1, 0]
    assert one[0] > 240 and one[1] == one[2] == 0
    # Red, green and blue together stay white, whatever the primaries.
    for primaries in (9, 11, 12, None):
        assert (tone_map(np.full((2, 2, 3), 65535, np.uint16), 1, primaries) == 255).all()


def test_linear_light_is_encoded() -> None:
    signal = np.full((4, 4, 3), round(0.18 * 65535), np.uint16)
    assert (tone_map(signal, 8, None) == round(255 * 0.18 ** (1 / 2.4))).all()


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
            f"flags=bilinear+accurate_rnd+full_chroma_int,format=rgb24"
        )
        raw = ffmpeg("-i", path, "-vf", back, "-frames:v", "1", "-f", "rawvideo", "-")
        expected = np.frombuffer(raw, np.uint8).reshape(180, 320, 3).astype(int)
        difference = np.abs(picture_of(path).astype(int) - expected)
        assert difference.mean() < 1.0, (pixels, difference.mean())
        if pixels.startswith(("yuv444", "gray")):
            assert difference.max() <= 3, (pixels, difference.max())


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


def test_tags_and_aspects_that_change_within_a_file(tmp_path: Path) -> None:
    """The frames of a transport stream, first in HDR and then in SDR with wide pixels."""
    path = tmp_path / "a.ts"
    light = [
        [pq(light) for light in (WHITE, 20.0)],
        [(light / WHITE) ** (1 / 2.4) for light in (WHITE, 20)],
    ]
    with av.open(str(path), "w") as container:
        stream: Any = None
        for part, (transfer, matrix, aspect) in enumerate(((16, 9, 1), (1, 1, 2))):
            if stream is None:
                stream = encoder = container.add_stream("libx264", rate=25)
            else:
                encoder = av.CodecContext.create("libx264", "w")
                encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.width, encoder.height, encoder.pix_fmt = 96, 64, "yuv420p10le"
            context = encoder.codec_context if encoder is stream else encoder
            context.options = {"g": "25", "bf": "0", "crf": "4"}
            context.color_trc, context.color_primaries = transfer, matrix
            context.colorspace, context.color_range = matrix, 1
            context.sample_aspect_ratio = Fraction(aspect)
            signal = np.full((64, 96, 3), round(light[part][0] * 65535), np.uint16)
            signal[:, :48] = round(light[part][1] * 65535)
            for index in range(100):
                frame = av.VideoFrame.from_ndarray(signal, format="rgb48le")
                frame = frame.reformat(format="yuv420p10le", dst_colorspace=matrix)
                frame.pts, frame.time_base = index + 100 * part, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            for packet in encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    images = [frame.image for frame in read_frames(path)]
    assert [image.shape for image in images] == [(64, 96, 3)] * 2 + [(64, 192, 3)] * 2
    for image in images:
        assert abs(int(image[32, -10, 0]) - 255) <= 3
        assert abs(int(image[32, 10, 0]) - sdr(20)) <= 3


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
