"""Frames and their times, judged by their pictures: every frame shows its number."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.videos import constant, draw, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.video import frames
from granalign_fast.video.frames import Frame, probe, read_clips, read_frames
from granalign_fast.video.packets import PacketReader
from granalign_fast.video.reader import FrameReader

NTSC, FILM = Fraction(30000, 1001), Fraction(24000, 1001)
HALF_A_MILLISECOND = 0.0006  # Matroska rounds time stamps to milliseconds


def read_every_way(path: Path, clip: float = 2.0) -> list[Frame]:
    """Read the frames with and without skipping, with several numbers of threads, and compare."""
    expected = list(frames._read_on_cpu(path, Fraction(clip), 1, skip=False))
    for threads in (1, 3, None):
        result = list(read_frames(path, clip_seconds=clip, threads=threads))
        assert [(one.clip, one.time) for one in result] == [
            (one.clip, one.time) for one in expected
        ]
        for one, other in zip(result, expected, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            assert one.image.dtype == np.uint8 and one.image.flags.c_contiguous
    last = len(expected) - 1
    for clips in ([last, 0], range(last // 2, 99999), range(0, last + 9, 3), [last + 5], []):
        some = list(read_frames(path, clip_seconds=clip, clips=clips))
        assert [one.clip for one in some] == sorted({one for one in clips if one <= last})
        for one in some:
            np.testing.assert_array_equal(one.image, expected[one.clip].image)
            assert one.time == expected[one.clip].time
    return expected


def expected_frames(times: list[Fraction], end: Fraction, clip: Fraction) -> list[int]:
    """Return the number of the frame that a player shows at the middle of each clip."""
    chosen = []
    for number in range(math.ceil(end / clip)):
        middle = (number * clip + min((number + 1) * clip, end)) / 2
        chosen.append(max(index for index, time in enumerate(times) if time <= middle))
    return chosen


def uneven(seconds: int) -> list[Fraction]:
    """Return times of a variable rate: 10 to 40 frames a second, with stills of 1.3 s."""
    times, time, step = [], Fraction(0), 0
    while time < seconds:
        times.append(time)
        step += 1
        time += Fraction(13, 10) if step % 40 == 0 else Fraction(1, 10 + 7 * step % 31)
    return times


def test_clips_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 9))
    expected = list(read_frames(path))
    for image, clip in zip(read_clips(path, [3, 1, 3]), [3, 1, 3], strict=True):
        np.testing.assert_array_equal(image, expected[clip].image)
    with pytest.raises(GranAlignError, match="got no frame for clip 7"):
        read_clips(path, [0, 7])


# name: file, times, settings of the rendering
VIDEOS: dict[str, tuple[str, list[Fraction], dict[str, Any]]] = {
    "25": ("a.mp4", constant(25, 9), {}),
    "film": ("a.mp4", constant(FILM, 9), {}),
    "film in milliseconds": ("a.mkv", constant(FILM, 9), {"bframes": 2}),
    "ntsc": ("a.mp4", constant(NTSC, 9), {"bframes": 2}),
    "ntsc in milliseconds": ("a.mkv", constant(NTSC, 9), {}),
    "ntsc transport stream": ("a.ts", constant(NTSC, 9), {"bframes": 2}),
    "variable": ("a.mp4", uneven(19), {"gop": 70, "bframes": 3}),
    "variable in milliseconds": ("a.mkv", uneven(19), {"gop": 20}),
    "late start": ("a.mp4", constant(25, 7), {"start": Fraction(7, 5), "bframes": 3}),
    "late start in milliseconds": ("a.mkv", constant(25, 7), {"start": Fraction(7, 5)}),
    "late start transport stream": ("a.ts", constant(25, 7), {"start": Fraction(7, 5)}),
    "with audio": ("a.mkv", constant(25, 7), {"tone": 7}),
    "long audio": ("a.mp4", [*constant(25, 3)], {"tone": 60}),
    "short GOPs": ("a.mp4", constant(25, 9), {"gop": 7, "bframes": 2}),
    "long GOPs": ("a.mp4", constant(25, 21), {"gop": 1000, "bframes": 3}),
    "intra only": ("a.mp4", constant(25, 5), {"gop": 1}),
    "open GOPs": ("a.mp4", constant(25, 13), {"gop": 30, "bframes": 3, "options": {
        "x264-params": "open-gop=1:scenecut=0"}}),
    "false key frames": ("a.mp4", constant(25, 13), {"gop": 40, "options": {
        "x264-params": "intra-refresh=1:scenecut=0"}}),
    "odd size": ("a.mp4", constant(25, 5), {"size": (49, 67), "pix_fmt": "yuv444p"}),
    "ten bits": ("a.mp4", constant(25, 5), {"pix_fmt": "yuv420p10le", "bframes": 2}),
    "grey": ("a.mkv", constant(25, 5), {"codec": "ffv1", "pix_fmt": "gray"}),
    "sixteen bits": ("a.mkv", constant(25, 5), {"codec": "ffv1", "pix_fmt": "gray16le"}),
    "palette": ("a.gif", constant(10, 7), {"codec": "gif", "pix_fmt": "rgb8",
        "time_base": Fraction(1, 10)}),
    "hevc": ("a.mp4", constant(25, 7), {"codec": "libx265", "bframes": 3, "gop": 30}),
    "vp9": ("a.webm", constant(25, 5), {"codec": "libvpx-vp9", "options": {
        "deadline": "realtime", "cpu-used": "8"}}),
    "mpeg 2": ("a.mpg", constant(25, 7), {"codec": "mpeg2video", "bframes": 2, "gop": 12,
        "time_base": Fraction(1, 25), "options": {"b": "2M"}}),
    "mpeg 4": ("a.avi", constant(25, 7), {"codec": "mpeg4", "bframes": 2, "gop": 12,
        "time_base": Fraction(1, 25)}),
    "motion jpeg": ("a.avi", constant(25, 5), {"codec": "mjpeg", "pix_fmt": "yuvj420p",
        "time_base": Fraction(1, 25)}),
    "one frame": ("a.mp4", constant(25, 0.04), {}),
    "shorter than a clip": ("a.mkv", constant(25, 0.6), {}),
    "short last clip": ("a.mp4", constant(25, 6.24), {"bframes": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_the_frame_of_a_clip_is_shown_at_its_middle(tmp_path: Path, name: str) -> None:
    file, times, settings = VIDEOS[name]
    path = render(tmp_path / file, times, **settings)
    gaps = [after - before for before, after in pairwise(times)]
    end = times[-1] + (min(gaps) if gaps else Fraction(1, 25))
    result = read_every_way(path)
    expected = expected_frames(times, end, Fraction(2))
    assert [read(one.image) for one in result] == expected
    assert [one.clip for one in result] == list(range(len(expected)))
    for one, index in zip(result, expected, strict=True):
        assert abs(one.time - times[index]) < 2 * HALF_A_MILLISECOND
        assert one.image.shape == (*settings.get("size", (48, 64)), 3)
    info = probe(path)
    assert info.clips == len(expected) and info.rotation == 0
    assert abs(info.duration - end) < (min(gaps) if gaps else 0) / 2 + Fraction(2, 1000)
    assert (info.height, info.width) == settings.get("size", (48, 64))


@pytest.mark.parametrize("clip", [0.04, 0.5, 1.7, 60])
def test_clips_of_any_length(tmp_path: Path, clip: float) -> None:
    times = constant(NTSC, 4)
    path = render(tmp_path / "a.mp4", times, bframes=3, gop=30)
    result = [read(one.image) for one in read_every_way(path, clip)]
    assert result == expected_frames(times, times[-1] + 1 / NTSC, Fraction(clip))


def test_a_long_still_represents_every_clip_in_which_it_is_shown(tmp_path: Path) -> None:
    times = [Fraction(time) for time in (0, 1, 2, 13, 14, 22)]
    for name in ("a.mp4", "a.mkv"):
        result = read_every_way(render(tmp_path / name, times))
        assert [read(one.image) for one in result] == expected_frames(
            times, Fraction(23), Fraction(2)
        )
        assert [one.time for one in result[1:6]] == [2] * 5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_frames_stand_upright(tmp_path: Path, quarters: int, flip: bool) -> None:
    upright = [draw(index, (64, 48)) for index in range(60)]
    mirrored = [image[:, ::-1] if flip else image for image in upright]
    stored = [np.ascontiguousarray(np.rot90(image, -quarters)) for image in mirrored]
    path = render(
        tmp_path / "a.mp4",
        constant(25, 2.4),
        size=stored[0].shape[:2],
        drawn=stored,
        rotation=90 * quarters,
        flip=flip,
    )
    (first, second) = read_every_way(path)
    assert (read(first.image), read(second.image)) == (25, 55)
    info = probe(path)
    assert (info.height, info.width) == first.image.shape[:2] == (64, 48)
    if not flip:
        assert info.rotation == 90 * quarters


def test_probe_returns_the_properties_of_the_file(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", constant(FILM, 5), start=Fraction(7, 5), tone=5)
    info = probe(path, clip_seconds=1)
    assert (info.codec, info.clips, info.width, info.height) == ("h264", 6, 64, 48)
    assert info.frame_rate == pytest.approx(24000 / 1001)
    assert info.start == pytest.approx(1.4) and info.duration == pytest.approx(5.005, abs=2e-3)


def test_frames_are_decoded_when_the_caller_asks_for_them(tmp_path: Path) -> None:
    path = render(tmp_path / "a.mkv", constant(5, 600), gop=60, bframes=2)
    images: list[weakref.ref[Any]] = []
    most = 0
    for one in read_frames(path):
        images.append(weakref.ref(one.image))
        most = max(most, sum(image() is not None for image in images))
        assert read(one.image) == 10 * one.clip + 5
    assert one.clip == 299 and most <= 2


def test_packets_are_read_at_most_one_clip_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 60), gop=50)
    count = 0
    next_packet = PacketReader.next_packet

    def counted(self: Any) -> Any:
        nonlocal count
        count += 1
        return next_packet(self)

    monkeypatch.setattr(PacketReader, "next_packet", counted)
    for one in read_frames(path, threads=2):
        assert count < (one.clip + 1) * 50 + 20


def test_unneeded_packets_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 20), gop=5)
    decoded = 0
    decode = FrameReader._decode

    def count(self: Any, *args: Any) -> None:
        nonlocal decoded
        decoded += 1
        decode(self, *args)

    monkeypatch.setattr(FrameReader, "_decode", count)
    assert len(list(read_frames(path, threads=1))) == 10
    assert decoded < 10 * 10  # of 50 a clip


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "got a folder"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "zeros": (lambda path: path.write_bytes(bytes(10000)), "not a video"),
    "text": (lambda path: path.write_text("hello " * 1000), "not a video"),
    "playlist": (
        lambda path: path.write_text("ffconcat version 1.0\nfile other.mp4\n"),
        "no format of videos",
    ),
    "web playlist": (
        lambda path: path.write_text("#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n"),
        "not a video that can be read",
    ),
}


@pytest.mark.parametrize("call", [read_frames, probe])
@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_at_once(
    tmp_path: Path, name: str, call: Callable[[Path], Any]
) -> None:
    make, message = REFUSED[name]
    make(tmp_path / "a.mp4")
    with pytest.raises(GranAlignError, match=message) as caught:
        call(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_pictures_text_audio_and_raw_streams_are_refused(tmp_path: Path) -> None:
    import av
    from PIL import Image

    Image.fromarray(draw(7)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("hello " * 1000)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        wave.sample_rate = 8000
        container.mux([*sound.encode(wave), *sound.encode(None)])
    render(tmp_path / "a.h264", constant(25, 1), bframes=2)
    for name, message in {
        "a.png": "no format of videos",
        "a.txt": "no format of videos",
        "a.wav": "no video in it, only audio",
        "a.h264": "no presentation times",
    }.items():
        with pytest.raises(GranAlignError, match=message):
            list(read_frames(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_seconds": 0}, "clip_seconds: got 0"),
        ({"clip_seconds": float("nan")}, "clip_seconds: got nan"),
        ({"threads": 0}, "threads: got 0"),
        ({"device": "tpu"}, "device: got 'tpu'"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: Any, message: str) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 1))
    with pytest.raises(GranAlignError, match=message):
        read_frames(path, **arguments)


def test_decoding_on_a_gpu_needs_torchcodec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = render(tmp_path / "a.mp4", constant(25, 1))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(GranAlignError, match="torchcodec, which is not installed"):
        read_frames(path, device="cuda")


def test_torchcodec_gets_the_middles_of_the_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for its decoder: this proves times and clips, not that a GPU decodes."""
    times = constant(25, 5)
    path = render(tmp_path / "a.mkv", times, start=Fraction(7, 5))

    class Decoder:
        def __init__(self, source: str, **settings: str) -> None:
            assert settings == {"dimension_order": "NHWC", "device": "cuda"}

        def get_frames_played_at(self, seconds: list[float]) -> Any:
            index = [max(i for i, time in enumerate(times) if time + 1.4 <= s) for s in seconds]
            images = np.stack([draw(i) for i in index])
            tensor = SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: images))
            return SimpleNamespace(data=tensor, pts_seconds=np.array(index) / 25 + 1.4)

    fake = SimpleNamespace(VideoDecoder=Decoder)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=fake))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", fake)
    result = list(read_frames(path, device="cuda"))
    with warnings.catch_warnings(action="error"):
        on_cpu = list(read_frames(path))
    assert [(one.clip, read(one.image)) for one in result] == [
        (one.clip, read(one.image)) for one in on_cpu
    ]
    assert [one.time for one in result] == pytest.approx([one.time for one in on_cpu], abs=1e-3)


def test_the_decoder_is_imported_when_a_video_is_opened() -> None:
    code = (
        "import sys, granalign_fast.video.frames, granalign_fast.video.cutting;"
        "sys.exit('av' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
