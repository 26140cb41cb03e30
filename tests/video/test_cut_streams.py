"""Streams besides the picture, containers, colours: what a cut keeps, converts, or names."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers.ffmpeg import ffmpeg, ffprobe
from helpers.videos import constant, read, render

from granalign_fast.errors import GranAlignError
from granalign_fast.video.cut_containers import own_suffix
from granalign_fast.video.cutting import check_cut, cut
from granalign_fast.video.frames import probe

PICTURE = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=6")
SOUND = ("-f", "lavfi", "-i", "sine=f=300:d=6", "-f", "lavfi", "-i", "sine=f=600:d=6")
H264 = ("-c:v", "libx264", "-g", "50", "-bf", "2", "-sc_threshold", "0")
CAPTIONS = """1
00:00:00,500 --> 00:00:02,500
early <i>words</i>

2
00:00:03,000 --> 00:00:03,600
in the middle
over two lines

3
00:00:05,000 --> 00:00:05,500
too late
"""


def streams(path: Path) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(ffprobe("-show_streams", "-of", "json", path))[
        "streams"
    ]
    return shown


def codecs(path: Path) -> list[str]:
    return [stream["codec_name"] for stream in streams(path)]


def captions(path: Path) -> str:
    return ffmpeg("-i", path, "-map", "0:s:0", "-f", "srt", "-").decode()


def spoil_second_sound(path: Path) -> None:
    """Rename the second sound track's codec to one that FFmpeg does not know, as iPhones write."""
    data = path.read_bytes()
    for old, new in ((b"mp4a", b"apac"), (b"esds", b"dapa")):
        entry = data.rindex(b"stsd")
        data = data[:entry] + data[entry:].replace(old, new)
    path.write_bytes(data)


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """A .mov with a picture, AAC, APAC and a time code, as an iPhone 16 writes."""
    path = tmp_path / "phone.mov"
    maps = ("-map", "0", "-map", "1", "-map", "2")
    ffmpeg(*PICTURE, *SOUND, *maps, *H264, "-c:a", "aac", path)
    spoil_second_sound(path)
    assert [stream.get("codec_tag_string") for stream in streams(path)] == ["avc1", "mp4a", "apac"]
    return path


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_sound_track_that_nobody_can_read_is_named(
    phone: Path, tmp_path: Path, suffix: str, exact: bool
) -> None:
    out = tmp_path / f"cut{suffix}"
    result = cut(phone, 2.5, 4.5, out, exact=exact)
    assert codecs(out) == ["h264", "aac"]
    assert result.left_out == ("stream 2 (audio, unknown codec): FFmpeg cannot read it",)
    assert result.start == (2.5 if exact else 2)
    ffmpeg("-i", out, "-f", "null", "-")


def test_a_video_whose_only_sound_cannot_be_read_keeps_its_picture(tmp_path: Path) -> None:
    path, out = tmp_path / "a.mov", tmp_path / "b.mp4"
    ffmpeg(*PICTURE, *SOUND[:4], "-map", "0", "-map", "1", *H264, "-c:a", "aac", path)
    spoil_second_sound(path)
    assert len(cut(path, 2, 4, out).left_out) == 1
    assert codecs(out) == ["h264"]


def test_other_streams_are_named_and_left_out(tmp_path: Path) -> None:
    cover, text = tmp_path / "cover.png", tmp_path / "notes.txt"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", cover)
    text.write_text("notes")
    art = ("-map", "0", "-map", "1", "-c:v:1", "png", "-disposition:v:1", "attached_pic")
    ffmpeg(*PICTURE, "-i", cover, *H264, *art, "-timecode", "01:00:00:00", tmp_path / "a.mp4")
    notes = ("-attach", text, "-metadata:s:t", "mimetype=text/plain")
    ffmpeg(*PICTURE, *H264, *notes, tmp_path / "a.mkv")
    for name, expected in (
        ("a.mp4", ["cover art", *["time code 01:00:00:00"] * 2]),  # one for each picture
        ("a.mkv", ["attachment notes.txt"]),
    ):
        result = cut(tmp_path / name, 2, 4, tmp_path / f"b{name}")
        kinds = [line[line.index("(") + 1 : line.index(")")] for line in result.left_out]
        assert sorted(kinds) == expected
        assert codecs(result.path) == ["h264"]


