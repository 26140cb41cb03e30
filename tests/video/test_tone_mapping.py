"""HDR and wide gamuts in BT.709, judged by scenes in SDR and by formulas in double precision.

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
from helpers.scenes import decoded, file_from, picture_of, scene
from helpers.videos import Image

from granalign_fast.video.frames import read_frames
from granalign_fast.video.tone_mapping import tone_map

WHITE = 203.0


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
    lights = [light for light in lights if light < peak] + [peak]
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
