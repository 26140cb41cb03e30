"""Frame rates and time codes that files state or hide, in files that FFmpeg wrote."""

from __future__ import annotations

import re
import warnings
from fractions import Fraction
from itertools import accumulate, cycle, islice
from pathlib import Path

import pytest
from helpers.ffmpeg import ffmpeg, ffprobe
from helpers.videos import constant, render

from granalign_fast.video.frame_rate import NOMINAL_RATES
from granalign_fast.video.source import Source, VariableFrameRateWarning, read_source

DROP, FILM = Fraction(30000, 1001), Fraction(24000, 1001)


def pattern(rate: Fraction | float, seconds: float = 2) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"testsrc2=s=64x48:r={rate}:d={seconds}")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", [*NOMINAL_RATES, Fraction(10), Fraction(25, 2), Fraction(15)])
def test_the_exact_rate_of_every_nominal_one(tmp_path: Path, rate: Fraction, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    render(path, constant(rate, 2), bframes=2)
    assert read_source(path) == Source(rate, size=(64, 48))


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
@pytest.mark.parametrize(
    ("header", "rate"),
    [
        (Fraction(25), Fraction(24)),
        (Fraction(30), DROP),
        (Fraction(24), FILM),
        (Fraction(30), Fraction(60)),
        (Fraction(30), Fraction(15)),
    ],
)
def test_packets_correct_a_header(
    tmp_path: Path, header: Fraction, rate: Fraction, suffix: str
) -> None:
    source, path = tmp_path / "a.mp4", tmp_path / f"lie.{suffix}"
    ffmpeg(*pattern(header, 8), "-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", source)
    slower = header / rate
    ratio = f"{slower.numerator}/{slower.denominator}"
    shift = f"setts=pts=PTS*{ratio}:dts=DTS*{ratio}:duration=DURATION*{ratio}"
    ffmpeg("-i", source, "-c", "copy", "-bsf:v", shift, path)
    stated = ffprobe("-select_streams", "v", "-show_entries", "stream=avg_frame_rate", path)
    assert f"avg_frame_rate={header}/1" in stated or suffix == "ts"
    assert read_source(path).rate == rate


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ("33.4 31 38 33 29 33.3 36 33.5 33.3 33.6 32", DROP),
        ("40 40 40 80", Fraction(25)),
        ("16.7 16.7 100 16.7 50", Fraction(60)),
        ("20 20.2 40.1", Fraction(50)),
        ("100 101 400 99 100", FILM),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_is_said_once(
    tmp_path: Path, durations: str, expected: Fraction, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    steps = [Fraction(step) / 1000 for step in durations.split()]
    render(path, list(accumulate(islice(cycle(steps), 59), initial=Fraction(0))))
    with pytest.warns(VariableFrameRateWarning) as caught:
        rate = read_source(path).rate
    assert rate is not None and abs(rate / expected - 1) < Fraction(2, 1000)
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith(f"{path}: variable frame rate") and "\n" not in message
    match = re.search(r"frames last ([\d.]+) to ([\d.]+) ms;", message)
    assert match is not None
    assert float(match[1]) == pytest.approx(float(min(steps) * 1000), abs=1)
    assert float(match[2]) == pytest.approx(float(max(steps) * 1000), abs=1)


def test_lost_packets_are_no_variable_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg(*pattern(25, 20), "-vf", "select='not(between(n,100,140))'", "-fps_mode", "vfr", path)
    assert read_source(path).rate == 25


def test_the_headers_count_where_too_few_frames_are(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    ffmpeg(*pattern(DROP), "-frames:v", "1", path)
    assert read_source(path).rate == DROP


TIMECODES = {
    "mp4": ("mp4", DROP, ("-c:v", "libx264"), "18:45:23;12", "18:45:23;12"),
    "mov without drop-frame": ("mov", DROP, ("-c:v", "libx264"), "01:00:00:00", "01:00:00:00"),
    "mov prores": ("mov", Fraction(24), ("-c:v", "prores"), "23:59:59:23", "23:59:59:23"),
    "mov 50": ("mov", Fraction(50), ("-c:v", "libx264"), "10:11:12:49", "10:11:12:49"),
    "mkv": ("mkv", DROP, ("-c:v", "libx264"), "18:45:23;12", "18:45:23;12"),
    "mkv 25": ("mkv", Fraction(25), ("-c:v", "libx264"), "00:00:10:24", "00:00:10:24"),
    "mxf": ("mxf", Fraction(25), ("-c:v", "mpeg2video"), "11:22:33:14", "11:22:33:14"),
    "mxf drop": ("mxf", DROP, ("-c:v", "mpeg2video"), "11:22:33;14", "11:22:33;14"),
    "avi": ("avi", FILM, ("-c:v", "mpeg4"), "05:00:00:00", "05:00:00:00"),
    "ts mpeg-2": ("ts", DROP, ("-c:v", "mpeg2video"), "18:45:23;12", "18:45:23;12"),
    "ps mpeg-2": ("mpg", Fraction(25), ("-c:v", "mpeg2video"), "18:45:23:12", "18:45:23:12"),
    "ts h.264 has none": ("ts", DROP, ("-c:v", "libx264"), "18:45:23;12", None),
    "mpeg-2 without": ("ts", DROP, ("-c:v", "mpeg2video"), None, None),
    "mp4 without": ("mp4", Fraction(25), ("-c:v", "libx264"), None, None),
    "zero": ("mov", DROP, ("-c:v", "libx264"), "00:00:00:00", "00:00:00:00"),
}


@pytest.mark.parametrize(
    ("suffix", "rate", "codec", "written", "expected"), TIMECODES.values(), ids=TIMECODES
)
def test_the_time_code_of_the_first_frame(
    tmp_path: Path,
    suffix: str,
    rate: Fraction,
    codec: tuple[str, ...],
    written: str | None,
    expected: str | None,
) -> None:
    path = tmp_path / f"a.{suffix}"
    option = () if written is None else ("-timecode", written)
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s=160x128:r={rate}:d=2", *codec, *option, path)
    source = read_source(path)
    assert source.timecode == expected and source.rate == rate


@pytest.mark.parametrize("suffix", ["ts", "mp4", "mkv"])
def test_the_time_code_inside_h264(tmp_path: Path, suffix: str) -> None:
    raw, path = tmp_path / "a.h264", tmp_path / f"a.{suffix}"
    x264 = ("-c:v", "libx264", "-preset", "ultrafast", "-x264-params", "pic-struct=1")
    ffmpeg(*pattern(DROP), *x264, "-f", "h264", raw)
    # x264 writes picture timing without a time code: 1 byte. Put 18:45:23;12 into the first one:
    # pic_struct, clock_timestamp_flag, ct_type, nuit_field_based_flag, counting_type,
    # full_timestamp_flag, discontinuity_flag, cnt_dropped_flag, then frames, seconds, minutes,
    # hours, time_offset, and the bits that end the message (H.264, D.1.3).
    bits = "0000" + "1" + "00" + "0" + "00100" + "1" + "0" + "1"
    bits += f"{12:08b}{23:06b}{45:06b}{18:05b}" + "10" * 12 + "1"
    message = int(bits.ljust(72, "0"), 2).to_bytes(9)
    before, after = raw.read_bytes().split(bytes.fromhex("000001 06 01 01 04 80"), 1)
    raw.write_bytes(before + bytes.fromhex("000001 06 01 09") + message + b"\x80" + after)
    ffmpeg("-r", str(DROP), "-i", raw, "-c", "copy", path)
    assert "timecode=18:45:23;12" in ffprobe("-show_frames", "-read_intervals", "%+#1", path)
    assert read_source(path).timecode == "18:45:23;12"


@pytest.mark.parametrize("value", ["yesterday", "25:00:00:00", "00:61:00:00", "00:00:00:25", ""])
def test_a_tag_that_is_no_time_code_is_ignored(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg(*pattern(25), "-metadata", f"timecode={value}", path)
    assert read_source(path).timecode is None


@pytest.mark.parametrize("suffix", ["mov", "mkv", "ts"])
def test_a_picture_that_begins_later_than_its_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    tone = ("-f", "lavfi", "-i", "sine=d=4:r=48000")
    codecs = ("-map", "1:v", "-map", "0:a", "-c:v", "mpeg2video", "-ac", "2")
    options = ("-fps_mode", "passthrough", "-timecode", "01:02:03:04")
    ffmpeg(*tone, "-itsoffset", "1.5", *pattern(25), *codecs, *options, path)
    source = read_source(path)
    assert source.timecode == "01:02:03:04" and source.rate == 25
    assert source.first_frame == pytest.approx(1.5, abs=0.06)
    assert (source.audio_channels, source.audio_rate) == (2, 48000)


def test_a_constant_rate_gives_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.flv"  # times in whole milliseconds
    ffmpeg(*pattern(Fraction(60000, 1001)), "-c:v", "libx264", path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_source(path).rate == Fraction(60000, 1001)