def test_every_readable_sound_track_is_kept_with_its_language(tmp_path: Path) -> None:
    path, out = tmp_path / "a.mkv", tmp_path / "b.mp4"
    languages = ("-metadata:s:a:0", "language=deu", "-metadata:s:a:1", "language=fra")
    default = ("-disposition:a:0", "0", "-disposition:a:1", "default")
    maps = ("-map", "0", "-map", "1", "-map", "2")
    ffmpeg(*PICTURE, *SOUND, *maps, *H264, "-c:a", "aac", *languages, *default, path)
    assert cut(path, 2, 4, out).left_out == ()
    sounds = streams(out)[1:]
    assert [sound["tags"]["language"] for sound in sounds] == ["deu", "fra"]
    assert [sound["disposition"]["default"] for sound in sounds] == [0, 1]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("source", "codec", "suffix", "expected"),
    [
        ("a.mkv", "subrip", ".mkv", "subrip"),
        ("a.mkv", "subrip", ".mp4", "mov_text"),
        ("a.mkv", "subrip", ".mov", "mov_text"),
        ("a.mkv", "ass", ".mp4", "mov_text"),
        ("a.mkv", "ass", ".mkv", "ass"),
        ("a.mp4", "mov_text", ".mp4", "mov_text"),
        ("a.mp4", "mov_text", ".mkv", "subrip"),
        ("a.webm", "webvtt", ".webm", "webvtt"),
        ("a.webm", "webvtt", ".mp4", "mov_text"),
    ],
)
def test_text_subtitles_follow_the_cut(
    tmp_path: Path, source: str, codec: str, suffix: str, expected: str, exact: bool
) -> None:
    path, text, out = tmp_path / source, tmp_path / "a.srt", tmp_path / f"b{suffix}"
    text.write_text(CAPTIONS)
    video = ("-c:v", "libvpx-vp9", "-g", "50") if source == "a.webm" else H264
    ffmpeg(*PICTURE, "-i", text, "-map", "0", "-map", "1", *video, "-c:s", codec, path)
    result = cut(path, 2, 4, out, exact=exact)
    assert result.left_out == () and codecs(out)[1] == expected
    lines = captions(out).replace("\r", "").strip().split("\n\n")
    # The first caption began before the cut: what is left of it begins with the cut. Where the
    # file's packets begin at the key frame, that caption is not among them.
    words = [line.split("\n", 2)[1:] for line in lines]
    assert words[-1] == ["00:00:01,000 --> 00:00:01,600", "in the middle\nover two lines"]
    if len(words) == 2:
        assert words[0][0] == "00:00:00,000 --> 00:00:00,500" and "early" in words[0][1]


def test_pictures_of_text_are_named(tmp_path: Path) -> None:
    path, text = tmp_path / "a.mkv", tmp_path / "a.srt"
    text.write_text(CAPTIONS)
    ffmpeg(
        *(*PICTURE, "-f", "lavfi", "-i", "color=white:s=64x48:d=6", "-i", text),
        *("-map", "0", *H264, path),
    )
    bitmap = tmp_path / "b.mkv"
    with av.open(str(path)) as source, av.open(str(bitmap), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        target.add_mux_stream("hdmv_pgs_subtitle")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    result = cut(bitmap, 2, 4, tmp_path / "c.mp4")
    assert [line.split(":")[0] for line in result.left_out] == [
        "stream 1 (subtitle, hdmv_pgs_subtitle)"
    ]
    assert cut(bitmap, 2, 4, tmp_path / "c.mkv").left_out == ()


@pytest.mark.parametrize(
    ("source", "sound", "suffix", "expected"),
    [
        ("a.mkv", "flac", ".mov", "aac"),
        ("a.mkv", "aac", ".webm", "opus"),
        ("a.mkv", "pcm_s16le", ".webm", "opus"),
        ("a.webm", "libopus", ".mov", "aac"),
        ("a.webm", "libopus", ".webm", "opus"),
    ],
)
def test_an_exact_cut_encodes_sound_that_the_container_does_not_take(
    tmp_path: Path, source: str, sound: str, suffix: str, expected: str
) -> None:
    path, out = tmp_path / source, tmp_path / f"b{suffix}"
    video = ("-c:v", "libvpx-vp9", "-g", "50") if source == "a.webm" else H264
    ffmpeg(*PICTURE, *SOUND[:4], *video, "-c:a", sound, path)
    assert cut(path, 2.5, 4.5, out, exact=True).left_out == ()
    assert codecs(out) == ["vp9" if suffix == ".webm" else "h264", expected]
    raw = ffmpeg("-i", out, "-map", "0:a", "-ac", "1", "-ar", "8000", "-f", "s16le", "-")
    assert len(raw) / 2 / 8000 == pytest.approx(2, abs=0.1)


def test_one_of_two_sounds_fits(tmp_path: Path) -> None:
    """A cut that has sound is written, and the sound that it lacks is named."""
    path, mute = tmp_path / "a.mkv", tmp_path / "b.mkv"
    vp9, maps = ("-c:v", "libvpx-vp9"), ("-map", "0", "-map", "1", "-map", "2")
    ffmpeg(*PICTURE, *SOUND, *maps, *vp9, "-c:a:0", "aac", "-c:a:1", "libopus", path)
    result = cut(path, 0, 4, tmp_path / "c.webm")
    assert codecs(result.path) == ["vp9", "opus"]
    assert result.left_out == (
        "stream 1 (audio, aac): .webm does not take it; --exact (exact=True) encodes it",
    )
    ffmpeg("-i", path, "-map", "0:v", "-map", "0:a:0", "-c", "copy", mute)
    with pytest.raises(GranAlignError, match=r"\.webm does not take the aac audio .* --exact"):
        check_cut(mute, tmp_path / "d.webm")


@pytest.mark.parametrize("codec", ["libaom-av1", "libvpx", "libvpx-vp9"])
def test_webm_takes_its_codecs(tmp_path: Path, codec: str) -> None:
    path, out = tmp_path / "a.webm", tmp_path / "b.webm"
    speed = ("-cpu-used", "8")
    ffmpeg(*PICTURE, *SOUND[:4], "-c:v", codec, *speed, "-g", "50", "-c:a", "libopus", path)
    assert cut(path, 2.5, 4.5, out).start == pytest.approx(2, abs=0.02)
    assert "webm" in ffprobe("-show_entries", "format=format_name", out)
    assert b"webm" in out.read_bytes()[:64]


def test_the_container_of_a_cut_is_that_of_the_video(tmp_path: Path) -> None:
    names = {"a.mp4": ".mp4", "a.mov": ".mov", "a.mkv": ".mkv", "a.ts": ".mkv", "a.avi": ".mkv"}
    for name, suffix in (names | {"a.m4v": ".mp4", "a.MP4": ".mp4"}).items():
        path = tmp_path / name
        muxer = ("-f", "mp4") if name == "a.m4v" else ()
        ffmpeg(*PICTURE, *H264, "-bf", "0", *muxer, path)
        assert own_suffix(path) == suffix
    vp9 = tmp_path / "a.webm"
    ffmpeg(*PICTURE, "-c:v", "libvpx-vp9", vp9)
    assert own_suffix(vp9) == ".webm"


class TestColours:
    """HDR10: PQ, BT.2020, ten bits, and the display on which it was graded."""

    MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"

    @pytest.fixture
    def hdr(self, tmp_path: Path) -> Path:
        path = tmp_path / "hdr.mp4"
        words = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:log-level=none"
        words += f":master-display={self.MASTERING}:max-cll=1000,400:hdr10=1:keyint=50"
        colours = ("-color_primaries", "bt2020", "-color_trc", "smpte2084")
        ffmpeg(
            *(*PICTURE, "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", words),
            *(*colours, "-colorspace", "bt2020nc", "-tag:v", "hvc1", path),
        )
        return path

    @staticmethod
    def tags(path: Path) -> list[str]:
        entries = "stream=pix_fmt,color_primaries,color_transfer,color_space"
        return ffprobe("-show_entries", entries, path).split()

    @staticmethod
    def mastering(path: Path) -> list[float]:
        """Return the numbers of the mastering display and the light levels of the first frame."""
        with av.open(str(path)) as container:
            side: Any = next(container.decode(video=0)).side_data
        display = struct.unpack("=22i", bytes(side.get("MASTERING_DISPLAY_METADATA"))[:88])
        light = struct.unpack("=2I", bytes(side.get("CONTENT_LIGHT_LEVEL"))[:8])
        return [display[i] / display[i + 1] for i in range(0, 20, 2)] + list(light)

    @pytest.mark.parametrize(
        ("suffix", "exact"),
        [
            *((suffix, exact) for suffix in (".mp4", ".mov", ".mkv") for exact in (False, True)),
            (".webm", True),
        ],
    )
    def test_hdr_stays_hdr(self, hdr: Path, tmp_path: Path, suffix: str, exact: bool) -> None:
        out = tmp_path / f"cut{suffix}"
        cut(hdr, 2, 3, out, exact=exact)
        assert "color_transfer=smpte2084" in self.tags(hdr)
        assert self.tags(out) == self.tags(hdr)
        # AV1 rounds to 16 bits behind the point.
        assert self.mastering(out) == pytest.approx(self.mastering(hdr), rel=0.005)


class TestReorderedAvi:
    """H.264 with B-frames in AVI: packets have numbers in decoding order, and no times."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        video = render(tmp_path / "a.mp4", constant(25, 8), gop=50, bframes=3)
        path = tmp_path / "a.avi"
        ffmpeg("-i", video, "-c", "copy", path)
        return path

    def test_it_is_not_copied(self, path: Path, tmp_path: Path) -> None:
        calls: tuple[Callable[[], Any], ...] = (
            lambda: check_cut(path, tmp_path / "b.mp4"),
            lambda: cut(path, 1, 2, tmp_path / "b.mp4"),
        )
        for call in calls:
            with pytest.raises(
                GranAlignError, match=r"no presentation times.*; cut it with --exact"
            ):
                call()
        assert not (tmp_path / "b.mp4").exists()

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
    def test_an_exact_cut_has_the_frames_as_they_are_shown(
        self, path: Path, tmp_path: Path, suffix: str
    ) -> None:
        out = tmp_path / f"b{suffix}"
        cut(path, 3.0, 5.0, out, exact=True)
        with av.open(str(out)) as container:
            shown = [
                (frame.time, read(frame.to_ndarray(format="rgb24")))
                for frame in container.decode(video=0)
            ]
        assert [index for _, index in shown] == list(range(75, 125))
        assert [time for time, _ in shown] == pytest.approx([k / 25 for k in range(50)], abs=2e-3)


@pytest.mark.parametrize("exact", [False, True])
def test_a_moment_before_the_first_picture(tmp_path: Path, exact: bool) -> None:
    path, out = tmp_path / "a.mp4", tmp_path / "b.mp4"
    ffmpeg("-itsoffset", "2", *PICTURE, *SOUND[:4], *H264, "-fps_mode", "passthrough", path)
    with pytest.raises(GranAlignError, match=r"ends at 1.5 s, but the first picture .* 2.000 s"):
        cut(path, 0.5, 1.5, out, exact=exact)
    # The cut begins with the sound, and its picture when the source shows it.
    assert cut(path, 1, 4, out, exact=exact).start == 1
    assert probe(out).first_frame == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_damaged_sound_does_not_cost_the_picture(tmp_path: Path, suffix: str) -> None:
    path, out = tmp_path / "a.mpg", tmp_path / f"b{suffix}"
    ffmpeg(*PICTURE, *SOUND[:4], "-c:v", "mpeg2video", "-g", "25", "-bf", "0", "-c:a", "mp2", path)
    with av.open(str(path)) as container:
        starts = [packet.pos for packet in container.demux(audio=0) if packet.size and packet.pos]
    data, random = bytearray(path.read_bytes()), np.random.default_rng(5)
    for start in random.choice(starts, len(starts) // 4, replace=False):
        data[start : start + 40] = random.bytes(40)
    path.write_bytes(data)
    exact = suffix == ".webm"
    result = cut(path, 2, 4, out, exact=exact)
    with av.open(str(out)) as container:
        assert len([frame.pts for frame in container.decode(video=0)]) >= 49
    (line,) = result.left_out
    assert re.fullmatch(r"stream 1 \(audio, mp2\): \d+ damaged packets", line)
